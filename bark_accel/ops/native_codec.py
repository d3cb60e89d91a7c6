"""The compiled ops of EnCodec's decoder: a convolution over time, and a layer of an LSTM."""

from __future__ import annotations

from torch import Tensor

from ._compiled import fake, op, require_one_device


def float32_conv(
    input: Tensor,
    before: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dilation: int = 1,
    elu: bool = False,
) -> Tensor:
    """Convolve causally over time in float32, time before channels.

    Output t is the sum over taps of ``joined[t + tap * dilation] @ weight[tap]``, where `joined` is `before` and then
    `input`: as many outputs as inputs. The relative error is about 3e-7 for normal data. Sums go over groups of up to
    64 products, each in the order of taps and channels, so no element depends on the number of threads, on other rows,
    or on how a longer input is cut into calls. A NaN or infinite input shows in the outputs that its taps reach.

    Parameters
    ----------
    input : Tensor [B, T, C], float32
        Unit stride in C, other strides are free.
    before : Tensor [B, (taps - 1) * dilation, C], float32
        The inputs before the first: of the last call, or the padding. Unit stride in C, other strides are free.
    weight : Tensor [taps, C, N], float32, contiguous
        A matrix for each tap, the oldest input's first.
    bias : Tensor [N], float32, optional
    residual : Tensor [B, T, N], float32, optional
        Added last; unit stride in N, other strides are free.
    dilation : int
    elu : bool
        Of `before` and `input`.

    Returns
    -------
    Tensor [B, T, N], float32

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, no taps, C = 0, and a dilation below 1.
    """
    return op("float32_conv")(input, before, weight, bias, residual, dilation, elu)


@fake("float32_conv")
def _fake_float32_conv(
    input: Tensor,
    before: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dilation: int = 1,
    elu: bool = False,
) -> Tensor:
    require_one_device("float32_conv", input, before, weight, bias, residual)
    return input.new_empty(input.shape[0], input.shape[1], weight.shape[2])


def lstm_layer(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """Run a layer of an LSTM over its steps; what its inputs add to the gates is computed before, for all steps.

    Threads share the hidden units and read the weights once a step, for all rows. No element depends on the number of
    threads, on other rows, or on how the steps are cut into calls. `torch.nn.LSTM` to about 1e-7.

    Parameters
    ----------
    gates : Tensor [B, T, 4 * H], float32, contiguous
        Input, forget, cell and output gate: the inputs' products and both biases.
    weight : Tensor [H / 16, H, 4, 16], float32, contiguous
        ``weight[u // 16, k, gate, u % 16]`` is what hidden unit k adds to a gate of unit u; H is a multiple of 16.
    hidden, cell : Tensor [B, H], float32, contiguous
        The state before the first step; afterwards that of the last.

    Returns
    -------
    Tensor [B, T, H], float32
        The hidden units after each step.

    Raises
    ------
    ValueError
        On shapes, dtypes, devices or strides that do not fit, and on `hidden` and `cell` that share memory.
    """
    return op("lstm_layer")(gates, weight, hidden, cell)


@fake("lstm_layer")
def _fake_lstm_layer(gates: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    require_one_device("lstm_layer", gates, weight, hidden, cell)
    return gates.new_empty(gates.shape[0], gates.shape[1], weight.shape[1])
