"""Processes that speak for one server, each with an engine and cores of its own; they share one copy of the weights."""
