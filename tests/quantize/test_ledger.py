"""The byte ledger against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.quantize.ledger import byte_ledger, head_options, part_of, project
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record.step_bytes import (
    Ledger,
    ceiling,
    estimated_cost_ratio,
    head_advice,
    largest_speedup,
    ledger_summary,
)
from tests.stored import llama_tensors, write_checkpoint

ATTENTION = 256 * 256 * 2 + 128 * 256 * 2  # weights: q and o, k and v
MLP = 3 * 768 * 256
HEAD = 512 * 256


@pytest.fixture
def draft(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path / "draft"))


def test_plain_ledger_counts_a_tied_head_once_and_one_embedding_row(draft: Checkpoint) -> None:
    assert byte_ledger(draft) == Ledger(
        attention_bytes=2 * ATTENTION,
        mlp_bytes=2 * MLP,
        head_bytes=2 * HEAD,
        embedding_row_bytes=2 * 256,
        norms_bytes=2 * 2 * 256,
        other_bytes=0,
        kv_bytes_per_context_token=2 * 1 * 2 * 64 * 2,
    )


def test_untied_head_costs_the_same_step(draft: Checkpoint, tmp_path: Path) -> None:
    tensors = llama_tensors() | {"lm_head.weight": ("BF16", (512, 256))}
    untied = open_checkpoint(write_checkpoint(tmp_path / "untied", tensors))
    assert byte_ledger(untied) == byte_ledger(draft)


def test_int4_takes_half_a_byte_a_weight_and_two_bytes_a_group(draft: Checkpoint) -> None:
    ledger = project(draft, load_recipe("int4"))
    assert ledger.attention_bytes == ATTENTION // 2 + 2 * ATTENTION // 128
    assert ledger.mlp_bytes == MLP // 2 + 2 * MLP // 128
    assert ledger.head_bytes == 2 * HEAD


@pytest.mark.parametrize("name", ["fp8", "int8", "int8-weight-only"])
def test_8_bit_takes_a_byte_a_weight_and_two_bytes_a_row(draft: Checkpoint, name: str) -> None:
    ledger = project(draft, load_recipe(name))
    assert ledger.attention_bytes == ATTENTION + 2 * (256 + 128 + 128 + 256)
    assert ledger.mlp_bytes == MLP + 2 * (768 + 768 + 256)


def test_fp8_block_takes_two_bytes_a_block(draft: Checkpoint) -> None:
    ledger = project(draft, load_recipe("fp8-block"))
    assert ledger.mlp_bytes == MLP + 2 * 3 * (768 // 128) * (256 // 128)


def test_quantized_tied_head_is_counted_beside_the_embedding_row(draft: Checkpoint) -> None:
    eight, four = (project(draft, load_recipe(n)) for n in ("int4-head8", "int4-head4"))
    assert eight.head_bytes == HEAD + 2 * 512
    assert four.head_bytes == HEAD // 2 + 2 * HEAD // 128
    assert eight.embedding_row_bytes == four.embedding_row_bytes == 512


def test_identity_changes_nothing(draft: Checkpoint) -> None:
    assert project(draft, load_recipe("identity")) == byte_ledger(draft)


def test_quantized_checkpoint_has_the_ledger_that_was_projected(
    draft: Checkpoint, tmp_path: Path
) -> None:
    stored = {
        "model.layers.0.self_attn.q_proj.weight_packed": ("I32", (256, 32)),
        "model.layers.0.self_attn.q_proj.weight_scale": ("BF16", (256, 2)),
        "model.layers.0.self_attn.q_proj.weight_shape": ("I64", (2,)),
    }
    only_q = {n: t for n, t in llama_tensors().items() if "q_proj" in n or "embed" in n}
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain", only_q))
    embedding = {"model.embed_tokens.weight": ("BF16", (512, 256))}
    quantized = open_checkpoint(write_checkpoint(tmp_path / "int4", embedding | stored))
    assert byte_ledger(quantized) == project(plain, load_recipe("int4"))
    assert byte_ledger(quantized).attention_bytes == 256 * 128 + 256 * 2 * 2


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight_packed", "head"),
        ("model.layers.3.self_attn.q_proj.weight_scale", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("model.layers.3.mlp.down_proj.weight", "mlp"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("fc.weight", "other"),
    ],
)
def test_parts_by_name(name: str, part: str) -> None:
    assert part_of(name) == part


def test_context_adds_to_both_sides_of_the_ceiling(draft: Checkpoint) -> None:
    before, after = byte_ledger(draft), project(draft, load_recipe("int4"))
    expected = (before.weight_bytes + 512 * 1000) / (after.weight_bytes + 512 * 1000)
    assert ceiling(before, after, 1000) == pytest.approx(expected)
    assert ceiling(before, after, 1000) < ceiling(before, after)


def test_largest_speedup_is_the_speed_equation_at_equal_acceptance() -> None:
    # k·t_d + t_v = 4·0.1 + 1 = 1.4 before, 4·0.1/2 + 1 = 1.2 after
    assert largest_speedup(2.0, 4, 0.1) == pytest.approx(1.4 / 1.2)
    assert largest_speedup(1.0, 4, 0.1) == 1.0
    assert largest_speedup(3.0, 10_000_000, 1.0) == pytest.approx(3.0, rel=1e-5)


def test_summary_says_when_a_recipe_cannot_pay(draft: Checkpoint) -> None:
    before, after = byte_ledger(draft), project(draft, load_recipe("int4"))
    cheap = ledger_summary(before, after, num_speculative_tokens=4, cost_ratio=0.005)
    dear = ledger_summary(before, after, num_speculative_tokens=4, cost_ratio=0.2)
    assert not cheap["can_pay"]
    assert "cannot pay" in cheap["sentence"]
    assert dear["can_pay"]
    assert "cannot pay" not in dear["sentence"]
    same = ledger_summary(before, before)
    assert not same["can_pay"]
    assert same["ceiling"] == 1.0
    assert same["largest_speedup"] is None


def test_cost_ratio_from_bytes(draft: Checkpoint) -> None:
    assert estimated_cost_ratio(byte_ledger(draft), byte_ledger(draft)) == 1.0


def test_head_lever_is_decided_by_bytes(draft: Checkpoint) -> None:
    keep, eight, four = head_options(draft, load_recipe("int4"))
    assert (keep.lever, eight.lever, four.lever) == ("keep", "8-bit", "4-bit")
    assert keep.head_bytes == 2 * HEAD
    assert keep.step_bytes - eight.step_bytes == 2 * HEAD - (HEAD + 2 * 512)
    assert [o.has_one_group for o in (keep, eight, four)] == [True, False, True]
    advice = head_advice((keep, eight, four))
    assert "worth trying" in advice
    assert "8-bit needs a second group" in advice


def test_small_head_is_kept(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"model.embed_tokens.weight": ("BF16", (16, 256))}
    draft = open_checkpoint(write_checkpoint(tmp_path, tensors))
    assert "keep it" in head_advice(head_options(draft, load_recipe("int4")))


def test_a_cache_of_8_bits_takes_half_of_16(draft: Checkpoint, tmp_path: Path) -> None:
    in_16_bits = byte_ledger(draft).kv_bytes_per_context_token
    assert in_16_bits == 2 * 1 * 2 * 64 * 2  # keys and values, layers, heads, dim, bytes
    halved = project(draft, load_recipe("kv-fp8"))
    assert halved.kv_bytes_per_context_token == in_16_bits // 2
    for num_bits in (8, 16):
        path = write_checkpoint(tmp_path / f"kv{num_bits}")
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"kv_cache_scheme": {"num_bits": num_bits}}
        (path / "config.json").write_text(json.dumps(config))
        stored = byte_ledger(open_checkpoint(path))
        assert stored.kv_bytes_per_context_token == in_16_bits * num_bits // 16
        assert stored.step_bytes(100) - stored.weight_bytes == 100 * in_16_bits * num_bits // 16


def test_a_float32_cache_takes_twice_16_bits(tmp_path: Path) -> None:
    wide = open_checkpoint(write_checkpoint(tmp_path / "wide", llama_tensors("F32")))
    assert byte_ledger(wide).kv_bytes_per_context_token == 2 * 1 * 2 * 64 * 4
