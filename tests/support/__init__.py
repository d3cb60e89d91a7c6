"""Helpers of the tests: models, stock beside us, stand-ins, the import graph."""
