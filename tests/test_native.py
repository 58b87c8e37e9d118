"""The native engine computes what the checkpoint's stored integers say, on a real kernel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from quantdraft.checkpoint import open_checkpoint
from quantdraft.engines import native
from quantdraft.engines.native import load_native
from quantdraft.engines.session import Session
from quantdraft.engines.source import stored_weights
from quantdraft.kernels import NoKernelError
from quantdraft.models import load_model
from quantdraft.quantization import apply
from quantdraft.recipe import load_recipe

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
