"""Many requests in one batch: rows join and leave at every step."""
