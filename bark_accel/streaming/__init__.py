"""Audio while it is generated: coarse tokens to sound, and the queue to the listener."""
