"""The command line: demo, say, bench and info. Nothing in the library imports it."""
