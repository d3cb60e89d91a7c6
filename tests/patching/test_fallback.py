"""What the loops do not do runs Transformers' own code: same result, a typed reason, or an error when strict."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from support.bark_models import SMALL, build, stage_configs, texts
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.stock_limits import skip_where_stock_fails
from transformers.models.encodec import modeling_encodec as encodec

from bark_accel import AccelerationError, FallbackKind, acceleration_report
from bark_accel.hf.stage_trace import trace_stages

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 12}
GENERATION_CASES = {
    "output of scores": ({"semantic_output_scores": True}, None, None),
    "coarse eos": ({"coarse_eos_token_id": 150}, None, None),
    "coarse pad": ({"coarse_pad_token_id": 5}, "coarse", FallbackKind.TOKEN_LAYOUT),
    "static cache": ({"cache_implementation": "static"}, None, None),
    "processor without a cache": (
        {"coarse_no_repeat_ngram_size": 3, "coarse_use_cache": False},
        None,
        None,
    ),
}


@pytest.mark.parametrize("case", GENERATION_CASES.values(), ids=GENERATION_CASES.keys())
def test_generation_options(small_model, case):
    options, stage, kind = case
    if "cache_implementation" in options:
        skip_where_stock_fails("static cache")
    fast = accelerated_copy(small_model, strict=False)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, **options)
    reasons = acceleration_report(fast).fallbacks
    if kind is None:
        assert reasons == ()
        return
    assert (stage, kind) in {(r.stage, r.kind) for r in reasons}
    strict = accelerated_copy(small_model)
    with pytest.raises(AccelerationError, match=kind.value.split("(")[0].strip()):
        strict.generate(**INPUTS, **SHORT, **options)


@pytest.mark.parametrize("options", [{}, {"output_scores": True, "do_sample": True}])
def test_return_dict_changes_nothing(small_model, options):
    """Bark's stages unpack the tokens, and drop everything else that was asked for."""
    skip_where_stock_fails("return_dict_in_generate")
    fast = accelerated_copy(small_model)
    options = {"return_dict_in_generate": True, **options}
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, **options)
    config = stage_configs(small_model)["semantic_generation_config"]
    tokens = [
        m.semantic.generate(**INPUTS, semantic_generation_config=config, max_new_tokens=5, return_dict_in_generate=True)
        for m in (small_model, fast)
    ]
    assert torch.equal(*tokens)


def test_return_dict_that_stock_cannot_unpack():
    """Stock fails on one from the config, and in old versions on any: with Transformers' own error."""
    stock = build(SMALL, coarse={"return_dict_in_generate": True})
    fast, errors = accelerated_copy(stock, strict=False), []
    for model in (stock, fast):
        with pytest.raises((TypeError, KeyError, AttributeError)) as caught:
            model.generate(**INPUTS, **SHORT)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert [(r.stage, r.kind) for r in acceleration_report(fast).fallbacks] == [("coarse", FallbackKind.EXTRA_OUTPUTS)]


@pytest.mark.parametrize("stage", ["semantic", "coarse"])
def test_without_a_cache(small_model, stage):
    """Some versions of Transformers ignore the text then."""
    fast = accelerated_copy(small_model, strict=False)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, **{f"{stage}_use_cache": False})


def scale_hook(module, args, output):
    return output * 1.5


def add_hook(model):
    model.semantic.layers[0].mlp.in_proj.register_forward_hook(scale_hook)


def train(model):
    model.coarse_acoustics.train()


