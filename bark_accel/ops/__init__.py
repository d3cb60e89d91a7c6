"""The compiled ops, their reference in plain torch, and the choice between them."""
