"""Errors and warnings that say what to write instead, and where: users act on nothing else."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from support.bark_models import SMALL, build, layout_of, preset, stage_configs, texts
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.stock_limits import skip_where_stock_fails
from torch import nn
from transformers import AutoProcessor, BarkModel, pipeline

from bark_accel import AudioStreamer, accelerate_bark, long_form, restore_bark, small_bark_path
from bark_accel.bench.models import WordProcessor

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 9}


def classes_of(library: str):
    """A Linear and a parameter of another library, by their names."""
    linear = type("Linear", (nn.Linear,), {"__module__": library})
    parameter = type("Weight", (nn.Parameter,), {"__module__": library})
    return linear, parameter


@pytest.mark.parametrize(
    "library, way_out",
    [
        ("peft.tuners.lora.layer", r"; merge LoRA layers first: merge_and_unload\(\)"),
        ("torch.ao.nn.quantized.dynamic.modules.linear", "; load the model unquantised"),
        ("bitsandbytes.nn.modules", "; load the model unquantised"),
        ("torchao.dtypes", "; load the model unquantised"),
        ("optimum.quanto.nn.qlinear", "; load the model unquantised"),
        ("mine", "$"),
    ],
)
@pytest.mark.parametrize("kind", ["layer", "parameter"])
def test_layers_of_other_libraries(small_model, library, way_out, kind):
    """Which one, and what to do."""
    model = copy.deepcopy(small_model)
    linear, parameter = classes_of(library)
    mlp = model.coarse_acoustics.layers[1].mlp
    if kind == "layer":
        mlp.in_proj = linear(*reversed(mlp.in_proj.weight.shape), bias=False).eval()
        message = rf"layers\.1\.mlp\.in_proj: expected torch\.nn\.modules\.linear\.Linear, got {library}\.Linear"
    else:
        mlp.in_proj.weight = parameter(mlp.in_proj.weight.detach())
        message = rf"layers\.1\.mlp\.in_proj\.weight: expected torch\.nn\.parameter\.Parameter, got {library}\.Weight"
    with pytest.raises(ValueError, match=f"coarse: .*{message}{way_out}"):
        accelerate_bark(model)


def test_layers_with_a_base_layer(small_model):
    """As Transformers' own adapters wrap them."""
    model = copy.deepcopy(small_model)
    linear, _ = classes_of("mine")
    mlp = model.fine_acoustics.layers[0].mlp
    mlp.out_proj, base = linear(128, 32, bias=False).eval(), mlp.out_proj
    mlp.out_proj.base_layer = base
    with pytest.raises(ValueError, match=r"fine: .*layers\.0\.mlp\.out_proj: .*; merge LoRA layers first"):
        accelerate_bark(model)


def test_a_layer_of_the_codec(small_model):
    model = copy.deepcopy(small_model)
    linear, _ = classes_of("mine")
    model.codec_model.decoder.layers[1].lstm = linear(3, 3).eval()
    with pytest.raises(ValueError, match=r"codec: .*decoder\.layers\.1\.lstm: expected torch.*LSTM, got mine\.Linear"):
        accelerate_bark(model)


def test_a_sub_model_of_another_library(small_model):
    model = copy.deepcopy(small_model)
    model.semantic.__class__ = type("PeftModel", (type(model.semantic),), {"__module__": "peft.peft_model"})
    message = r"model\.semantic: expected a BarkSemanticModel, got a peft\.peft_model\.PeftModel; merge LoRA"
    with pytest.raises(ValueError, match=message):
        accelerate_bark(model)


class Wrapper:
    def __init__(self, **attributes):
        vars(self).update(attributes)


WRAPPERS = {
    "DataParallel": (nn.DataParallel, r"DataParallel; pass its \.module$"),
    "torch.compile": (torch.compile, r"OptimizedModule; pass its \._orig_mod$"),
    "a pipeline": (lambda model: Wrapper(model=model), r"Wrapper; pass its \.model$"),
    "PEFT": (
        lambda model: Wrapper(base_model=Wrapper(model=model)),
        r"Wrapper; pass its \.base_model\.model; merge LoRA layers first: merge_and_unload\(\)$",
    ),
    "nothing": (lambda model: Wrapper(model=3), "Wrapper$"),
}