def override_forward(model):
    layer = model.fine_acoustics.layers[0].mlp
    layer.forward = lambda hidden: hidden * 0.5


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def replace_layer(model):
    old = model.fine_acoustics.layers[0].mlp.in_proj
    new = Doubled(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.fine_acoustics.layers[0].mlp.in_proj = new.eval()


def replace_activation(model):
    model.semantic.layers[1].mlp.gelu = torch.nn.ReLU().eval()


def approximate_activation(model):
    for layer in model.coarse_acoustics.layers:
        layer.mlp.gelu = torch.nn.GELU(approximate="tanh").eval()


def hook_codec(model):
    model.codec_model.decoder.layers[0].register_forward_hook(scale_hook)


def head_with_bias(model):
    old = model.semantic.lm_head
    model.semantic.lm_head = torch.nn.Linear(old.in_features, old.out_features).eval()
    torch.nn.init.normal_(model.semantic.lm_head.bias, std=5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.semantic.lm_head.weight.copy_(old.weight)


def wider_head(model):
    old = model.semantic.lm_head.weight
    model.semantic.lm_head = torch.nn.Linear(old.shape[1], old.shape[0] + 7, bias=False).eval()
    with torch.no_grad():
        model.semantic.lm_head.weight.copy_(torch.cat([old, 3 * old[:7]]))


def fewer_heads(model):
    for layer in model.semantic.layers:
        layer.attn.num_heads, layer.attn.head_dim = 1, 2 * layer.attn.head_dim


def another_layer(model):
    model.fine_acoustics.layers.append(copy.deepcopy(model.fine_acoustics.layers[0]))


def embedding_with_max_norm(model):
    model.coarse_acoustics.position_embeds_layer.max_norm = 0.05


def traced_activation(model):
    """A part of torch.jit has neither the dicts of a module nor a class whose methods can be looked at."""
    model.coarse_acoustics.layers[0].mlp.gelu = torch.jit.trace(torch.nn.ReLU().eval(), torch.randn(1, 3, 4))


def traced_dropout(model):
    model.coarse_acoustics.layers[0].mlp.dropout = torch.jit.trace(
        torch.nn.Threshold(0.0, 3.0).eval(), torch.randn(1, 3, 4)
    )


def norm_without_weight(model):
    width = model.config.semantic_config.hidden_size
    model.semantic.layers[0].layernorm_1 = torch.nn.LayerNorm(width, elementwise_affine=False).eval()
    with torch.no_grad():
        model.semantic.layers[0].attn.att_proj.weight.mul_(2)


def other_elu(model):
    for part in model.codec_model.decoder.modules():
        if isinstance(part, torch.nn.ELU):
            part.alpha = 0.2


class DoubledConv(torch.nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


def other_conv(model):
    holder = model.codec_model.decoder.layers[-1]
    old, new = holder.conv, DoubledConv(holder.conv.in_channels, 1, holder.conv.kernel_size[0]).eval()
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.copy_(old.bias)
    holder.conv = new


def other_quantizer(model):
    quantizer = model.codec_model.quantizer
    quantizer.decode = lambda codes: 0.5 * type(quantizer).decode(quantizer, codes)


MODULE_CASES = [
    (head_with_bias, "semantic", FallbackKind.REPLACED_MODULE),
    (wider_head, "semantic", FallbackKind.REPLACED_MODULE),
    (fewer_heads, "semantic", FallbackKind.REPLACED_MODULE),
    (another_layer, "fine", FallbackKind.REPLACED_MODULE),
    (embedding_with_max_norm, "coarse", FallbackKind.REPLACED_MODULE),
    (norm_without_weight, "semantic", FallbackKind.REPLACED_MODULE),
    (traced_activation, "coarse", FallbackKind.REPLACED_MODULE),
    (traced_dropout, "coarse", FallbackKind.REPLACED_MODULE),
    (other_elu, "codec", FallbackKind.CODEC_ARCHITECTURE),
    (other_conv, "codec", FallbackKind.REPLACED_MODULE),
    (other_quantizer, "codec", FallbackKind.HOOKED_MODULE),
    (add_hook, "semantic", FallbackKind.HOOKED_MODULE),
    (train, "coarse", FallbackKind.TRAINING),
    (override_forward, "fine", FallbackKind.HOOKED_MODULE),
    (replace_layer, "fine", FallbackKind.REPLACED_MODULE),
    (replace_activation, "semantic", FallbackKind.REPLACED_MODULE),
    (approximate_activation, "coarse", FallbackKind.REPLACED_MODULE),
    (hook_codec, "codec", FallbackKind.HOOKED_MODULE),
]


@pytest.mark.parametrize("change, stage, kind", MODULE_CASES)
def test_changed_modules(small_model, change, stage, kind):
    """Reading weights past such a module would change the result silently."""
    if change is another_layer:
        skip_where_stock_fails("another layer")
    stock, fast = copy.deepcopy(small_model), accelerated_copy(small_model, strict=False)
    plain = run(fast, 0, **INPUTS, **SHORT)[1]
    change(stock)
    change(fast)
    assert_equal_to_stock(stock, fast, **INPUTS, **SHORT)
    assert [(r.stage, r.kind) for r in acceleration_report(fast).fallbacks] == [(stage, kind)]
    assert [s.stage for s in acceleration_report(fast).stages if s.blocked_by] == [stage]
    if change not in (train, approximate_activation):
        assert not torch.equal(plain, run(fast, 0, **INPUTS, **SHORT)[1]), "the change was expected to show"


@pytest.mark.parametrize("named", [lambda forward: lambda halved: halved, functools.wraps], ids=["as it is", "wraps"])
def test_a_patched_class(small_model, monkeypatch, named):
    """As kernel packages do: a method of a Transformers class replaced for the whole process."""
    from transformers.models.bark import modeling_bark

    forward = modeling_bark.BarkMLP.forward
    fast = accelerated_copy(small_model, strict=False)
    halved = named(forward)(lambda self, hidden: 0.5 * forward(self, hidden))
    monkeypatch.setattr(modeling_bark.BarkMLP, "forward", halved)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    kinds = {(r.stage, r.kind) for r in acceleration_report(fast).fallbacks}
    assert kinds == {(stage, FallbackKind.REPLACED_MODULE) for stage in ("semantic", "coarse", "fine")}


@pytest.mark.parametrize(
    "kind, name", [(torch.nn.Conv1d, "_conv_forward"), (encodec.EncodecConv1d, "_pad1d")], ids=lambda case: str(case)
)
def test_a_patched_class_of_the_codec(small_model, monkeypatch, kind, name):
    """Below a parametrization, and a static method."""
    fast, real = accelerated_copy(small_model, strict=False), getattr(kind, name)

    def halved(*args, **kwargs):
        return real(*args, **kwargs) / 2

    monkeypatch.setattr(kind, name, staticmethod(halved) if name == "_pad1d" else halved)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    assert [(r.stage, r.kind) for r in acceleration_report(fast).fallbacks] == [("codec", FallbackKind.REPLACED_MODULE)]


@pytest.mark.parametrize("options", [{"coarse_pad_token_id": 5}, {"coarse_num_beams": 2, "coarse_use_cache": False}])
def test_strict_refuses_before_any_work(small_model, options):
    fast = accelerated_copy(small_model)
    with trace_stages(fast) as trace, pytest.raises(AccelerationError, match="coarse"):
        fast.generate(**INPUTS, **SHORT, **options)
    assert trace.seconds == {}


def test_native_ops_and_another_device(small_model):
    """The meta device stands for one without compiled ops."""
    fast = accelerated_copy(small_model, backend="native")
    fast.semantic.to("meta")
    with pytest.raises(AccelerationError, match="backend='native' has no ops for meta"):
        fast.generate(**INPUTS, **SHORT)


def test_a_submodel_restored_elsewhere_is_reported(small_model):
    fast = accelerated_copy(small_model)
    del fast.coarse_acoustics.generate
    with pytest.raises(AccelerationError, match=r"model.coarse_acoustics was replaced or restored"):
        fast.generate(**INPUTS, **SHORT)


def test_hooks_for_all_modules(small_model):
    fast = accelerated_copy(small_model, strict=False)

    def double_gelu(module, args, output):
        return output * 2 if isinstance(module, torch.nn.GELU) else None

    handle = torch.nn.modules.module.register_module_forward_hook(double_gelu)
    try:
        assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    finally:
        handle.remove()
    assert {r.kind for r in acceleration_report(fast).fallbacks} == {FallbackKind.HOOKED_MODULE}


def test_recovers_when_the_reason_goes(small_model):
    fast = accelerated_copy(small_model, strict=True)
    fast.semantic.train()
    with pytest.raises(AccelerationError, match="training"):
        fast.generate(**INPUTS, **SHORT)
    fast.semantic.eval()
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)


def test_a_replaced_submodel_is_reported(small_model):
    fast = accelerated_copy(small_model, strict=False)
    fast.semantic = copy.deepcopy(small_model.semantic)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    assert acceleration_report(fast).fallbacks[0].kind is FallbackKind.REPLACED_MODULE


def test_autocast(small_model):
    fast = accelerated_copy(small_model, strict=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    assert {r.kind for r in acceleration_report(fast).fallbacks} == {FallbackKind.AUTOCAST}


def test_gradients_through_the_codec(small_model):
    fast = accelerated_copy(small_model, strict=False)
    codes = torch.randint(0, SMALL.codebook_size, (1, 8, 12))
    fast.codec_decode(codes).sum().backward()
    assert fast.codec_model.decoder.layers[0].conv.bias.grad is not None
    assert [r.kind for r in acceleration_report(fast).fallbacks] == [FallbackKind.GRADIENTS]


def test_a_reason_is_logged_once(small_model, caplog):
    fast = accelerated_copy(small_model, strict=False)
    with caplog.at_level(logging.WARNING, logger="bark_accel"):
        for _ in range(3):
            fast.generate(**INPUTS, **SHORT, coarse_pad_token_id=5)
    assert len([r for r in caplog.records if r.name == "bark_accel"]) == 1


def test_a_token_that_the_prompt_masks():
    """A pad token without EOS makes Transformers mask the coarse prompt; the loop has no such mask."""
    stock = build(SMALL, coarse={"pad_token_id": SMALL.semantic_vocab + 2 * SMALL.codebook_size})
    fast = accelerated_copy(stock, strict=False)
    assert_equal_to_stock(stock, fast, **INPUTS, **SHORT)
    assert [(r.stage, r.kind) for r in acceleration_report(fast).fallbacks] == [("coarse", FallbackKind.TOKEN_LAYOUT)]
