"""Intelligibility of the small Bark's speech, each way it is made to speak."""
