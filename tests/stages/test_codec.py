"""EnCodec's decoder, weight_norm folded, on odd architectures."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.launches import Launches
from transformers import EncodecConfig, EncodecModel

from bark_accel.hf.codec import codec_weights
from bark_accel.ops.backend import TORCH_CODEC
from bark_accel.ops.cpu import CODEC
from bark_accel.report import Fallback
from bark_accel.stages.codec import CodecStage
from benchmarks.gpu.paper import CODEC_KERNELS


def build(num_filters=4, **options):
    """A codec of random weights; the LSTM has 64 units, and no multiple of 16 with 3 filters and two ratios."""
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(num_filters=num_filters, **options)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model


OPS = {"native": CODEC, "torch": TORCH_CODEC}


@pytest.fixture(params=OPS)
def ops(request):
    return OPS[request.param]


ARCHITECTURES = [
    {},
    {"upsampling_ratios": [5, 3]},
    {"num_residual_layers": 3},
    {"use_conv_shortcut": False},
    {"pad_mode": "constant"},
    {"trim_right_ratio": 0.5},
    {"num_lstm_layers": 1, "compress": 1},
    {"num_filters": 3, "upsampling_ratios": [12, 10]},
]


@pytest.mark.parametrize("options", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("frames", [1, 3, 20])
@torch.no_grad()
def test_equals_stock(ops, options, frames):
    model = build(**options)
    codes = torch.randint(0, 1024, (2, min(8, len(model.quantizer.layers)), frames))
    expected = model.decoder(model.quantizer.decode(codes.transpose(0, 1))).squeeze(1)
    got = CodecStage(codec_weights(model), ops).run(codes)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"use_causal_conv": False}, {"norm_type": "time_group_norm"}], ids=str)
def test_other_architectures_fall_back(options):
    with pytest.raises(Fallback, match="codec"):
        codec_weights(build(**options))


@torch.no_grad()
def test_sums_do_not_depend_on_the_number_of_threads(ops, two_threads):
    stage = CodecStage(codec_weights(build(num_filters=32)), ops)
    codes = torch.randint(0, 1024, (1, 8, 300))
    made = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        made.append(stage.run(codes))
    assert all(torch.equal(waveform, made[0]) for waveform in made[1:])


def test_no_frames():
    stage = CodecStage(codec_weights(build()))
    assert stage.decode(torch.zeros(2, 128, 0)).shape == (2, 0)


def decode_in_chunks(stage, codes, sizes, row_frames=None):
    """The chunks of `sizes` frames, joined."""
    state, chunks, pushed = stage.start(), [], 0
    for i, size in enumerate(sizes):
        final = i == len(sizes) - 1
        chunks.append(stage.push(state, codes[:, :, pushed : pushed + size], final=final, row_frames=row_frames))
        pushed += size
    assert pushed == codes.shape[2]
    return torch.cat(chunks, dim=1)


def split(frames, cuts):
    """Chunk sizes (some may be 0) of cutting `frames` frames at `cuts`."""
    edges = [0, *sorted(c % (frames + 1) for c in cuts), frames]
    return [b - a for a, b in itertools.pairwise(edges)]


@pytest.fixture(scope="module", params=OPS)
def encodec(request):
    """EnCodec's own architecture: ratios 8, 5, 4, 2."""
    model = build()
    return model, CodecStage(codec_weights(model), OPS[request.param])


@torch.no_grad()
def test_rows_and_chunks_have_the_bits_of_the_whole(two_threads):
    """A row of a batch sounds as it does alone, and a stream as a whole, on any number of threads: to the bit."""
    model = build(num_filters=32)
    stage = CodecStage(codec_weights(model), CODEC)
    codes = torch.randint(0, 1024, (5, 8, 90))
    whole = stage.run(codes)
    expected = model.decoder(model.quantizer.decode(codes.transpose(0, 1))).squeeze(1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-6)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(stage.run(codes[row : row + 1])[0], whole[row]) for row in range(5))
        for sizes in ([1] * 90, [30, 30, 30], [7, 64, 19], [0, 89, 1]):
            assert torch.equal(decode_in_chunks(stage, codes[2:4], sizes), whole[2:4])


