"""The documents that are made of result files."""