@pytest.mark.parametrize("wrap, message", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("function", [accelerate_bark, restore_bark])
def test_wrapped_models(small_model, wrap, message, function):
    with pytest.raises(TypeError, match=f"expected a transformers.BarkModel, got .*{message}"):
        function(wrap(small_model))


def test_a_voice_by_name(small_model):
    fast = accelerated_copy(small_model)
    message = r"got str 'v2/en'; .*processor\(text, voice_preset='v2/en'\), .*preprocess_params={'voice_preset'"
    with pytest.raises(TypeError, match=message):
        fast.generate(**INPUTS, history_prompt="v2/en")


def test_a_voice_by_name_in_a_pipeline(speaking_model):
    """The way that the error names."""
    skip_where_stock_fails("text-to-speech pipeline")
    skip_where_stock_fails("a voice in a pipeline")
    speech = []
    processor = AutoProcessor.from_pretrained(small_bark_path())
    fast = accelerated_copy(speaking_model)
    # Some versions' pipelines leave dicts in the model's config.
    max_length = layout_of(speaking_model).max_input
    speaker = pipeline("text-to-speech", model=fast, tokenizer=processor.tokenizer, processor=processor)
    with pytest.raises(TypeError, match=r"preprocess_params={'voice_preset': 'slt'}"):
        speaker("one two", forward_params={"history_prompt": "slt", **SHORT})
    for options in (
        {"preprocess_params": {"voice_preset": "slt", "max_length": max_length}},
        {"preprocess_params": {"max_length": max_length}},
    ):
        torch.manual_seed(0)
        said = speaker("one two", **options, forward_params={**SHORT, "do_sample": True})
        speech.append(torch.as_tensor(said["audio"]))
    assert speech[0].shape != speech[1].shape or not torch.equal(*speech)
    torch.manual_seed(0)
    inputs = processor("one two", voice_preset="slt", max_length=max_length)
    expected = fast.generate(**inputs, **SHORT, do_sample=True)
    assert torch.equal(speech[0].flatten(), expected.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage", ["semantic", "coarse", "fine"])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_scores_that_are_not_numbers(dtype, stage, sampled, streamed):
    model = build(SMALL, dtype=dtype)
    part = {"semantic": model.semantic, "coarse": model.coarse_acoustics, "fine": model.fine_acoustics}[stage]
    head = part.lm_heads[1] if stage == "fine" else part.lm_head
    with torch.no_grad():
        # Of an id that each of the three stages may draw.
        head.weight[3 + (SMALL.semantic_vocab if stage == "coarse" else 0)] = float("nan")
    fast = accelerated_copy(model)
    options = {"do_sample": True, "fine_temperature": 0.7} if sampled else {}
    if streamed:
        options["streamer"] = AudioStreamer(fast, policy="exact")
    with pytest.raises(ValueError, match=rf"^{stage} stage of the Bark model: fused_.* without NaN") as caught:
        fast.generate(**INPUTS, **SHORT, **options)
    assert "its weights hold NaN or infinity" in str(caught.value)
    assert ("float16 has overflowed: try bfloat16 or float32" in str(caught.value)) == (dtype == torch.float16)


# Speech that is cut.

CUT = r"Bark speaks 1\.8 s at once, .*bark_accel\.long_form says texts of any length"


@pytest.fixture(scope="module")
def endless():
    """Never says the end token, of 90 tokens at most."""
    model = build(SMALL)
    with torch.no_grad():
        model.semantic.lm_head.weight[SMALL.semantic_vocab] = 0
    return model


def cut_warnings(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if "long_form" in str(w.message)]


def ways_to_generate(fast):
    config = {"semantic_generation_config": stage_configs(fast)["semantic_generation_config"]}
    return {
        "generate": lambda: fast.generate(**INPUTS),
        "with beams": lambda: fast.generate(**INPUTS, semantic_no_repeat_ngram_size=3),
        "streamed": lambda: fast.generate(**INPUTS, streamer=AudioStreamer(fast)),
        "interleaved": lambda: fast.generate(**INPUTS, streamer=AudioStreamer(fast, interleave=True)),
        "streamed from stock's loop": lambda: fast.generate(
            **INPUTS, semantic_no_repeat_ngram_size=3, streamer=AudioStreamer(fast)
        ),
        "one chunk": lambda: fast.generate(**INPUTS, semantic_num_beams=2, streamer=AudioStreamer(fast)),
        "the stage alone": lambda: fast.semantic.generate(**INPUTS, **config),
    }


@pytest.mark.parametrize("way", list(ways_to_generate(build(SMALL))))
def test_speech_that_is_cut(endless, way):
    """Said once, at the caller's line."""
    if way == "one chunk":
        skip_where_stock_fails("beams")
    fast = accelerated_copy(endless, strict=False)
    (warning,) = cut_warnings(ways_to_generate(fast)[way])
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match=CUT):
        warnings.warn_explicit(warning.message, None, __file__, 1)
    assert cut_warnings(ways_to_generate(fast)[way]) == []


def test_speech_that_is_not_cut(endless):
    fast = accelerated_copy(endless)
    assert cut_warnings(lambda: fast.generate(**INPUTS, semantic_max_new_tokens=SMALL.max_new_tokens)) == []
    assert cut_warnings(lambda: fast.generate(**INPUTS, **SHORT, streamer=AudioStreamer(fast))) == []
    ending = accelerated_copy(build(SMALL))
    assert cut_warnings(lambda: ending.generate(**INPUTS, do_sample=True, min_eos_p=0.01)) == []


def test_one_row_of_a_batch_that_is_cut():
    """The other has ended by itself."""
    fast = accelerated_copy(build(SMALL))
    for seed in range(30):
        tokens = run(fast, seed, **INPUTS, do_sample=True)[0]["semantic"]
        ended = (tokens[:, -1] == SMALL.semantic_vocab).tolist()
        if tokens.shape[1] == SMALL.max_new_tokens and sum(ended) == 1:
            break
    else:
        raise AssertionError("expected a seed with which one of two rows ends")
    again = accelerated_copy(build(SMALL))
    assert len(cut_warnings(lambda: run(again, seed, **INPUTS, do_sample=True))) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_long_form_has_a_warning_of_its_own(endless, stream):
    pytest.importorskip("sentencex")
    fast = accelerated_copy(endless)
    speech = long_form(fast, WordProcessor(fast), "One two.", stream=stream)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(speech)
    (warning,) = [w for w in caught if issubclass(w.category, UserWarning)]
    assert "chunk 0 is as long as Bark can speak at once" in str(warning.message)
    assert warning.filename == __file__


WARNED = {
    "a text that is cut": ({}, {k: torch.cat([v, v], dim=1) for k, v in texts(SMALL, [16]).items()}),
    "min_eos_p": ({"semantic": {"min_eos_p": 0.05}}, INPUTS),
    "greedy": ({"fine": {"temperature": 0.7}}, {**INPUTS, "do_sample": False}),
    "temperature": ({}, {**INPUTS, "fine_temperature": 1.0}),
}


@pytest.mark.parametrize("settings, arguments", WARNED.values(), ids=WARNED.keys())
@pytest.mark.parametrize("streamed", [False, True])
def test_warnings_point_at_the_callers_line(settings, arguments, streamed):
    fast = accelerated_copy(build(SMALL, **settings))
    options = {"streamer": AudioStreamer(fast)} if streamed else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast.generate(**arguments, **SHORT, **options)
    (warning,) = [w for w in caught if issubclass(w.category, UserWarning)]
    assert warning.filename == __file__


# What others put in place of Bark's own methods.


def test_a_replaced_generate_that_takes_keywords_alone(small_model, monkeypatch):
    """Called by position before, as the class's own may be."""
    generate, calls = BarkModel.generate, []

    def by_keywords(self, **kwargs):
        calls.append(sorted(kwargs))
        return generate(self, **kwargs)

    fast = accelerated_copy(small_model, strict=False)
    monkeypatch.setattr(BarkModel, "generate", by_keywords)
    voice = preset(SMALL, 20, 30)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, history_prompt=voice, return_output_lengths=True)
    fast.generate(**INPUTS, **SHORT)
    fast.generate(**INPUTS, **SHORT, semantic_num_return_sequences=1, streamer=AudioStreamer(fast))
    assert len(calls) >= 3 and all("history_prompt" in call for call in calls[1:])


