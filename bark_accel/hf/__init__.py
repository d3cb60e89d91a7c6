"""Reads Transformers' objects and changes none of them."""
