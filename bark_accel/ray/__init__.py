"""Corpora of texts on a Ray cluster: one model for each actor, each row as it would be alone."""

try:
    from .corpus import CorpusSummary, synthesize_corpus
    from .synthesizer import Synthesizer
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("ray", "pyarrow", "pandas", "soundfile"):
        raise
    raise ImportError(f"bark_accel.ray needs Ray: pip install 'bark_accel[ray]' ({error})") from error

__all__ = ["CorpusSummary", "Synthesizer", "synthesize_corpus"]
