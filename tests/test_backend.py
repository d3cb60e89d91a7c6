"""Which devices the compiled ops serve."""

from __future__ import annotations

import pytest
import torch

from bark_accel.ops import backend

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "archs, capability, native",
    [
        ("sm_80 sm_90", (8, 0), True),
        ("sm_80 sm_90", (12, 0), True),
        ("sm_80 sm_90", (7, 5), False),
        (None, None, False),
    ],
)
def test_a_gpu_is_served_by_code_that_it_can_run(
    monkeypatch: pytest.MonkeyPatch, archs: str | None, capability: tuple[int, int] | None, native: bool
) -> None:
    monkeypatch.setattr(backend, "cuda_archs", lambda: archs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert backend.runs_natively("auto", GPU) == native
    assert backend.get_ops("auto", GPU).__name__ == ("bark_accel.ops.cuda" if native else "bark_accel.ops.reference")
    assert not backend.runs_natively("torch", GPU)
    if not native:
        with pytest.raises(
            ValueError, match=r"compute capability \(8, 0\) or later, got cuda:0; use 'auto' or 'torch'"
        ):
            backend.check_backend("native", GPU)
