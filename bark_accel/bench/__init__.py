"""Models to measure with, and how they are measured."""
