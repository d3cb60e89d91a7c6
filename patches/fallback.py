"""The signal that sends a call to Transformers' own code."""

from __future__ import annotations

from bark_accel.report import FallbackKind, FallbackReason


class Fallback(Exception):
    """Raised while a call is being prepared, before any random number is drawn."""

    def __init__(self, stage: str, kind: FallbackKind, detail: str):
        self.reason = FallbackReason(stage, kind, detail)
        super().__init__(str(self.reason))
