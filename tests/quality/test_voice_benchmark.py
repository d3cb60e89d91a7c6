"""The benchmark of voices: figures of planted embeddings."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speech.voices import CHUNKS, Said, figures, pairs_of_speakers


class TwoPresets:
    """Presets at right angles."""

    def __init__(self):
        self.embeddings = {"slt": torch.tensor([1.0, 0.0]), "rms": torch.tensor([0.0, 1.0])}

    def similarity(self, embedding, voice):
        return float(embedding @ self.embeddings[voice])


def said(degrees) -> Said:
    """Chunks that are turned away from their preset by `degrees(chunk)`; the last one of rms is silent."""
    chunks = {}
    for voice, away in (("slt", 0.0), ("rms", 90.0)):
        for chunk in range(CHUNKS):
            angle = torch.deg2rad(torch.tensor(away + (1 if voice == "slt" else -1) * degrees(chunk)))
            chunks[voice, 0, chunk] = torch.stack([angle.cos(), angle.sin()])
    chunks["rms", 0, CHUNKS - 1] = None
    return Said(chunks)


def test_a_voice_that_drifts():
    its = figures(said(lambda chunk: 60.0 if chunk >= CHUNKS - 5 else 0.0), said(lambda chunk: 0.0), TwoPresets())
    assert its["chunks"] == 2 * CHUNKS - 1 and its["silent"] == 1
    assert its["first_five"]["mean"] == pytest.approx(1) and its["last_five"]["mean"] == pytest.approx(0.5)
    assert its["nearer_to_other_preset"] == 9 and its["lowest_to_preset"] == pytest.approx(0.5)
    low, high = its["to_preset"]["interval"]
    assert its["to_preset"]["mean"] == pytest.approx(1 - 0.5 * 9 / 39) and low < its["to_preset"]["mean"] < high
    assert its["to_stock"]["mean"] == pytest.approx(its["to_preset"]["mean"])
    assert its["by_voice"]["slt"]["mean"] == pytest.approx(1 - 0.5 * 5 / 20)


def test_two_speakers_and_one():
    found = pairs_of_speakers(said(lambda chunk: 0.0))
    assert found["same"]["lowest"] == pytest.approx(1) and found["different"]["highest"] == pytest.approx(0, abs=1e-6)
