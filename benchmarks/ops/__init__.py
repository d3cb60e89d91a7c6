"""Speed of single ops and of a decode step, against Transformers, plain torch and the machine's limits."""
