"""Corpora of texts on a Ray cluster: one model for each actor, each row as it would be alone."""

from .corpus import CorpusSummary, synthesize_corpus
from .synthesizer import Synthesizer

__all__ = ["CorpusSummary", "Synthesizer", "synthesize_corpus"]
