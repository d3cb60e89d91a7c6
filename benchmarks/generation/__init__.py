"""Whole generations: seconds by stage, first sound, batches, options, memory."""
