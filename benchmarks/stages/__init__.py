"""Speed of whole stages, and what smaller weights cost in accuracy."""
