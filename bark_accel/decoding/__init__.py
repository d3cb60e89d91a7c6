"""The next token: sampling, random state, and the two ways to run ahead of it (drafts, CUDA graphs)."""