@settings(max_examples=60)
@given(
    frames=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@example(frames=1, cuts=[], batch=1, seed=0)
@example(frames=6, cuts=[1, 2, 3, 4, 5], batch=2, seed=0)
@example(frames=7, cuts=[6, 6, 7], batch=1, seed=0)
@example(frames=8, cuts=[0, 1, 2, 3, 4, 5, 6, 7], batch=1, seed=0)
@torch.no_grad()
def test_any_chunking_equals_the_whole(encodec, frames, cuts, batch, seed):
    model, stage = encodec
    codes = torch.randint(0, 1024, (batch, 8, frames), generator=torch.Generator().manual_seed(seed))
    expected = model.decoder(model.quantizer.decode(codes.transpose(0, 1))).squeeze(1)
    got = decode_in_chunks(stage, codes, split(frames, cuts))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    seed=st.integers(0, 99),
)
@example(lengths=[1, 30], cuts=[7], seed=0)
@example(lengths=[6, 3], cuts=[2], seed=0)
@torch.no_grad()
def test_rows_that_end_at_different_times(encodec, lengths, cuts, seed):
    """Each row sounds as if it were alone, then it is silent, whatever its codes say after its end."""
    model, stage = encodec
    frames = max(max(lengths), 1)
    codes = torch.randint(0, 1024, (len(lengths), 8, frames), generator=torch.Generator().manual_seed(seed))
    got = decode_in_chunks(stage, codes, split(frames, cuts), torch.tensor(lengths))
    assert got.shape == (len(lengths), frames * 320)
    for row, length in enumerate(lengths):
        end = length * 320
        assert not got[row, end:].any()
        if length:
            alone = model.decoder(model.quantizer.decode(codes[row : row + 1, :, :length].transpose(0, 1)))[0, 0]
            torch.testing.assert_close(got[row, :end], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("sizes", [[1] * 12, [2, 9, 1], [0, 12, 0], [5, 7]], ids=str)
@torch.no_grad()
def test_chunks_of_odd_architectures(ops, options, sizes):
    stage = CodecStage(codec_weights(build(**options)), ops)
    codes = torch.randint(0, 1024, (2, min(8, len(stage._weights.codebooks)), 12))
    torch.testing.assert_close(decode_in_chunks(stage, codes, sizes), stage.run(codes), rtol=0, atol=1e-6)


def test_the_first_seven_frames_come_together(encodec):
    _, stage = encodec
    state, codes = stage.start(), torch.zeros(1, 8, 1, dtype=torch.int64)
    assert [stage.push(state, codes, final=False).shape[1] for _ in range(8)] == [0] * 6 + [7 * 320, 320]


def test_a_stream_keeps_little(encodec):
    """The memory of a stream does not grow with it."""
    _, stage = encodec
    held = []
    for frames in (10, 300):
        state = stage.start()
        stage.push(state, torch.zeros(1, 8, frames, dtype=torch.int64), final=False)
        tensors = [state.conv_in.inputs, state.conv_out.inputs, *(conv.inputs for conv, _ in state.upsampling)]
        tensors += [s.inputs for _, blocks in state.upsampling for b in blocks for s in (b.conv_1, b.conv_2)]
        held.append(sum(t.untyped_storage().nbytes() for t in tensors))
    assert held[0] == held[1] > 0


def test_only_decoders_that_cut_on_the_right_serve_rows_of_different_length():
    for ratio, expected in ((1.0, True), (0.5, False)):
        assert CodecStage(codec_weights(build(trim_right_ratio=ratio))).cuts_right_only is expected


@torch.no_grad()
def test_kernels_on_a_gpu() -> None:
    """Those that the paper model of a GPU counts, beside the LSTM: torch's operations, which a GPU takes."""
    stage = CodecStage(codec_weights(build()), TORCH_CODEC)
    codes = torch.randint(0, 1024, (1, 8, 25))
    with Launches() as launched:
        stage.run(codes)
    lstm = launched.counts["mkldnn_rnn_layer"] + launched.counts["stack"]
    assert launched.counts.total() - lstm == CODEC_KERNELS
