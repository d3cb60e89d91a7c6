"""EnCodec's decoder, weight_norm folded, on odd architectures."""

from __future__ import annotations

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from bark_accel.patches import extract
from bark_accel.patches.fallback import Fallback
from bark_accel.stages.codec import CodecStage


def build(**options):
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(num_filters=4, **options)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"upsampling_ratios": [5, 3]},
        {"num_residual_layers": 3},
        {"use_conv_shortcut": False},
        {"pad_mode": "constant"},
        {"trim_right_ratio": 0.5},
        {"num_lstm_layers": 1, "compress": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [1, 3, 20])
@torch.no_grad()
def test_equals_stock(options, frames):
    model = build(**options)
    codes = torch.randint(0, 1024, (2, min(8, len(model.quantizer.layers)), frames))
    expected = model.decoder(model.quantizer.decode(codes.transpose(0, 1))).squeeze(1)
    got = CodecStage(extract.codec_weights(model)).run(codes)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"use_causal_conv": False}, {"norm_type": "time_group_norm"}], ids=str)
def test_other_architectures_fall_back(options):
    with pytest.raises(Fallback, match="codec"):
        extract.codec_weights(build(**options))


def test_no_frames():
    stage = CodecStage(extract.codec_weights(build()))
    assert stage.decode(torch.zeros(2, 128, 0)).shape == (2, 0)
