"""The command line: demo, say, read, corpus, bench, check and info. Nothing in the library imports it."""
