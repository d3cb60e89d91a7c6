"""Bark's transformers as functions of plain tensors: weights, key-value cache, prompts, decode steps."""
