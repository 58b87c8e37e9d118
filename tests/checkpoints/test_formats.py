"""A format knows the tensors it becomes: names, types and bytes, worked out by hand."""

from __future__ import annotations

import pytest

from quantdraft.checkpoints.formats import SCHEMES, WeightFormat
from quantdraft.checkpoints.weights import TensorInfo

WEIGHT = TensorInfo("BF16", (256, 512), "model.safetensors")  # 131,072 weights


def stored(fmt: WeightFormat) -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = fmt.stored("m", WEIGHT)
    return {name.removeprefix("m."): (info.dtype, info.shape) for name, info in tensors.items()}


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (
            "FP8_STATIC",
            {
                "weight": ("F8_E4M3", (256, 512)),
                "weight_scale": ("BF16", (256, 1)),
                "input_scale": ("BF16", (1,)),
            },
        ),
        (
            "NVFP4A16",
            {
                "weight_packed": ("U8", (256, 256)),
                "weight_scale": ("F8_E4M3", (256, 32)),
                "weight_global_scale": ("F32", (1,)),
            },
        ),
        ("MXFP4", {"weight_packed": ("U8", (256, 256)), "weight_scale": ("U8", (256, 16))}),
        ("MXFP8", {"weight": ("F8_E4M3", (256, 512)), "weight_scale": ("U8", (256, 16))}),
        (
            "W4AFP8",
            {
                "weight_packed": ("I32", (256, 64)),
                "weight_shape": ("I64", (2,)),
                "weight_scale": ("BF16", (256, 4)),
            },
        ),
        (
            "LLM_INT8",
            {"weight": ("I8", (256, 512)), "SCB": ("F32", (256,)), "weight_format": ("U8", ())},
        ),
    ],
)
def test_scheme_becomes_these_tensors(scheme, expected):
    assert stored(SCHEMES[scheme]) == expected


def test_nvfp4_with_inputs_has_their_scale_too():
    extra = stored(SCHEMES["NVFP4"]).keys() - stored(SCHEMES["NVFP4A16"]).keys()
    assert extra == {"input_global_scale"}


def test_gptq_is_transposed_and_packed_eight_to_a_word():
    fmt = WeightFormat(4, "int", group_size=128, library="gptq")
    assert stored(fmt) == {
        "qweight": ("I32", (64, 256)),
        "qzeros": ("I32", (4, 32)),
        "scales": ("F16", (4, 256)),
        "g_idx": ("I32", (512,)),
    }


def test_double_quantization_saves_three_eighths_of_a_bit_a_weight():
    def scale_bits(scheme: str) -> float:
        names = ("weight.absmax", "weight.nested_absmax")
        tensors = SCHEMES[scheme].stored("m", WEIGHT)
        sizes = [t.num_bytes for name, t in tensors.items() if name.endswith(names)]
        return 8 * sum(sizes) / (256 * 512)

    assert scale_bits("NF4") == 32 / 64
    assert scale_bits("NF4_DOUBLE") == 8 / 64 + 32 / (64 * 256)


def test_names_are_those_that_kernels_go_by():
    names = {scheme: fmt.name for scheme, fmt in SCHEMES.items()}
    assert names == {
        "FP8_DYNAMIC": "fp8",
        "FP8_STATIC": "fp8-static",
        "FP8_BLOCK": "fp8-block",
        "W8A8": "int8",
        "W8A16": "int8-weight-only",
        "W4A16": "int4",
        "W4AFP8": "int4-fp8",
        "NVFP4": "nvfp4",
        "NVFP4A16": "nvfp4-weight-only",
        "MXFP4": "mxfp4",
        "MXFP8": "mxfp8",
        "NF4": "nf4",
        "NF4_DOUBLE": "nf4",
        "FP4": "fp4",
        "LLM_INT8": "llm-int8",
    }
