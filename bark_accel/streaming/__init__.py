"""Audio while it is generated: when a frame may be decoded, coarse tokens to sound, the queue to the listener."""
