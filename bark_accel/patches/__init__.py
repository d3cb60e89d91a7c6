"""Changes one `BarkModel` instance: the only code that does."""
