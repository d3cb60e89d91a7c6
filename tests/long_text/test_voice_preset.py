"""Voice presets made of what was generated: in memory, in files, read back by Transformers."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from bark_models import SMALL, preset, submodels, texts
from parity import accelerated_copy, assert_equal_to_stock
from stock_limits import skip_where_stock_fails
from transformers import BarkModel

from bark_accel import AudioStreamer, generate_with_preset, load_voice_preset, save_voice_preset, stream
from bark_accel.hf.presets import generate_with_presets
from bark_accel.hf.stage_trace import record_stages

INPUTS = texts(SMALL, [9])
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 40, "min_eos_p": 0.01}


def assert_same_preset(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() == {"semantic_prompt", "coarse_prompt", "fine_prompt"}
    for key, codes in one.items():
        np.testing.assert_array_equal(codes, other[key])
        assert codes.dtype == np.int64


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_preset_is_what_the_stages_generated(small_model, accelerated):
    model = accelerated_copy(small_model) if accelerated else copy.deepcopy(small_model)
    with record_stages(model) as record:
        torch.manual_seed(3)
        expected = model.generate(**INPUTS, **SAMPLED)
    before = [dict(vars(owner)) for owner in (model, *submodels(model))]
    torch.manual_seed(3)
    audio, made = generate_with_preset(model, **INPUTS, **SAMPLED)
    assert [dict(vars(owner)) for owner in (model, *submodels(model))] == before
    torch.testing.assert_close(audio, expected, rtol=0, atol=0)
    semantic, fine = record.outputs["semantic"][0].numpy(), record.outputs["fine"][0].numpy()
    coarse = record.outputs["coarse"][0].reshape(-1, 2).T.numpy() - SMALL.semantic_vocab
    np.testing.assert_array_equal(made["semantic_prompt"], semantic[semantic != SMALL.semantic_vocab])
    np.testing.assert_array_equal(made["fine_prompt"], fine)
    np.testing.assert_array_equal(made["coarse_prompt"], coarse % SMALL.codebook_size)


def test_stock_and_accelerated_make_the_same_preset(small_model):
    made = []
    for model in (small_model, accelerated_copy(small_model)):
        torch.manual_seed(5)
        made.append(generate_with_preset(model, **INPUTS, **SAMPLED)[1])
    assert_same_preset(*made)


def test_rows_are_trimmed_to_their_own_length(small_model):
    fast = accelerated_copy(small_model)
    inputs, seen = texts(SMALL, [3, 8, 12, 5]), set()
    for seed in range(4):
        torch.manual_seed(seed)
        audio, lengths, presets = generate_with_presets(fast, **inputs, **SAMPLED)
        assert audio.shape == (4, max(lengths))
        for samples, made in zip(lengths, presets, strict=True):
            assert samples == 320 * made["fine_prompt"].shape[1]
            assert made["coarse_prompt"].shape[1] == int(len(made["semantic_prompt"]) * 75 / 49.9)
            assert (made["semantic_prompt"] < SMALL.semantic_vocab).all()
        seen |= set(lengths)
    assert len(seen) > 2


def test_other_threads_may_generate_meanwhile(small_model):
    """The recording touches a view, never the model."""
    fast = accelerated_copy(small_model)
    greedy = {"do_sample": False, "fine_temperature": None, "semantic_max_new_tokens": 40}
    _, expected = generate_with_preset(fast, **INPUTS, **greedy)
    others = threading.Thread(target=lambda: [fast.generate(**texts(SMALL, [4]), **greedy) for _ in range(5)])
    others.start()
    while others.is_alive():
        assert_same_preset(generate_with_preset(fast, **INPUTS, **greedy)[1], expected)
    others.join()
    assert "generate" not in vars(small_model.semantic)


@pytest.mark.parametrize("policy", ["exact", "low_latency"])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_stream_makes_a_preset(small_model, policy, fallback):
    fast = accelerated_copy(small_model, strict=False)
    options = {**SAMPLED, "repetition_penalty": 1.2} if fallback else SAMPLED
    torch.manual_seed(3)
    _, expected = generate_with_preset(fast, **INPUTS, **options)
    streamer = AudioStreamer(fast, policy=policy)
    torch.manual_seed(3)
    audio = torch.cat(list(stream(fast, **INPUTS, **options, streamer=streamer)), dim=1)
    (made,) = streamer.presets
    if policy == "exact":
        assert_same_preset(made, expected)
    for key in ("semantic_prompt", "coarse_prompt"):
        np.testing.assert_array_equal(made[key], expected[key])
    codes = torch.from_numpy(made["fine_prompt"])[None]
    torch.testing.assert_close(fast.codec_decode(codes), audio, rtol=0, atol=1e-6)


def test_a_stream_of_one_chunk_makes_a_preset(small_model):
    skip_where_stock_fails("beams")
    fast = accelerated_copy(small_model, strict=False)
    beams = {"num_beams": 2, "do_sample": False, "fine_temperature": None, "semantic_max_new_tokens": 12}
    _, expected = generate_with_preset(fast, **INPUTS, **beams)
    streamer = AudioStreamer(fast)
    assert len(list(stream(fast, **INPUTS, **beams, streamer=streamer))) == 1
    assert_same_preset(streamer.presets[0], expected)


@pytest.mark.parametrize("interleave", [False, True])
def test_rows_of_a_stream_make_presets_of_their_own_length(small_model, interleave):
    fast, seen = accelerated_copy(small_model), set()
    for seed in range(3):
        streamer = AudioStreamer(fast, policy="exact", interleave=interleave)
        torch.manual_seed(seed)
        audio = torch.cat(list(stream(fast, **texts(SMALL, [3, 8]), **SAMPLED, streamer=streamer)), dim=1)
        for row, samples, made in zip(audio, streamer.row_lengths_samples, streamer.presets, strict=True):
            assert samples == 320 * made["fine_prompt"].shape[1]
            assert made["coarse_prompt"].shape[1] == int(len(made["semantic_prompt"]) * 75 / 49.9)
            with torch.no_grad():
                said = fast.codec_decode(torch.from_numpy(made["fine_prompt"])[None])[0]
            torch.testing.assert_close(said, row[:samples], rtol=0, atol=1e-6)
        seen.add(len(set(streamer.row_lengths_samples)))
    assert 2 in seen


def test_a_preview_makes_none(fast):
    streamer = AudioStreamer(fast, policy="preview")
    _, made = generate_with_preset(fast, **INPUTS, **SAMPLED, streamer=streamer)
    assert made is None and streamer.presets is None


def test_a_saved_preset_is_a_voice_for_transformers(small_model, processor, tmp_path):
    fast, path = accelerated_copy(small_model), tmp_path / "voice.npz"
    _, made = generate_with_preset(fast, **INPUTS, **SAMPLED)
    save_voice_preset(path, made)
    assert_same_preset(load_voice_preset(path), made)
    inputs = dict(processor("hello dog", voice_preset=str(path), max_length=SMALL.max_input))
    outputs = assert_equal_to_stock(small_model, fast, **inputs, **SAMPLED)
    without = {key: value for key, value in inputs.items() if key != "history_prompt"}
    torch.manual_seed(0)
    assert not torch.equal(BarkModel.generate(small_model, **without, **SAMPLED), outputs["codec"])


def test_a_file_is_replaced_or_left_alone(tmp_path):
    path = tmp_path / "voice.npz"
    save_voice_preset(path, preset(SMALL, 9, 12))
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_voice_preset(path, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["voice.npz"]
    save_voice_preset(path, {**preset(SMALL, 5, 9, dtype=torch.int16), "more": np.zeros(3)})
    assert load_voice_preset(path).keys() == {"semantic_prompt", "coarse_prompt", "fine_prompt"}


GOOD = preset(SMALL, 9, 12)


@pytest.mark.parametrize(
    "path, content, error, message",
    [
        ("voice.npy", GOOD, ValueError, "ends in .npz, got 'voice.npy'"),
        ("voice.npz", None, ValueError, "expected the keys semantic_prompt, .*got NoneType"),
        ("voice.npz", {"fine_prompt": GOOD["fine_prompt"]}, ValueError, "expected the keys .*got fine_prompt"),
        ("voice.npz", {**GOOD, "semantic_prompt": np.zeros(3)}, TypeError, "semantic_prompt.*integers, got float64"),
        (
            "voice.npz",
            {**GOOD, "coarse_prompt": np.zeros(3, int)},
            ValueError,
            r"coarse_prompt.*2 dim.*got shape \[3\]",
        ),
        ("voice.npz", {**GOOD, "fine_prompt": np.zeros((8, 0), int)}, ValueError, r"at least one code, got .*\[8, 0\]"),
    ],
)
def test_what_is_no_preset_is_refused(path, content, error, message):
    with pytest.raises(error, match=message):
        save_voice_preset(path, content)


def test_what_is_no_preset_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_voice_preset(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"expected an .npz archive"):
        load_voice_preset(tmp_path / "text.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_preset_file_is_refused_by_name(tmp_path, save):
    path = tmp_path / "voice.npz"
    save(path, **{key: part.numpy() for key, part in preset(SMALL, 200, 300).items()})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"voice\.npz: expected arrays of numbers, got a damaged file"):
        load_voice_preset(path)
    save(path, semantic_prompt=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"voice\.npz: expected arrays of numbers"):
        load_voice_preset(path)


def test_a_preset_is_made_of_one_row(fast):
    with pytest.raises(ValueError, match="input_ids: expected one row, got 2"):
        generate_with_preset(fast, **texts(SMALL, [3, 4]))
    for name in ("return_output_lengths", "trim"):
        with pytest.raises(ValueError, match=f"{name}: expected no such argument"):
            generate_with_preset(fast, **INPUTS, **{name: True})
    with pytest.raises(TypeError, match=r"expected a transformers.BarkModel, got Linear"):
        generate_with_preset(torch.nn.Linear(1, 1), **INPUTS)
