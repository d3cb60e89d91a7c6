"""Voice presets: their arrays, checks and files."""
