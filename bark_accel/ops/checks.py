"""Input checks of the plain-torch ops; the compiled ops check the same in csrc/checks.h and csrc/cpu/.

Those of samplers are in `sample_checks.py`, those of products and attention of whole blocks in `block_checks.py`.

Checks of values (ids, codes, lengths) run on CPU tensors only: on a GPU they would synchronise at every token, and fail
during graph capture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .int8_entries import entry_size
from .interface import StepCache, StepWeights

# Weights along a row of an int8 matrix that share one scale.
INT8_GROUP = 64
LSTM_UNITS = 16


NEG_INF = float("-inf")
MAX_HEAD_SIZE = 256  # of int16_attention


def on_host(tensor: Tensor) -> bool:
    """Tell whether the tensor's data can be read without synchronising with a device."""
    return tensor.device.type == "cpu"


def is_capturing(tensor: Tensor) -> bool:
    """Tell whether operations on the tensor are captured in a CUDA graph instead of computed."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def require(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{op}: {message}")


def require_one_device(op: str, *tensors: Tensor | None) -> None:
    devices = sorted({str(t.device) for t in tensors if t is not None})
    require(len(devices) == 1, op, f"expected all tensors on one device, got {' and '.join(devices)}")


def require_float(op: str, name: str, tensor: Tensor) -> None:
    accepted = (torch.float32, torch.float16, torch.bfloat16)
    require(
        tensor.dtype in accepted,
        op,
        f"expected {name} of dtype float32, float16 or bfloat16, got {tensor.dtype}",
    )


def require_no_grad(op: str, *tensors: Tensor) -> None:
    require(
        not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)),
        op,
        "expected torch.no_grad() or inputs that need no gradient, got requires_grad=True",
    )


def check_decode_inputs(ids: Tensor, weights: StepWeights, cache: StepCache) -> None:
    token_table, positions, layer_weights, eps, head, head_scales, num_heads = weights
    key_cache, value_cache, length = cache
    op = "decode_step"
    tensors = (token_table, positions, *layer_weights, head, head_scales, key_cache, value_cache)
    require_one_device(op, ids, *tensors, length)
    require_no_grad(op, *(t for t in tensors if t is not None))
    require(positions.dim() == 2, op, f"expected positions of shape [P, C], got {list(positions.shape)}")
    require_float(op, "positions", positions)
    width = positions.shape[1]
    require(token_table.dim() == 2, op, f"expected token_table of shape [V, C], got {list(token_table.shape)}")
    require_shape(op, "token_table", token_table, (len(token_table), width), positions.dtype)
    _check_ids(op, ids)
    heads_fit = num_heads > 0 and width > 0 and width % num_heads == 0
    require(heads_fit, op, f"expected num_heads to divide the width {width}, got {num_heads}")
    _check_caches(op, key_cache, value_cache, (len(ids), num_heads, width // num_heads))
    _check_lengths(op, length, len(ids), ids.shape[1], min(key_cache.shape[3], len(positions)))
    _check_id_values(op, ids, length, len(token_table))
    layers = len(key_cache)
    wanted = f"expected 16 weights for each of {layers} layers and 2 more, got {len(layer_weights)}"
    require(len(layer_weights) == 16 * layers + 2 and layers > 0, op, wanted)
    require(len(eps) == 2 * layers + 1, op, f"expected {2 * layers + 1} eps, got {len(eps)}")
    mlp_in = layer_weights[10]
    given = "None" if mlp_in is None else list(mlp_in.shape)
    require(mlp_in is not None and mlp_in.dim() == 2, op, f"expected mlp_in of shape [N, {width}], got {given}")
    assert mlp_in is not None
    for i in range(layers):
        _check_layer(op, layer_weights[16 * i : 16 * i + 16], width, len(mlp_in))
    _check_norm(op, layer_weights[-2:], width)
    require(head.dim() == 2, op, f"expected head of shape [N, C], got {list(head.shape)}")
    _check_product(op, (head, None, head_scales), (len(head), width))


def _check_ids(op: str, ids: Tensor) -> None:
    require(ids.dim() == 2, op, f"expected ids of shape [B, T], got {list(ids.shape)}")
    require(ids.dtype == torch.int64, op, f"expected ids of dtype int64, got {ids.dtype}")


def _check_id_values(op: str, ids: Tensor, length: Tensor, vocabulary: int) -> None:
    if not on_host(ids):
        return
    outside = ids[((ids < 0) | (ids >= vocabulary)) & (length >= 0)[:, None]].tolist()
    require(not outside, op, f"expected ids in [0, {vocabulary}), got {outside[:1]}")


def _check_caches(op: str, key_cache: Tensor, value_cache: Tensor, sizes: tuple[int, int, int]) -> None:
    shape = f"[layers, B, H, capacity, D], got {list(key_cache.shape)}"
    require(key_cache.dim() == 5, op, f"expected key_cache of shape {shape}")
    in_bytes = key_cache.dtype == torch.int8 and on_host(key_cache)
    if not in_bytes:
        require_float(op, "key_cache (or on the CPU int8)", key_cache)
    (batch, heads, head_size), (layers, capacity) = sizes, (key_cache.shape[0], key_cache.shape[3])
    size = entry_size(head_size, key_cache.dtype)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        require_shape(op, name, cache, (layers, batch, heads, capacity, size), key_cache.dtype)
        shared = any(stride == 0 and size > 1 for stride, size in zip(cache.stride(), cache.shape, strict=True))
        strides = f"expected {name} without elements that share memory, got strides {list(cache.stride())}"
        require(not shared, op, strides)
    _require_apart(op, key_cache, value_cache)


def _require_apart(op: str, key_cache: Tensor, value_cache: Tensor) -> None:
    same = key_cache.numel() > 0 and key_cache.data_ptr() == value_cache.data_ptr()
    require(not same, op, "expected key_cache and value_cache in separate memory, got overlapping ones")


def _check_layer(op: str, layer: Sequence[Tensor | None], width: int, inner: int) -> None:
    _check_norm(op, layer[0:2], width)
    _check_product(op, layer[2:5], (3 * width, width))
    _check_product(op, layer[5:8], (width, width))
    _check_norm(op, layer[8:10], width)
    _check_product(op, layer[10:13], (inner, width))
    _check_product(op, layer[13:16], (width, inner))


def _check_norm(op: str, norm: Sequence[Tensor | None], width: int) -> None:
    weight, bias = norm
    require(weight is not None, op, "expected a LayerNorm weight, got None")
    for name, vector in (("LayerNorm weight", weight), ("LayerNorm bias", bias)):
        if vector is not None:
            require_shape(op, name, vector, (width,), torch.float32)


def _check_product(op: str, product: Sequence[Tensor | None], shape: tuple[int, int]) -> None:
    """(weight, bias, scales) of one matrix."""
    weight, bias, scales = product
    require(weight is not None, op, f"expected a weight of shape {list(shape)}, got None")
    assert weight is not None
    if weight.dtype == torch.int8:
        require(scales is not None, op, "expected scales with an int8 weight, got None")
        assert scales is not None
        require_shape(op, "scales", scales, (shape[0], -(-shape[1] // INT8_GROUP)), torch.float32)
    else:
        require_float(op, "a weight (or int8 with scales)", weight)
        require(scales is None, op, f"expected scales with int8 weights only, got them with {weight.dtype}")
    require_shape(op, "a weight", weight, shape, weight.dtype)
    if bias is not None:
        require_shape(op, "a bias", bias, (shape[0],), torch.float32)


def _check_lengths(op: str, length: Tensor, batch: int, tokens: int, capacity: int) -> None:
    wanted = f"expected length as an int64 tensor of shape [{batch}] (one a row)"
    given = f"got {length.dtype} of shape {list(length.shape)}"
    require(length.dtype == torch.int64 and tuple(length.shape) == (batch,), op, f"{wanted}, {given}")
    if not on_host(length):
        return
    for row, start in enumerate(length.tolist()):
        require(start >= -1, op, f"expected length >= 0, or -1 for an idle row, got {start} in row {row}")
        too_long = f"expected length + tokens <= capacity {capacity}, got {start} + {tokens} in row {row}"
        require(start + tokens <= capacity, op, too_long)


def check_embedding_inputs(codes: Tensor, tables: Sequence[Tensor], positions: Tensor) -> None:
    op = "codebook_embedding_sum"
    require_one_device(op, codes, *tables, positions)
    require(codes.dim() == 3, op, f"expected codes of shape [B, T, K], got {list(codes.shape)}")
    require(
        codes.dtype in (torch.int32, torch.int64),
        op,
        f"expected codes of dtype int32 or int64, got {codes.dtype}",
    )
    require(
        0 < len(tables) <= codes.shape[2],
        op,
        f"expected 1 to {codes.shape[2]} tables (one per codebook), got {len(tables)}",
    )
    first = tables[0]
    require_float(op, "tables", first)
    for table in tables:
        require(table.dim() == 2, op, f"expected every table of shape [V, C], got {list(table.shape)}")
        require(
            table.shape == first.shape and table.dtype == first.dtype,
            op,
            f"expected every table of shape {list(first.shape)} and dtype {first.dtype}, "
            f"got {list(table.shape)} and {table.dtype}",
        )
    require(
        positions.dim() == 2 and positions.shape[1] == first.shape[1] and positions.dtype == first.dtype,
        op,
        f"expected positions of shape [P, {first.shape[1]}] and dtype {first.dtype}, "
        f"got {list(positions.shape)} and {positions.dtype}",
    )
    require(
        positions.shape[0] >= codes.shape[1],
        op,
        f"expected at least {codes.shape[1]} positions (one per frame), got {positions.shape[0]}",
    )
    require_no_grad(op, positions, *tables)
    _check_codes(codes, len(tables), first.shape[0])


def _check_codes(codes: Tensor, count: int, vocabulary: int) -> None:
    if not on_host(codes):
        return
    used = codes[:, :, :count]
    bad = (used < 0) | (used >= vocabulary)
    if bad.any():
        row, frame, codebook = bad.nonzero()[0].tolist()
        require(
            False,
            "codebook_embedding_sum",
            f"expected codes in [0, {vocabulary}), got {int(used[row, frame, codebook])} "
            f"in codebook {codebook}, frame {frame}, batch row {row}",
        )


def check_attention_inputs(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, length: Tensor
) -> None:
    op = "static_cache_attention"
    require_one_device(op, query, key, value, key_cache, value_cache, length)
    require(query.dim() == 4, op, f"expected query of shape [B, T, H, D], got {list(query.shape)}")
    require_float(op, "query", query)
    batch, tokens, heads, head_dim = query.shape
    capacity = key_cache.shape[2] if key_cache.dim() == 4 else -1
    cache_shape = (batch, heads, capacity, head_dim)
    for name, tensor, shape in (
        ("key", key, query.shape),
        ("value", value, query.shape),
        ("key_cache", key_cache, cache_shape),
        ("value_cache", value_cache, cache_shape),
    ):
        require(
            tuple(tensor.shape) == tuple(shape) and tensor.dtype == query.dtype,
            op,
            f"expected {name} of shape {list(shape)} and dtype {query.dtype}, "
            f"got {list(tensor.shape)} and {tensor.dtype}",
        )
    require_no_grad(op, query, key, value, key_cache, value_cache)
    _require_apart(op, key_cache, value_cache)
    _check_lengths(op, length, batch, tokens, capacity)


def require_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    require(
        tuple(tensor.shape) == shape and tensor.dtype == dtype,
        op,
        f"expected {name} of shape {list(shape)} and dtype {dtype}, got {list(tensor.shape)} and {tensor.dtype}",
    )
