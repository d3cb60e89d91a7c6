"""The command line: demo, say, read, bench and info. Nothing in the library imports it."""