@pytest.mark.parametrize("name, first", [("semantic", "input_ids"), ("coarse_acoustics", "semantic_output")])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_replaced_stage_that_takes_keywords_after_its_tokens(small_model, monkeypatch, name, first, streamed):
    """As stock's `BarkModel.generate` calls it."""
    kind, calls = type(getattr(small_model, name)), []
    generate = kind.generate

    def by_keywords(self, tokens, **kwargs):
        calls.append(name)
        return generate(self, **{first: tokens}, **kwargs)

    fast = accelerated_copy(small_model, strict=False)
    monkeypatch.setattr(kind, "generate", by_keywords)
    options = {**INPUTS, **SHORT, "history_prompt": preset(SMALL, 20, 30)}
    if streamed:
        fast.generate(**options, streamer=AudioStreamer(fast))
    else:
        assert_equal_to_stock(small_model, fast, **options)
    assert calls == [name] * (1 if streamed else 2)


def test_the_fine_stage_replaced_likewise(small_model, monkeypatch):
    kind, calls = type(small_model.fine_acoustics), []
    generate = kind.generate

    def by_keywords(self, tokens, **kwargs):
        calls.append(kwargs)
        return generate(self, tokens, **kwargs)

    fast = accelerated_copy(small_model, strict=False)
    monkeypatch.setattr(kind, "generate", by_keywords)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, history_prompt=preset(SMALL, 20, 30))
    assert len(calls) == 2


def test_the_codec_of_one_call_stays_its_own(small_model):
    """Where another thread replaces the model's codec meanwhile."""
    fast = accelerated_copy(small_model)
    old, hook = fast.codec_model, fast.generate.__self__
    first = hook.codec_patch()
    fast.codec_model = copy.deepcopy(old)
    assert hook.codec_patch().module is fast.codec_model
    assert first.module is old
