"""The native engine computes what the checkpoint's stored integers say, on a real kernel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.checkpoints.tensors.unpacking import Unpacked, dequantize
from quantdraft.engines.kernels import KERNELS, choice, kernels_for
from quantdraft.engines.kernels.book import Book
from quantdraft.engines.kernels.dense import DenseLinear
from quantdraft.engines.native import model as native
from quantdraft.engines.native.linears import largest_packing, promised_bytes
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import RandomWeights, stored_weights
from quantdraft.errors import NoKernelError
from quantdraft.judge.verdict.alarms import not_quantized
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe

CPU = torch.device("cpu")
# Weight-only kernels pass through bf16: three roundings of 2^-9 in each of the 15 products of a
# path, which add as their squares: sqrt(45) / 512 = 0.013. Activations: 7 bits where a CPU lacks
# VNNI, 8 in the checkpoint's own arithmetic: each product may differ by 0.015, together by 0.06.
LIMITS = {
    "int4": 0.02,
    "int8-weight-only": 0.02,
    "int4-head8": 0.02,
    "int8": 0.1,
    "int8-head8": 0.1,
}


@pytest.fixture(scope="module", params=sorted(LIMITS))
def applied(request, tiny_pair, tmp_path_factory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("native") / request.param
    apply(load_recipe(request.param), str(tiny_pair.draft), path)
    return request.param, path


@torch.inference_mode()
def test_native_logits_are_the_dequantized_checkpoints(applied):
    recipe, path = applied
    native = load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU)
    ids = torch.randint(512, (1, 1), generator=torch.Generator().manual_seed(0))
    found = Session(native, 1, 1).forward(ids, torch.zeros_like(ids), 1)
    wanted = load_model(path, torch.float32, CPU)(input_ids=ids).logits
    assert (found - wanted).norm() / wanted.norm() < LIMITS[recipe]


def test_resident_bytes_and_kernels_are_those_of_the_format(applied, tiny_pair):
    recipe, path = applied
    native = load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU)
    dense = load_native(stored_weights(open_checkpoint(tiny_pair.draft)), torch.float32, CPU)
    assert native.weight_bytes < dense.weight_bytes
    expected = "int4" if recipe.startswith("int4") else "int8"
    assert any(kernel.startswith(expected) for kernel in native.kernels)
    assert dense.is_exact  # whichever of the float32 kernels a trial found fastest


def test_quantized_layers_take_what_their_format_promises_in_any_packing(applied):
    """Several row counts: a layer may then have two packings, of which the largest counts."""
    source = stored_weights(open_checkpoint(applied[1]))
    native = load_native(source, torch.float32, CPU, (1, 2, 5, 17, 64))
    stored = sum(
        info.num_bytes
        for name, info in source.checkpoint.tensors.items()
        if name.rpartition(".")[0] in source.formats and not name.endswith(("shape", "bias"))
    )
    assert native.promised_bytes == stored
    assert 0.9 < native.quantized_bytes / native.promised_bytes < 1.2
    assert native.quantized_bytes <= native.weight_bytes


def test_every_kernel_of_a_cpu_holds_a_weight_in_about_its_formats_bytes(tiny_pair):
    """The alarm `not_quantized` fires beyond 1.5: none comes near, whatever the group size."""
    shape = open_checkpoint(tiny_pair.draft)
    for recipe in ("int4", "int8", "int8-weight-only", "int8-bnb", "nf4", "fp4"):
        source = RandomWeights(shape, load_recipe(recipe))
        module, fmt = next(iter(source.formats.items()))
        kinds = kernels_for("cpu", fmt.name)
        groups = (32, 64, 128) if recipe == "int4" else (None,)
        for group in groups:
            weight = source.weight(module)
            if group is not None:
                scale = torch.full((len(weight.integers), weight.integers.shape[1] // group), 0.1)
                weight = weight._replace(scale=scale, group_size=group)
            for kind in kinds:
                try:
                    linear = kind(weight, None, torch.float32)
                except NoKernelError:  # this machine lacks something for it
                    continue
                ratio = largest_packing(linear) / promised_bytes(weight, fmt)
                assert 0.8 < ratio < 1.25, (recipe, group, kind)


def test_of_two_packings_the_largest_counts_and_not_their_sum():
    weight = torch.ones(8, 16)
    parts = [DenseLinear(weight, None, torch.float32), DenseLinear(weight, None, torch.bfloat16)]
    by_rows = choice.LinearByRows((1, 5), [0, 1], parts)
    assert largest_packing(parts[1]) == 8 * 16 * 2
    assert largest_packing(by_rows) == 8 * 16 * 4


class UnpackedLinear(DenseLinear):
    """A kernel that says it computes in 4 bits, and holds floats."""

    def __init__(self, weight: Unpacked, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(dequantize(weight), bias, dtype)
        self.kernel = "int4_pretended"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layers_that_are_held_in_floats_are_seen(tiny_pair, monkeypatch, dtype):
    monkeypatch.setitem(KERNELS, ("cpu", "int4"), (UnpackedLinear,))
    book = Book(None)
    monkeypatch.setattr(choice, "book_of", lambda device, num_threads: book)
    source = RandomWeights(open_checkpoint(tiny_pair.draft), load_recipe("int4"))
    native = load_native(source, dtype, CPU)
    excess = native.quantized_bytes / native.promised_bytes
    assert excess > 1.9 * dtype.itemsize
    alarm = not_quantized(
        is_identity=False,
        resident_bytes=native.quantized_bytes,
        promised_bytes=native.promised_bytes,
    )
    assert alarm is not None


def test_a_draft_in_floats_has_no_quantized_bytes(tiny_pair):
    dense = load_native(stored_weights(open_checkpoint(tiny_pair.draft)), torch.float32, CPU)
    assert (dense.quantized_bytes, dense.promised_bytes) == (0, 0)


def test_fp8_on_a_cpu_has_no_kernel_and_says_so(tiny_pair, tmp_path):
    apply(load_recipe("fp8"), str(tiny_pair.draft), tmp_path / "fp8")
    with pytest.raises(NoKernelError, match="no cpu kernel computes in fp8"):
        load_native(stored_weights(open_checkpoint(tmp_path / "fp8")), torch.float32, CPU)


def test_a_quantized_cache_has_no_native_kernel_and_the_reason_says_so(
    tiny_pair, tmp_path, monkeypatch
):
    shutil.copytree(tiny_pair.draft, tmp_path / "kv")
    config = json.loads((tmp_path / "kv" / "config.json").read_text())
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": cache,
        "config_groups": {},
    }
    (tmp_path / "kv" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(native, "claims_but_not_quantized", lambda checkpoint: None)
    with pytest.raises(NoKernelError, match="no quantized cache of keys and values"):
        load_native(stored_weights(open_checkpoint(tmp_path / "kv")), torch.float32, CPU)
