"""Mixtures of experts, hybrids and towers: what is quantized, kept, counted and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.parts import is_routed, kept_modules, tower_tensors
from quantdraft.checkpoints.stored_formats import linear_modules, matches
from quantdraft.checkpoints.tensors.experts import SeparateExperts, every_token_to_every_expert
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.checkpoints.weights import read_tensors
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import CheckpointError, RecipeError
from quantdraft.quantize.apply import apply
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.ledger import byte_ledger, project
from quantdraft.quantize.recipe import bundled_recipe_names, load_recipe
from quantdraft.quantize.recipe_formats import ignored_names
from quantdraft.record.step_bytes import Ledger, experts_sentence
from quantdraft.workflows.check import check
from tests.stored import LLAMA_CONFIG, write_checkpoint

CPU = torch.device("cpu")
Pair = Callable[[str], tuple[Path, Path]]

MOE = {
    "model.embed_tokens.weight": ("BF16", (512, 256)),
    "lm_head.weight": ("BF16", (512, 256)),
    "model.layers.0.self_attn.k_proj.weight": ("BF16", (64, 256)),
    "model.layers.0.self_attn.v_proj.weight": ("BF16", (64, 256)),
    "model.layers.0.mlp.gate.weight": ("BF16", (8, 256)),
    "model.layers.0.mlp.shared_expert.up_proj.weight": ("BF16", (256, 256)),
    "model.layers.0.mlp.shared_expert_gate.weight": ("BF16", (1, 256)),
    **{
        f"model.layers.0.mlp.experts.{i}.{name}.weight": ("BF16", (256, 256))
        for i in range(8)
        for name in ("gate_proj", "up_proj", "down_proj")
    },
}
EXPERT_BYTES = 3 * 256 * 256 * 2


def opened(path: Path, tensors: dict[str, Any], **config: Any) -> Checkpoint:
    return open_checkpoint(write_checkpoint(path, tensors, LLAMA_CONFIG | config))


def test_a_step_reads_the_experts_that_one_token_uses_and_all_shared_ones(tmp_path: Path) -> None:
    ledger = byte_ledger(opened(tmp_path / "moe", MOE, num_experts=8, num_experts_per_tok=2))
    assert ledger.expert_bytes == 2 * EXPERT_BYTES
    assert ledger.mlp_bytes == 2 * EXPERT_BYTES + 2 * (256 * 256 + 9 * 256)


def test_stacked_experts_are_counted_as_separate_ones(tmp_path: Path) -> None:
    counts = {"num_local_experts": 8, "num_experts_per_tok": 2}
    stacked = {name: found for name, found in MOE.items() if not is_routed(name)} | {
        "model.layers.0.mlp.experts.gate_up_proj": ("BF16", (8, 512, 256)),
        "model.layers.0.mlp.experts.down_proj": ("BF16", (8, 256, 256)),
    }
    one_by_one = byte_ledger(opened(tmp_path / "one", MOE, **counts))
    together = opened(tmp_path / "together", stacked, **counts)
    assert byte_ledger(together) == one_by_one
    for name in ("int4", "fp8", "nf4", "int4-gptq"):
        with pytest.raises(RecipeError, match="holds 8 experts in one tensor"):
            fit_recipe(load_recipe(name), together, None)


def test_flat_experts_are_refused_and_small_projections_kept(tmp_path: Path) -> None:
    layer = "transformer.blocks.0.ffn.experts.mlp"
    flat = {f"{layer}.{name}": ("BF16", (1024, 256)) for name in ("w1", "v1", "w2")}
    rest = {name: found for name, found in MOE.items() if not is_routed(name)}
    draft = opened(tmp_path, rest | flat, num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(RecipeError, match="w1' holds the experts of a layer in one tensor"):
        fit_recipe(load_recipe("int4"), draft, None)
    small = ("model.layers.0.self_attn.indexer.weights_proj", "model.layers.0.altup.mixing")
    kept = opened(tmp_path, rest | {f"{name}.weight": ("BF16", (4, 256)) for name in small})
    assert set(small) <= set(kept_modules(kept.tensors))


def test_experts_without_a_number_for_each_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_experts_per_tok"):
        byte_ledger(opened(tmp_path / "moe", MOE, num_experts=8))


def test_several_tokens_read_more_experts_than_one() -> None:
    ledger = Ledger(0, 200, 0, 0, 0, 0, 0, expert_bytes=200, num_experts=8, num_experts_per_token=2)
    assert ledger.expected_experts(1) == 2
    assert ledger.expected_experts(2) == pytest.approx(3.5)  # 2 + 2 · 6/8
    assert ledger.step_bytes(num_tokens=2) == 350
    assert "verifying 2 tokens reads about 3.5" in (experts_sentence(ledger, 1) or "")
    assert experts_sentence(Ledger(0, 200, 0, 0, 0, 0, 0), 1) is None


def test_every_recipe_keeps_routers_or_is_refused_by_name(tmp_path: Path) -> None:
    moe = opened(tmp_path / "moe", MOE, num_experts=8, num_experts_per_tok=2)
    for name in bundled_recipe_names():
        recipe = load_recipe(name)
        if recipe.backend in {"bitsandbytes", "gptqmodel"}:
            with pytest.raises(RecipeError, match="would stay in floats"):
                fit_recipe(recipe, moe, None)
            continue
        ignored = ignored_names(fit_recipe(recipe, moe, None), moe.tensors)
        assert matches("draft_model.model.layers.7.mlp.gate", ignored)
        assert matches("model.layers.0.mlp.shared_expert_gate", ignored)
        assert matches("model.layers.0.mlp.router", ignored)  # as transformers loads PhiMoE's
        assert not matches("model.layers.0.mlp.experts.3.gate_proj", ignored)
    int4 = project(moe, load_recipe("int4"))
    assert int4.expert_bytes == 2 * (EXPERT_BYTES // 4 + 3 * 256 * 2 * 2)


def test_a_window_bounds_keys_and_values_and_a_state_does_not_grow() -> None:
    windowed = Ledger(0, 0, 0, 0, 0, 0, 10, 20, 16, 7)
    assert windowed.step_bytes(8) == 10 * 8 + 20 * 8 + 7
    assert windowed.step_bytes(1000) == 10 * 1000 + 20 * 16 + 7


# Bytes in bfloat16 of tests.architectures: 2 layers, 2 KV heads of 32, a window of 16, 128 wide.
# Latent attention keeps 128 + 32 a layer. Mamba 2: 4 inputs of 288 channels and 256 x 16; Mamba: 4
# of 256 and 256 x 16; linear attention: 4 of 256 and 4 heads of 32 x 32; LFM 2: 3 of 128.
CACHED = {
    "llama": (512, 0, 0),
    "gemma3": (256, 256, 0),
    "gemma3-vision": (256, 256, 0),
    "mistral": (0, 512, 0),
    "deepseek-v3": (640, 0, 0),
    "mamba2": (0, 0, 2 * 2 * (4 * 288 + 256 * 16)),
    "falcon-h1": (512, 0, 2 * 2 * (4 * 288 + 256 * 16)),
    "jamba": (256, 0, 2 * (4 * 256 + 256 * 16)),
    "qwen3-next": (256, 0, 2 * (4 * 256 + 4 * 32 * 32)),
    "lfm2": (256, 0, 2 * 3 * 128),
}


@pytest.mark.parametrize("name", CACHED)
def test_keys_values_and_states_follow_from_the_architecture(
    name: str, architecture_pair: Pair
) -> None:
    ledger = byte_ledger(open_checkpoint(architecture_pair(name)[1]))
    found = (
        ledger.kv_bytes_per_context_token,
        ledger.windowed_kv_bytes_per_context_token,
        ledger.state_bytes,
    )
    assert found == CACHED[name]
    assert ledger.window == (16 if CACHED[name][1] else 0)


@pytest.mark.parametrize("name", ["jamba", "qwen3-next", "lfm2", "gemma3-vision", "mamba2"])
def test_linears_are_those_of_the_language_model_less_what_is_kept(
    name: str, architecture_pair: Pair
) -> None:
    tensors = read_tensors(architecture_pair(name)[1])
    linears, kept = set(linear_modules(tensors)), set(kept_modules(tensors))
    assert not linears & kept
    assert not any(part in each for each in linears for part in ("vision", "conv1d", "dt_proj"))
    assert not any(each.endswith((".router", ".mlp.gate", "in_proj_ba")) for each in linears)
    assert all(f"{module}.weight" not in tower_tensors(tensors) for module in linears)
    ignored = ignored_names(load_recipe("int4"), tensors)
    assert all(matches(module, ignored) for module in kept)


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "deepseek-v3"])
def test_separate_experts_compute_what_stacked_ones_do(name: str, architecture_pair: Pair) -> None:
    path = architecture_pair(name)[1]
    stacked = load_model(path, torch.float32, CPU)
    separate = load_model(path, torch.float32, CPU, has_separate_experts=True)
    assert not any(isinstance(each, SeparateExperts) for each in stacked.modules())
    assert any(isinstance(each, SeparateExperts) for each in separate.modules())
    ids = torch.arange(24).reshape(2, 12) * 17
    with torch.inference_mode():
        expected, found = stacked(ids).logits, separate(ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        with every_token_to_every_expert():
            torch.testing.assert_close(separate(ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "recipe"), [("qwen3-moe", "fp8"), ("mixtral", "int4"), ("jamba", "int4")]
)
def test_quantized_experts_are_proved_and_run_by_their_kernels(
    name: str, recipe: str, architecture_pair: Pair, tmp_path: Path
) -> None:
    draft = architecture_pair(name)[1]
    candidate = apply(recipe, str(draft), tmp_path / "out", device="cpu")
    quantized = [n for n in candidate.tensors if n.endswith("weight_scale") and is_routed(n)]
    assert candidate.manifest is not None
    assert len(quantized) == 3 * 4 * (1 if name == "jamba" else 2)
    routers = [n for n in candidate.tensors if n.endswith((".gate.weight", ".router.weight"))]
    assert routers
    assert all(candidate.tensors[n].dtype == "BF16" for n in routers)
    if recipe == "fp8":  # no CPU kernel: see the kernels' own tests
        return
    native = load_native(stored_weights(candidate), torch.float32, CPU)
    replayed = load_model(candidate.path, torch.float32, CPU)
    ids = torch.arange(12).reshape(1, 12) * 17
    with torch.inference_mode():
        expected, found = replayed(ids).logits, native.model(input_ids=ids).logits
    assert (found - expected).norm() < 2**-8 * expected.norm()  # kernels may compute in bfloat16
    assert native.quantized_bytes >= native.promised_bytes * 0.9


def test_check_counts_experts_and_says_what_a_verification_reads(architecture_pair: Pair) -> None:
    target, draft = architecture_pair("qwen3-moe")
    found = check(str(target), str(draft))
    assert found.experts is not None
    assert "2 of 4" in found.experts
    outlooks = {each.recipe: each for each in found.outlooks}
    assert outlooks["int4"].summary is not None
    assert outlooks["int4"].summary["cost_ratio"] == pytest.approx(1.0)
    assert outlooks["nf4"].summary is None
    assert any("fp4, int8-bnb, nf4, nf4-double: bitsandbytes" in line for line in found.lines())


@pytest.mark.parametrize(
    ("name", "kept"), [("deepseek-v3", "latents"), ("mamba2", "no keys and values")]
)
def test_a_quantized_cache_is_refused_where_no_keys_and_values_are_kept(
    name: str, kept: str, architecture_pair: Pair
) -> None:
    with pytest.raises(RecipeError, match=kept):
        fit_recipe(load_recipe("kv-fp8"), open_checkpoint(architecture_pair(name)[1]), None)


def test_4_bit_rows_that_have_no_kernel_on_a_cpu_are_dequantized(
    architecture_pair: Pair, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    draft = architecture_pair("mamba2")[1]  # 552 rows, no multiple of 32
    candidate = apply("nf4", str(draft), tmp_path / "out", device="cpu")
    assert candidate.manifest is not None
    assert candidate.manifest["proof"]["num_quantized_modules"] == 4
