"""lstm_layer against torch.nn.LSTM, and what its bits do not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bark_accel.ops import native as ops

from .conftest import lstm_layer_inputs


def torch_lstm(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and last state of torch's layer in float64: the gates come as its inputs, by the identity."""
    size = hidden.shape[1]
    lstm = nn.LSTM(4 * size, size, bias=False, batch_first=True).double()
    lstm.weight_ih_l0.copy_(torch.eye(4 * size))
    lstm.weight_hh_l0.copy_(weight.permute(2, 0, 3, 1).reshape(4 * size, size))
    out, (last_hidden, last_cell) = lstm(gates.double(), (hidden.double()[None], cell.double()[None]))
    return out, last_hidden[0], last_cell[0]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("steps", "size"), [(1, 16), (20, 48), (9, 512)])
def test_equals_torch(isa: str, batch: int, steps: int, size: int) -> None:
    gates, weight, hidden, cell = lstm_layer_inputs(batch, steps, size)
    expected = torch_lstm(gates, weight, hidden, cell)
    out = ops.lstm_layer(gates, weight, hidden, cell)
    for got, wanted in zip((out, hidden, cell), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=0)
    assert torch.equal(hidden, out[:, -1])


def test_no_element_depends_on_cuts_rows_or_threads(isa: str) -> None:
    """Steps cut anywhere, rows alone, any number of threads: the same bits, and the same state."""
    gates, weight, hidden, cell = lstm_layer_inputs(5, 12, 272)
    states = hidden.clone(), cell.clone()
    whole = ops.lstm_layer(gates, weight, *states)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for rows in (slice(0, 5), slice(1, 2), slice(2, 5)):
                state = hidden[rows].clone(), cell[rows].clone()
                parts = [
                    ops.lstm_layer(part.contiguous(), weight, *state) for part in gates[rows].split([1, 6, 0, 5], 1)
                ]
                assert torch.equal(torch.cat(parts, dim=1), whole[rows])
                assert all(torch.equal(got, wanted[rows]) for got, wanted in zip(state, states, strict=True))
    finally:
        torch.set_num_threads(before)


def test_saturated_gates(isa: str) -> None:
    """Gates far out give 0 and 1, and NaN stays in its row."""
    gates, weight, hidden, cell = lstm_layer_inputs(2, 3, 32)
    expected = torch_lstm(gates * 1000, weight, hidden, cell)[0]
    out = ops.lstm_layer(gates * 1000, weight, hidden.clone(), cell.clone())
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)
    gates[1, 1, 5] = float("nan")
    out = ops.lstm_layer(gates, weight, hidden, cell)
    assert out[0].isfinite().all() and out[1, 0].isfinite().all() and out[1, 2].isnan().all()


def test_empty() -> None:
    _, weight, hidden, cell = lstm_layer_inputs(2, 1, 16)
    before = hidden.clone()
    assert ops.lstm_layer(torch.randn(2, 0, 64), weight, hidden, cell).shape == (2, 0, 16)
    assert torch.equal(hidden, before)
    assert ops.lstm_layer(torch.randn(0, 3, 64), weight, hidden[:0], cell[:0]).shape == (0, 3, 16)
