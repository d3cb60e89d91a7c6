"""The command line: demo, say, read, serve, corpus, bench, check and info. Nothing in the library imports it."""
