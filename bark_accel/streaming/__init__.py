"""Audio while it is generated: when codes are final enough, the data flow, the queue to the listener."""
