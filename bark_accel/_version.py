"""The version: read by the package, and by setuptools without importing it."""

__version__ = "0.1.0"
