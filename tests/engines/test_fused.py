"""The fused pass computes what the eager decoder computes, for every shape, place and position."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels.dense import DenseLinear, WeightFirstLinear
from quantdraft.engines.kernels.few_rows import (
    Bf16FewRowsLinear,
    F32FewRowsLinear,
    Int4FewRowsLinear,
    Int8DynamicFewRowsLinear,
    Int8FewRowsLinear,
)
from quantdraft.engines.kernels.operations import operations_fault
from quantdraft.engines.native import fused as fusion
from quantdraft.engines.native.decoder import Decoder, DecoderShape, Layer, Rotary
from quantdraft.engines.native.fused import FusedDecoder, fused_fault
from quantdraft.engines.native.linears import JoinedLinears
from quantdraft.engines.native.model import NativeModel
from quantdraft.engines.native.session import Session

lacking = operations_fault()
if lacking is not None:
    pytest.skip(f"not offered on this machine: {lacking}", allow_module_level=True)

VOCAB = 61
# Sums of up to 600 float32 products in another order, through two layers: rounding is 2^-24 each,
# and adds as its square root, 600 ** 0.5 * 2^-24 = 1.5e-6, a few times over.
TOLERANCE = 1e-5


def random_decoder(
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 32,
    *,
    hidden: int = 40,
    intermediate: int = 52,
    has_bias: bool = False,
    has_head_norms: bool = False,
    linear=DenseLinear,
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """Two layers of random weights whose scores are wide enough to be told apart."""
    generator = torch.Generator().manual_seed(heads * 1000 + kv_heads * 100 + dim)
    shape = DecoderShape(2, heads, kv_heads, dim, hidden, intermediate, VOCAB, 1e-6)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def made(rows: int, columns: int, has_bias: bool = False) -> nn.Module:
        bias = random(rows) if has_bias else None
        return linear(random(rows, columns) * columns**-0.5, bias, dtype)

    layers = [
        Layer(
            shape,
            qkv=made((heads + 2 * kv_heads) * dim, hidden, has_bias),
            out=made(hidden, heads * dim),
            gate_up=made(2 * intermediate, hidden),
            down=made(hidden, intermediate),
            norms=(random(hidden).to(dtype), random(hidden).to(dtype)),
            head_norms=(random(dim).to(dtype), random(dim).to(dtype)) if has_head_norms else None,
        )
        for _ in range(2)
    ]
    rotary = Rotary(1e4 ** -(torch.arange(0, dim, 2).float() / dim), 1.0)
    table, norm = random(VOCAB, hidden).to(dtype), random(hidden).to(dtype)
    return Decoder(shape, table, layers, norm, made(VOCAB, hidden), rotary)


def operations_decoder(kind: str = "bf16") -> Decoder:
    """All products by the package's own kernels, the table in bfloat16."""

    def linear(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> nn.Module:
        if kind == "side by side":  # the parts of a projection, not all in one format
            first = len(weight) // 4
            parts = [(weight[:first], "f32"), (weight[first:], "int8")]
            biases = (None, None) if bias is None else (bias[:first], bias[first:])
            made = [
                of_kind(name, part, own) for (part, name), own in zip(parts, biases, strict=True)
            ]
            return JoinedLinears(made, [first, len(weight) - first])
        return of_kind(kind, weight, bias)

    model = random_decoder(dim=16, hidden=64, intermediate=96, has_bias=True, linear=linear)
    model.embedding = model.embedding.to(torch.bfloat16)
    return model


def of_kind(kind: str, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """A dense weight, rounded where the kind asks for it, as one of the package's own kernels."""
    if kind == "f32":
        return F32FewRowsLinear(weight, bias, torch.float32)
    if kind == "bf16":
        return Bf16FewRowsLinear(weight.to(torch.bfloat16), bias, torch.float32)
    group, half = (32, 8) if kind == "int4" else (weight.shape[1], 128)
    groups = weight.view(len(weight), -1, group)
    scale = groups.abs().amax(-1, keepdim=True) / (half - 1)
    integers = (groups / scale).round().to(torch.int8).view_as(weight)
    kernels = {"int4": Int4FewRowsLinear, "int8": Int8FewRowsLinear}
    packed = Unpacked(integers, scale[..., 0], None, group, None)
    return kernels.get(kind, Int8DynamicFewRowsLinear)(packed, bias, torch.float32)


def native_of(model: Decoder, dtype: str = "float32") -> NativeModel:
    return NativeModel(model, "native decoder", dtype, (), 0, None)


def sessions(model: Decoder, batch_size: int, num_slots: int, dtype: str = "float32"):
    native = native_of(model, dtype)
    return [Session(native, batch_size, num_slots, mode) for mode in ("eager", "fused")]


def assert_equal(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()


@torch.inference_mode()
def compare(model: Decoder, batch_size: int, start: int, m: int, tolerance: float = TOLERANCE):
    """A prefill, m tokens at positions that differ by row, the same again further back."""
    generator = torch.Generator().manual_seed(start * 10 + m)
    eager, fused = sessions(model, batch_size, start + 2 * m + batch_size)
    ids = torch.randint(VOCAB, (batch_size, start), generator=generator)
    places = torch.arange(start).expand(batch_size, -1)
    at = torch.randint(start, (batch_size, 2), generator=generator)
    wanted = eager.forward(ids, places, start, at)
    assert_equal(fused.forward(ids, places, start, at), wanted, tolerance)
    # Each row starts one earlier than the one above it, then all step back to the middle.
    firsts = (start - torch.arange(batch_size)).clamp(min=0)
    for first in (firsts, firsts + m, firsts // 2):
        new = torch.randint(VOCAB, (batch_size, m), generator=generator)
        positions = first[:, None] + torch.arange(m)
        num_live = int(positions.max()) + 1
        wanted = eager.forward(new, positions, num_live)
        assert_equal(fused.forward(new, positions, num_live), wanted, tolerance)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (14, 2), (9, 3), (12, 1)])
def test_every_ratio_of_heads(heads, kv_heads):
    compare(random_decoder(heads, kv_heads, 32), batch_size=2, start=37, m=3)


@pytest.mark.parametrize("dim", [2, 4, 6, 20, 36, 64, 80, 96, 128, 256])
def test_every_size_of_head(dim):
    compare(random_decoder(2, 1, dim), batch_size=2, start=19, m=2)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_head_norms", [False, True])
def test_biases_and_norms_of_heads(has_bias, has_head_norms):
    model = random_decoder(dim=36, has_bias=has_bias, has_head_norms=has_head_norms)
    compare(model, batch_size=2, start=21, m=4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_batch_and_number_of_new_tokens(batch_size, m):
    compare(random_decoder(), batch_size, start=30, m=m)


@pytest.mark.parametrize("start", [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 255, 256, 257, 520, 600])
def test_every_length_of_context(start):
    compare(random_decoder(3, 1, 24), batch_size=2, start=start, m=3)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("start", [5, 300, 600])
def test_slots_split_over_threads_make_the_same(threads, start):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(random_decoder(64, 1, 64), batch_size=1, start=start, m=2)
    finally:
        torch.set_num_threads(before)


def test_a_weight_first_products_columns_are_taken_as_they_lie():
    compare(random_decoder(linear=WeightFirstLinear), batch_size=2, start=12, m=3)


# Inputs that differ in the last bit are rounded alike, but for the few that lie between two levels:
# each moves by one level, of 127 or of 32767 to the largest input; the layers behind it add theirs.
TOLERANCES = {"int8 dynamic": 5 / 127} | dict.fromkeys(("int4", "int8", "side by side"), 5 / 32767)


@torch.inference_mode()
@pytest.mark.parametrize("m", [1, 3, 5, 9])
@pytest.mark.parametrize(
    "kind", ["bf16", "f32", "int4", "int8", "int8 dynamic", "side by side"]
)  # fmt: skip
def test_kernels_that_are_operations_run_in_one_call_and_compute_the_same(kind, m):
    model = operations_decoder(kind)
    compare(model, 2, 20, m, TOLERANCES.get(kind, TOLERANCE))
    fused = FusedDecoder(model, 2, 40, torch.float32)
    fused.forward(torch.zeros(2, m, dtype=torch.long), torch.arange(m).expand(2, -1))
    (one,) = fused._passes.values()
    assert len(one.program._calls) == 1


@torch.inference_mode()
def test_a_table_in_float16_is_looked_up_by_torch():
    model = random_decoder()
    model.embedding = model.embedding.half()
    compare(model, batch_size=2, start=20, m=3)


@torch.inference_mode()
def test_a_bfloat16_model_keeps_its_cache_and_inputs_in_bfloat16_and_the_rest_in_float32():
    wide = random_decoder(dim=20)
    narrow = random_decoder(dim=20, dtype=torch.bfloat16)
    ids = torch.randint(VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(30).expand(2, -1)
    wanted = sessions(wide, 2, 30)[0].forward(ids, positions, 30)
    eager, fused = sessions(narrow, 2, 30, "bfloat16")
    assert fused.cache.entries.dtype == torch.bfloat16
    errors = [
        (session.forward(ids, positions, 30).float() - wanted).norm() / wanted.norm()
        for session in (eager, fused)
    ]
    assert errors[1] < errors[0]  # it rounds less often than the eager pass does
    assert errors[1] > 2**-12  # and it does round


@torch.inference_mode()
def test_what_is_no_number_stays_none_in_its_row_and_leaves_others_alone():
    model = random_decoder()
    model.embedding[7] = math.nan
    model.embedding[8] = math.inf
    _, fused = sessions(model, 3, 16)
    ids = torch.tensor([[1, 2, 3, 4], [1, 7, 3, 4], [1, 8, 3, 4]])
    logits = fused.forward(ids, torch.arange(4).expand(3, -1), 4)
    assert logits[0].isfinite().all()
    assert logits[1:, 0].isfinite().all()  # a token before it does not see it
    assert not logits[1:, 1:].isfinite().any()


@torch.inference_mode()
def test_indices_out_of_bounds_are_errors_and_read_nothing():
    _, fused = sessions(random_decoder(), 1, 4)
    ids, positions = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    for bad in (-1, 4, 2**40):
        with pytest.raises(IndexError, match="position is outside the cache"):
            fused.forward(ids, torch.tensor([[0, bad]]), 2)
        with pytest.raises(IndexError, match="asked of a token"):
            fused.forward(ids, positions, 2, torch.tensor([[bad]]))
    for bad in (-1, VOCAB):
        with pytest.raises(IndexError, match="token id is outside"):
            fused.forward(torch.tensor([[1, bad]]), positions, 2)


@torch.inference_mode()
def test_logits_of_an_earlier_pass_stay_as_they_are():
    _, fused = sessions(operations_decoder(), 1, 8)
    first = fused.forward(torch.tensor([[3]]), torch.tensor([[0]]), 1)
    copy = first.clone()
    fused.forward(torch.tensor([[5]]), torch.tensor([[1]]), 2)
    assert torch.equal(first, copy)


def test_the_memory_of_passes_is_kept_within_its_limit(monkeypatch):
    model = random_decoder()
    fused = FusedDecoder(model, 1, 64, torch.float32)
    one = fused._make_pass((1, 1, None, 1)).num_bytes
    monkeypatch.setattr(fusion, "KEPT_BYTES", 5 * one)
    for m, _ in itertools.product((1, 2, 3, 4, 5, 8), range(2)):
        fused.forward(torch.zeros(1, m, dtype=torch.long), torch.arange(m)[None])
        assert sum(each.num_bytes for each in fused._passes.values()) <= 5 * one


def test_a_head_that_the_c_file_has_no_room_for_is_refused():
    assert fused_fault(random_decoder(1, 1, 514)) == "a head of 514 is larger than 512"
    assert fused_fault(random_decoder(1, 1, 512)) is None
