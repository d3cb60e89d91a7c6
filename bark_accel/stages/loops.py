"""The token loops of the two causal stages; a `TokenListener` gets each token as it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .coarse_rows import CoarseRows
from .semantic import SemanticStage, SemanticState


@dataclass(frozen=True)
class TokenListener:
    """Called around each token of a stage.

    Parameters
    ----------
    before_token : callable
        May raise to stop the loop.
    on_token : callable
        Takes the token [B] int64 of every row: the semantic stage's on the host, the coarse stage's where the model is.
    """

    before_token: Callable[[], None] = lambda: None
    on_token: Callable[[Tensor], None] = lambda tokens: None


NOBODY = TokenListener()


def run_semantic(stage: SemanticStage, state: SemanticState, listener: TokenListener = NOBODY) -> Tensor:
    """Generate to the end of speech: semantic tokens [B, T] int64, as the semantic stage pads them."""
    state.heard = listener is not NOBODY
    while not state.done:
        listener.before_token()
        listener.on_token(stage.step(state))
    return state.result()


def run_coarse(rows: CoarseRows, listener: TokenListener = NOBODY) -> None:
    """Generate every token that the semantic tokens pushed so far settle."""
    while rows.ready:
        listener.before_token()
        listener.on_token(rows.step())
