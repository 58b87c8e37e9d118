"""What compressed-tensors' own compressors store is read as its own decompressors read it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

from quantdraft.checkpoints.dense_view import PARTS  # noqa: E402
from quantdraft.checkpoints.layouts import stored_tensors  # noqa: E402
from quantdraft.checkpoints.stored_formats import stored_format  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import dequantize, unpack  # noqa: E402
from quantdraft.checkpoints.weights import TensorInfo  # noqa: E402
from tests.foreign import compress  # noqa: E402

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
    generator = torch.Generator().manual_seed(0)
    return compress(layout, weights, torch.randn(ROWS, COLUMNS, generator=generator) + 0.2)


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
