"""A run on a machine with a GPU: build, tests, measurements, over in time whatever happens."""
