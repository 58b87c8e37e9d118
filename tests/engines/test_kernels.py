"""Each CPU kernel's module computes what its integers and scales say."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.tensors.unpacking import Codebook, Unpacked, dequantize
from quantdraft.engines.kernels import KERNELS, kernels_for
from quantdraft.engines.kernels.bitsandbytes import BitsandbytesLinear, LlmInt8Linear
from quantdraft.engines.kernels.cpu import (
    Int4Linear,
    Int8DynamicLinear,
    Int8OnednnLinear,
    Int8WeightOnlyLinear,
    has_vnni,
)
from quantdraft.engines.kernels.dense import DenseLinear, PrepackedLinear, WeightFirstLinear
from quantdraft.engines.kernels.dequantizing import (
    Int4DequantizingLinear,
    Int8DequantizingLinear,
    pack_halves,
)
from quantdraft.engines.kernels.packed_products import _products
from quantdraft.errors import NoKernelError

OUT, IN = 96, 256
# Inputs, scales and outputs rounded to bf16: each by at most 2**-9 of its value, in all 3 * 2**-9.
BF16_ERROR = 3 * 2**-9


class ExactInt4(Int4Linear):
    compute_dtype = torch.float32  # slow, and shows that nothing but bf16 separates the two


class ExactInt8(Int8WeightOnlyLinear):
    compute_dtype = torch.float32


def random_integers(
    num_bits: int, group_size: int, zero_point: bool = False, out: int = OUT
) -> Unpacked:
    generator = torch.Generator().manual_seed(0)
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1)
    integers = torch.randint(low, high, (out, IN), generator=generator).to(torch.int8)
    scale = torch.rand((out, IN // group_size), generator=generator) * 0.01 + 0.001
    zeros = None
    if zero_point:
        zeros = torch.randint(low, high, scale.shape, generator=generator).to(torch.int8)
    return Unpacked(integers, scale, zeros, None if group_size == IN else group_size, None)


def error_of(kernel, weight, dtype=torch.float32, rows: tuple[int, ...] = (2, 3)) -> float:
    """Relative distance of a kernel's output from the dequantized weights' product in float64."""
    generator = torch.Generator().manual_seed(1)
    values = weight if isinstance(weight, torch.Tensor) else dequantize(weight)
    bias = torch.randn(len(values), generator=generator)
    x = torch.randn((*rows, values.shape[1]), generator=generator).to(dtype)
    found = kernel(weight, bias, dtype)(x)
    wanted = x.double() @ values.double().T + bias
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kernel", [ExactInt4, Int4DequantizingLinear])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("zero_point", [False, True])
def test_int4_equals_the_dequantized_product(kernel, group_size, zero_point):
    assert error_of(kernel, random_integers(4, group_size, zero_point)) < 1e-5


@pytest.mark.parametrize("zero_point", [False, True])
def test_int4_through_bf16_is_within_three_roundings(zero_point):
    # A zero point of up to 8 steps multiplies the rounding of what is subtracted: 4-bit values of
    # 4.6 steps rms less zeros of as many; each rounded apart, so the sum of both against the root.
    allowed = BF16_ERROR * (2 if zero_point else 1)
    assert error_of(Int4Linear, random_integers(4, 64, zero_point)) < allowed


@pytest.mark.parametrize("kernel", [ExactInt4, Int4DequantizingLinear])
def test_int4_follows_the_order_of_its_columns(kernel):
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(2))
    weight = random_integers(4, 64, zero_point=True)._replace(column_order=order)
    assert error_of(kernel, weight) < 1e-5


def test_int4_takes_a_vocabulary_that_is_no_multiple_of_its_tiles():
    assert error_of(ExactInt4, random_integers(4, 64, out=OUT + 5)) < 1e-5


@pytest.mark.parametrize("kernel", [ExactInt8, Int8DequantizingLinear])
def test_int8_weight_only_equals_the_dequantized_product(kernel):
    assert error_of(kernel, random_integers(8, IN)) < 1e-5


def test_int8_weight_only_through_bf16_is_within_three_roundings():
    assert error_of(Int8WeightOnlyLinear, random_integers(8, IN)) < BF16_ERROR


def test_int8_dynamic_is_within_the_rounding_of_its_activations():
    # A 7-bit step of the largest input (about 3.3 sigma of 1536) is 2 * 3.3 / 127 = 0.052 sigma;
    # its rounding error is a step over sqrt(12), 0.015 of the inputs' spread and of the outputs'.
    assert error_of(Int8DynamicLinear, random_integers(8, IN)) < 0.03


def test_int8_dynamic_holds_at_the_extremes_where_16_bit_sums_would_saturate():
    weight = Unpacked(
        torch.full((OUT, IN), 127, dtype=torch.int8), torch.ones(OUT, 1), None, None, None
    )
    out = Int8DynamicLinear(weight, None, torch.float32)(torch.ones(1, IN))
    assert (out / (127 * IN) - 1).abs().max() < 0.02


def test_int8_onednn_is_offered_only_where_its_sums_do_not_saturate():
    if has_vnni():
        assert error_of(Int8OnednnLinear, random_integers(8, IN)) < 0.02
    else:
        with pytest.raises(ValueError, match="saturate"):
            error_of(Int8OnednnLinear, random_integers(8, IN))


@pytest.mark.parametrize("kernel", [DenseLinear, WeightFirstLinear, PrepackedLinear])
@pytest.mark.parametrize("rows", [(1,), (2, 3), (17,)])
def test_dense_kernels_equal_the_product(kernel, rows):
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    assert error_of(kernel, weight, rows=rows) < 1e-6


@pytest.mark.parametrize("kernel", [DenseLinear, WeightFirstLinear, PrepackedLinear])
def test_dense_kernels_in_bf16_are_within_the_rounding_of_the_output(kernel):
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert error_of(kernel, weight, torch.bfloat16) < BF16_ERROR


def test_a_dense_kernel_shares_the_weight_it_was_given():
    weight = torch.randn(OUT, IN)
    assert DenseLinear(weight, None, torch.float32).weight.data_ptr() == weight.data_ptr()


def test_a_prepacked_weight_is_freed_with_its_module():
    module = PrepackedLinear(torch.randn(OUT, IN), None, torch.float32)
    number = int(module.number)
    assert number in _products
    del module
    assert number not in _products


@pytest.mark.parametrize("kernel", [PrepackedLinear, Int4Linear, Int8DynamicLinear])
def test_a_kernel_compiles_to_the_same_product(kernel):
    weight = random_integers(8 if kernel is Int8DynamicLinear else 4, IN)._replace(group_size=None)
    given = dequantize(weight) if kernel is PrepackedLinear else weight
    module = kernel(given, None, torch.float32)
    x = torch.randn(3, IN)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(x), module(x))


@pytest.mark.parametrize(("name", "is_double"), [("nf4", False), ("nf4", True), ("fp4", False)])
def test_bitsandbytes_weights_equal_the_dequantized_product(name, is_double):
    weight = stored_by_bitsandbytes(name, is_double)
    assert error_of(BitsandbytesLinear, weight) < 1e-5
    kernel = BitsandbytesLinear(weight, None, torch.float32)
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(1))
    copied = copy.deepcopy(kernel)  # a trial on a GPU runs copies, so that no cache holds them
    assert torch.equal(copied(x), kernel(x))
    assert copied.packed.data_ptr() != kernel.packed.data_ptr()
    assert copied._state.absmax.data_ptr() == copied.absmax.data_ptr()


@pytest.mark.parametrize("has_outlier", [False, True])
def test_llm_int8_is_the_rounded_product_and_keeps_columns_with_outliers(has_outlier):
    pytest.importorskip("bitsandbytes")
    from quantdraft.checkpoints.formats import SCHEMES
    from quantdraft.checkpoints.tensors.rounding import round_inputs

    weight = random_integers(8, IN)._replace(group_size=None)
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(3))
    x[1, 5] = 50.0 if has_outlier else 0.0
    wanted = round_inputs(x, SCHEMES["LLM_INT8"], None) @ dequantize(weight).T
    found = LlmInt8Linear(weight, None, torch.float32)(x)
    # Both round inputs alike; the library's own type is float16, 2^-11 a value.
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3


def test_llm_int8_without_its_package_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(NoKernelError, match=r"LLM.int8.*pip install 'quantdraft\[bitsandbytes\]'"):
        LlmInt8Linear(random_integers(8, IN), None, torch.float32)


def stored_by_bitsandbytes(name: str, is_double: bool) -> Codebook:
    functional = pytest.importorskip("bitsandbytes.functional")
    import json

    from quantdraft.checkpoints.formats import WeightFormat
    from quantdraft.checkpoints.tensors.unpacking import unpack

    values = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(values, quant_type=name, compress_statistics=is_double)
    tensors = {f"m.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    tensors["m.weight"] = packed
    assert json.loads(bytes(tensors[f"m.weight.quant_state.bitsandbytes__{name}"].tolist()))
    weight = unpack(tensors, "m", WeightFormat(4, name, library="bitsandbytes"))
    assert torch.allclose(dequantize(weight), functional.dequantize_4bit(packed, state), atol=1e-6)
    return weight


def test_nf4_without_its_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    weight = Codebook(
        torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(16), torch.ones(2), 64, None, "nf4"
    )
    with pytest.raises(NoKernelError, match=r"pip install 'quantdraft\[bitsandbytes\]'"):
        BitsandbytesLinear(weight, None, torch.float32)


def test_int4_holds_a_quarter_of_the_bytes_of_bf16():
    module = Int4Linear(random_integers(4, 128), None, torch.float32)
    assert module.packed.nbytes == OUT * IN // 2


def test_halves_of_a_row_share_bytes():
    assert pack_halves(torch.tensor([[-8, 7, 1, 2]])).tolist() == [[0 | 9 << 4, 15 | 10 << 4]]


def test_formats_without_a_kernel_say_so():
    with pytest.raises(NoKernelError, match="no cpu kernel computes in fp8"):
        kernels_for("cpu", "fp8")


def test_inputs_that_are_rounded_by_a_stored_scale_have_no_kernel():
    """The kernels choose a scale for each token: their logits would not be those of replay."""
    fmt = replace(SCHEMES["W8A8"], has_static_inputs=True)
    assert fmt.name == "int8-static"
    for device in ("cpu", "cuda"):
        with pytest.raises(NoKernelError, match="computes in int8-static"):
            kernels_for(device, fmt.name)


def test_scales_in_groups_are_refused_by_a_kernel_of_rows():
    with pytest.raises(ValueError, match="one scale a row"):
        Int8WeightOnlyLinear(random_integers(8, 128), None, torch.float32)


def test_every_device_has_dense_and_integer_kernels():
    for device in ("cpu", "cuda"):
        assert {(device, name) for name in ("dense", "int4", "int8", "nf4")} <= set(KERNELS)


def test_int8_dynamic_gives_each_row_a_scale_of_its_own():
    module = Int8DynamicLinear(random_integers(8, IN), None, torch.float32)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, IN, generator=generator) * torch.logspace(-3, 3, 6)[:, None]
    for row, together in zip(rows, module(rows), strict=True):
        alone = module(row[None])[0]
        # Both round the row to 7 bits: 0.015 each (see above); one scale for all loses small rows.
        assert (together - alone).norm() / alone.norm() < 0.03
