"""Rows of different lengths: cut from a batch, joined to one, padded after their end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def trim_rows(audio: Tensor, lengths: Sequence[int] | Tensor) -> list[Tensor]:
    """Cut each row of a batch to its own length.

    Parameters
    ----------
    audio : Tensor [B, S]
        As `model.generate` gives it, or the chunks of a stream joined.
    lengths : B ints
        Samples of each row: what `return_output_lengths=True` adds, or `streamer.row_lengths_samples`.

    Returns
    -------
    list of B Tensors [S_i]
        Views of `audio`.

    Raises
    ------
    ValueError
        `audio` is no batch of waveforms, or `lengths` does not fit it.
    """
    ends = [int(length) for length in lengths]
    if audio.ndim != 2 or len(ends) != audio.shape[0]:
        raise ValueError(
            f"trim_rows: expected audio [B, S] and B lengths, got {list(audio.shape)} and {len(ends)} lengths"
        )
    if any(not 0 <= end <= audio.shape[1] for end in ends):
        raise ValueError(f"trim_rows: expected lengths of 0 to {audio.shape[1]} samples, got {ends}")
    return [row[:end] for row, end in zip(audio, ends, strict=True)]


def pad_ended(tokens: Tensor, unfinished: Sequence[bool], pad_token: int | None) -> Tensor:
    """Tokens [B], `pad_token`, if there is one, in the rows that are not among the `unfinished`."""
    if all(unfinished) or pad_token is None:
        return tokens
    keep = torch.tensor(unfinished, dtype=torch.bool, device=tokens.device)
    return torch.where(keep, tokens, pad_token)


def join_rows(rows: list[Tensor], padding: int) -> Tensor:
    """[B, ..., T] of B tensors [1, ..., T_i] (or of one [B, ..., T]), padded at the end."""
    if len(rows) == 1:
        return rows[0]
    longest = max(row.shape[-1] for row in rows)
    return torch.cat([F.pad(row, (0, longest - row.shape[-1]), value=padding) for row in rows])
