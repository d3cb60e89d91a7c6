"""Voice presets made of what was generated: in memory, in files, read back by Transformers."""

from __future__ import annotations

import copy
import errno
import os
import random
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, preset, submodels, texts
from support.parity import accelerated_copy, assert_equal_to_stock
from support.stock_limits import skip_where_stock_fails
from transformers import BarkModel

from bark_accel import AudioStreamer, generate_with_preset, load_voice_preset, save_voice_preset, stream
from bark_accel.hf.presets import generate_with_presets
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.voices import npz

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
    with trace_stages(model) as trace:
        torch.manual_seed(3)
        expected = model.generate(**INPUTS, **SAMPLED)
    before = [dict(vars(owner)) for owner in (model, *submodels(model))]
    torch.manual_seed(3)
    audio, made = generate_with_preset(model, **INPUTS, **SAMPLED)
    assert [dict(vars(owner)) for owner in (model, *submodels(model))] == before
    torch.testing.assert_close(audio, expected, rtol=0, atol=0)
    semantic, fine = trace.outputs["semantic"][0].numpy(), trace.outputs["fine"][0].numpy()
    coarse = trace.outputs["coarse"][0].reshape(-1, 2).T.numpy() - SMALL.semantic_vocab
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
    """The trace touches a view, never the model."""
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
    options = {**SAMPLED, "no_repeat_ngram_size": 3} if fallback else SAMPLED
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
        (
            "voice.npz",
            {**GOOD, "semantic_prompt": np.full(3, 0.5)},
            TypeError,
            "semantic_prompt.*integers, got float64",
        ),
        ("voice.npz", {**GOOD, "semantic_prompt": np.full(3, np.nan)}, TypeError, "semantic_prompt.*got float64"),
        ("voice.npz", {**GOOD, "semantic_prompt": np.full(3, 1e300)}, TypeError, "semantic_prompt.*got float64"),
        ("voice.npz", {**GOOD, "semantic_prompt": np.array([1, None])}, TypeError, "semantic_prompt.*got object"),
        ("voice.npz", {**GOOD, "semantic_prompt": ["1", "2"]}, TypeError, "semantic_prompt.*integers, got <U1"),
        ("voice.npz", {**GOOD, "coarse_prompt": [[1], [2, 3]]}, TypeError, "coarse_prompt.*of integers, got list"),
        ("no/folder/voice.npz", GOOD, ValueError, "path: expected a file in an existing folder, got 'no/folder/voice"),
        (
            "voice.npz",
            {**GOOD, "coarse_prompt": np.zeros(3, int)},
            ValueError,
            r"coarse_prompt.*expected shape \[codebooks, T\], got \[3\]",
        ),
        ("voice.npz", {key: codes[..., :0] for key, codes in GOOD.items()}, ValueError, "at least one code, got none"),
    ],
)
def test_what_is_no_preset_is_refused(path, content, error, message):
    with pytest.raises(error, match=message):
        save_voice_preset(path, content)


def test_what_is_no_preset_file_is_refused(tmp_path):
    for name in ("none.npz", f"{'long' * 99}.npz", "zero\0.npz"):
        with pytest.raises(ValueError, match="there is no file"):
            load_voice_preset(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected an .npz file, got the folder"):
        load_voice_preset(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"expected an .npz archive"):
        load_voice_preset(tmp_path / "text.npz")


def test_a_preset_file_that_cannot_be_read_is_no_other_kind_of_file(tmp_path, monkeypatch):
    path = tmp_path / "voice.npz"
    save_voice_preset(path, GOOD)
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(Path, "open", mock.Mock(side_effect=refused))
    with pytest.raises(ValueError, match=r"cannot read .*voice.npz: Permission denied"):
        load_voice_preset(path)


def test_what_cannot_be_written_is_named_not_the_draft(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"path: expected a file in an existing folder, got '.*/folder.npz'"):
        save_voice_preset(tmp_path / "folder.npz", GOOD)
    with pytest.raises(IsADirectoryError) as caught:
        npz.write_atomically(tmp_path / "folder.npz", b"")
    assert caught.value.filename == str(tmp_path / "folder.npz")
    with pytest.raises(FileNotFoundError) as caught:
        npz.write_atomically(tmp_path / "none" / "x", b"")
    assert caught.value.filename == str(tmp_path / "none" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def saved(path, **changes):
    """Returns the arrays of a voice, of which some were changed before they were saved."""
    parts = {key: codes.numpy() for key, codes in GOOD.items()}
    np.savez_compressed(path, **{**parts, **changes})
    return parts


def test_what_is_usable_of_a_voice_file_is_read(tmp_path, fast):
    path = tmp_path / "voice.npz"
    parts = saved(path, license=np.array("CC0"), notes=np.array([{}], dtype=object), mel=np.zeros((80, 9)))
    assert_same_preset(load_voice_preset(path), parts)
    saved(path, **{key: codes.astype(np.float32) for key, codes in parts.items()})
    assert_same_preset(load_voice_preset(path), parts)
    saved(path, **{key: np.asfortranarray(codes.astype(">i2")) for key, codes in parts.items()})
    assert all(np.array_equal(codes, parts[key]) for key, codes in load_voice_preset(path).items())


@pytest.mark.parametrize("empty", GOOD)
def test_a_voice_file_may_lack_a_part_as_for_transformers(tmp_path, small_model, fast, processor, empty):
    path = tmp_path / "voice.npz"
    saved(path, **{empty: GOOD[empty].numpy()[..., :0]})
    inputs = processor("hello dog", voice_preset=str(path), max_length=SMALL.max_input)
    torch.manual_seed(0)
    expected = small_model.generate(**inputs, **SAMPLED)
    torch.manual_seed(0)
    audio = fast.generate(**{**inputs, "history_prompt": load_voice_preset(path)}, **SAMPLED)
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-6)


def claimed(path, header: bytes, content: bytes = b"") -> None:
    """A voice file whose semantic prompt claims to be another one."""
    saved(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["semantic_prompt.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)


@pytest.mark.parametrize(
    "header, content, message",
    [
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (100000000,)}", b"", r"at most 16777216 bytes, got int64"),
        ("{'descr': '<U9999999', 'fortran_order': False, 'shape': (3,)}", b"", "expected numbers, got <U9999999"),
        (
            "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
            b"",
            "semantic_prompt: expected numbers, got object",
        ),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}", bytes(8), "expected at most 16777216 bytes"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}", bytes(8), "expected 16 bytes, got fewer or more"),
        ("{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}", bytes(24), "expected 16 bytes, got fewer or more"),
        ("{'descr': (", b"", "damaged file"),
        ("[1]", b"", "damaged file"),
    ],
)
def test_sizes_are_looked_at_before_a_voice_is_unpacked(tmp_path, header, content, message):
    path = tmp_path / "voice.npz"
    claimed(path, header.encode() + b"\n", content)
    with pytest.raises(ValueError, match=rf"voice\.npz: expected arrays of numbers, .*{message}"):
        load_voice_preset(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_is_refused_as_such_or_does_no_harm(tmp_path, save):
    path, rng = tmp_path / "voice.npz", random.Random(0)
    save(path, **{key: codes.numpy() for key, codes in GOOD.items()})
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        with suppress(ValueError):
            assert_same_preset(load_voice_preset(path), {key: codes.numpy() for key, codes in GOOD.items()})


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
