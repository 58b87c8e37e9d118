"""What compressed-tensors' own compressors store is read as its own decompressors read it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from compressed_tensors.quantization.utils import (  # noqa: E402
    calculate_qparams,
    generate_gparam,
)

from quantdraft.checkpoints.dense_view import PARTS  # noqa: E402
from quantdraft.checkpoints.layouts import stored_tensors  # noqa: E402
from quantdraft.checkpoints.stored_formats import stored_format  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import dequantize, unpack  # noqa: E402
from quantdraft.checkpoints.weights import TensorInfo  # noqa: E402

ROWS, COLUMNS = 48, 96
Weights = dict[str, Any]


def integers(num_bits: int, **fields: Any) -> Weights:
    return {"num_bits": num_bits, "type": "int"} | fields


def floats(num_bits: int, **fields: Any) -> Weights:
    return {"num_bits": num_bits, "type": "float"} | fields


GROUP: Weights = {"strategy": "group", "group_size": 32}
CHANNEL: Weights = {"strategy": "channel"}
ASYMMETRIC: Weights = {"symmetric": False}
STORED: dict[str, tuple[str, Weights]] = {
    **{f"int{b}": ("pack-quantized", integers(b, **GROUP)) for b in range(2, 9)},
    **{f"int{b}-zeros": ("pack-quantized", integers(b, **GROUP, **ASYMMETRIC)) for b in (3, 4, 8)},
    "int4-channel": ("pack-quantized", integers(4, **CHANNEL)),
    "int4-channel-zeros": ("pack-quantized", integers(4, **CHANNEL, **ASYMMETRIC)),
    "int8-channel": ("int-quantized", integers(8, **CHANNEL)),
    "int8-channel-zeros": ("int-quantized", integers(8, **CHANNEL, **ASYMMETRIC)),
    "int8-group-zeros": ("int-quantized", integers(8, **GROUP, **ASYMMETRIC)),
    "int8-tensor": ("int-quantized", integers(8, strategy="tensor")),
    "fp8-channel": ("float-quantized", floats(8, **CHANNEL)),
    "fp8-tensor": ("float-quantized", floats(8, strategy="tensor")),
    "fp8-block": ("float-quantized", floats(8, strategy="block", block_structure=[32, 64])),
    "fp8-naive": ("naive-quantized", floats(8, **CHANNEL)),
    "nvfp4": ("nvfp4-pack-quantized", floats(4, strategy="tensor_group", group_size=16)),
    "mxfp4": ("mxfp4-pack-quantized", floats(4, scale_dtype="torch.uint8", **GROUP)),
    "mxfp8": ("mxfp8-quantized", floats(8, scale_dtype="torch.uint8", **GROUP)),
}


def compressed(layout: str, weights: Weights) -> tuple[Any, Any]:
    """A module's tensors as the library stores them, and what it makes of them: float32."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) + 0.2
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    low, high = extremes(weight, weights)
    state = {"weight": weight}
    if weights["strategy"] == "tensor_group":
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    scale, zeros = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
    state["weight_scale"], state["weight_zero_point"] = scale, zeros
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"].float()


def extremes(weight: Any, weights: Weights) -> tuple[Any, Any]:
    """The least and the greatest weight under every scale."""
    if weights["strategy"] == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if weights["strategy"] == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if weights["strategy"] != "block":
        groups = weight.reshape(ROWS, -1, weights["group_size"])
        return groups.amin(-1), groups.amax(-1)
    height, width = weights["block_structure"]
    padded = torch.nn.functional.pad(weight, (0, -COLUMNS % width, 0, -ROWS % height))
    blocks = padded.unfold(0, height, height).unfold(1, width, width)
    return blocks.amin((-1, -2)), blocks.amax((-1, -2))


def read(layout: str, weights: Weights, stored: Any) -> Any:
    group = {"targets": ["Linear"], "weights": weights}
    fmt = stored_format({"format": layout, "config_groups": {"g": group}}, "m")
    assert fmt is not None
    return fmt, dequantize(unpack({f"m.{name}": each for name, each in stored.items()}, "m", fmt))


@pytest.mark.parametrize("name", STORED)
def test_a_weight_is_read_as_the_library_reads_it(name: str) -> None:
    layout, weights = STORED[name]
    stored, wanted = compressed(layout, weights)
    fmt, found = read(layout, weights, stored)
    # Its 4-bit floats are multiplied in bfloat16: the scale and the product are rounded.
    rtol = 2**-7 if fmt.kind == "float" and fmt.num_bits == 4 else 2e-7
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)
    expected = stored_tensors(fmt, TensorInfo("F32", (ROWS, COLUMNS), ""))
    assert {part: info.shape for part, info in expected.items()} == {
        part: tuple(each.shape)
        for part, each in stored.items()
        if part in PARTS or part == "weight"
    }


@pytest.mark.parametrize("name", ["int4", "int4-zeros", "int8", "int8-group-zeros"])
def test_columns_in_the_order_of_their_importance_have_their_groups_scales(name: str) -> None:
    """`weight_g_idx`: each column names its group (the library of today drops it)."""
    layout, weights = STORED[name]
    stored, _ = compressed(layout, weights)
    generator = torch.Generator().manual_seed(1)
    groups = (torch.arange(COLUMNS) // GROUP["group_size"])[
        torch.randperm(COLUMNS, generator=generator)
    ]
    fmt, found = read(layout, weights, stored | {"weight_g_idx": groups.int()})
    plain = unpack({f"m.{part}": each for part, each in stored.items()}, "m", fmt)
    zeros = torch.zeros_like(plain.scale) if plain.zero_point is None else plain.zero_point
    by_hand = (plain.integers.float() - zeros.float()[:, groups]) * plain.scale[:, groups]
    assert torch.equal(found, by_hand)
