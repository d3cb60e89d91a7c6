"""Text of any length: sentences into chunks, chunks into audio, the folder that keeps them."""
