"""Draft heads in their published layouts: what is quantized, what is not, what is refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("llmcompressor")

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.heads.families import FAMILIES, engine_method
from quantdraft.checkpoints.heads.head import draft_head
from quantdraft.checkpoints.weights import TensorInfo
from quantdraft.engines.engine import LaunchPair
from quantdraft.engines.findings import Draft
from quantdraft.engines.registry import engine_named
from quantdraft.errors import CheckpointError, OptionError, QuantDraftError, RecipeError
from quantdraft.measure.models import open_models
from quantdraft.measure.settings import ModelSettings
from quantdraft.quantize.apply import applied_lines, apply
from quantdraft.quantize.fitting import recipe_for_head
from quantdraft.quantize.ledger import byte_ledger, project
from quantdraft.quantize.proof.proof import prove
from quantdraft.quantize.recipe import load_recipe
from quantdraft.workflows.export.export import ExportSettings, export
from quantdraft.workflows.export.heads import head_engine
from tests.stored_heads import DECODER, LAYOUTS, edit_head, write_head

Applied = Callable[[str, str], Checkpoint]
# What may be quantized, module by module; everything else stays. Written out by hand.
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
QKV = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")}
ALL = MLP | QKV | {"self_attn.o_proj"}
LATENT = {f"self_attn.{n}" for n in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")}
EXPERTS = {f"mlp.experts.{i}.{n}_proj" for i in range(4) for n in ("gate", "up", "down")}
QUANTIZED = {
    "eagle3": {f"midlayer.{name}" for name in ALL},
    "eagle3-speculators": {f"layers.0.{name}" for name in ALL},
    "dflash": {f"layers.{i}.{name}" for i in (0, 1) for name in ALL - QKV},
    "dspark": {f"layers.{i}.{name}" for i in (0, 1) for name in ALL - QKV},
    "mtp-qwen3-next": {f"mtp.layers.0.{name}" for name in ALL},
    "mtp-deepseek": {f"model.layers.61.{name}" for name in LATENT | EXPERTS},
}
PAIRS = [(layout, recipe) for layout in LAYOUTS for recipe in ("int4", "fp8", "int8")]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("heads")

    def get(layout: str) -> Path:
        path = root / layout
        return path if path.is_dir() else write_head(path, layout)

    return get


@pytest.fixture(scope="module")
def applied(heads: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Applied:
    root = tmp_path_factory.mktemp("applied")

    def get(layout: str, recipe: str) -> Checkpoint:
        path = root / f"{layout}-{recipe}"
        if path.is_dir():
            return open_checkpoint(path)
        return apply(load_recipe(recipe), str(heads(layout)), path, device="cpu")

    return get


@pytest.mark.parametrize(("layout", "recipe"), PAIRS)
def test_what_the_family_excludes_keeps_its_bytes_and_the_rest_is_quantized(
    heads: Callable[[str], Path], applied: Applied, layout: str, recipe: str
) -> None:
    before = load_file(heads(layout) / "model.safetensors")
    after = load_file(applied(layout, recipe).path / "model.safetensors")
    quantized = {
        name.removesuffix(".weight_scale") for name in after if name.endswith(".weight_scale")
    }
    assert quantized == QUANTIZED[layout]
    kept = {name for name in before if name.removesuffix(".weight") not in quantized}
    assert kept == {n for n in after if not any(n.startswith(f"{m}.weight") for m in quantized)}
    for name in kept:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_config_says_no_more_than_the_files(applied: Applied, layout: str) -> None:
    """Exclusions match under an engine's prefix too, and by the names of what it fuses."""
    config = applied(layout, "int4").config["quantization_config"]
    ignored = [name.removeprefix("re:") for name in config["ignore"]]
    assert [group["targets"] for group in config["config_groups"].values()] == [["Linear"]]

    def is_ignored(module: str) -> bool:
        return any(re.match(pattern, module) for pattern in ignored)

    for module in QUANTIZED[layout]:
        assert not is_ignored(module)
        assert not is_ignored(f"model.{module}")
    assert is_ignored("lm_head")
    assert is_ignored("model.fc")
    is_block = layout in {"dflash", "dspark"}
    assert is_ignored("model.layers.32.self_attn.qkv_proj") is is_block
    assert not is_ignored("model.layers.32.mlp.gate_up_proj")


def test_the_proof_says_that_logits_were_not_compared(applied: Applied) -> None:
    checkpoint = applied("eagle3", "int4")
    assert checkpoint.manifest is not None
    proof = checkpoint.manifest["proof"]
    assert checkpoint.manifest["draft_head"] == "eagle3"
    assert proof["num_quantized_modules"] == 7
    assert 0 < proof["largest_weight_error"] < proof["weight_error_limit"]
    assert proof["logit_distance"] is None
    assert proof["baseline_logit_distance"] is None
    assert "no forward pass without its target" in proof["without_logits"]
    assert any("logits were not compared" in line for line in applied_lines(checkpoint))


def test_eagle3s_ledger_by_hand(heads: Callable[[str], Path], applied: Applied) -> None:
    attention, mlp = 256 * 512 + 2 * 128 * 512 + 256 * 256, 3 * 512 * 256
    before = byte_ledger(open_checkpoint(heads("eagle3")))
    assert before.attention_bytes == 2 * attention
    assert before.mlp_bytes == 2 * mlp
    assert before.head_bytes == 2 * 128 * 256
    assert before.norms_bytes == 2 * 4 * 256
    assert before.other_bytes == 2 * 256 * 768  # fc; d2t and t2d are no weights
    assert before.embedding_row_bytes == 0
    assert before.kv_bytes_per_context_token == 2 * (128 + 128)

    after = byte_ledger(applied("eagle3", "int4"))
    assert after.attention_bytes == attention // 2 + attention // 128 * 2
    assert after.mlp_bytes == mlp // 2 + mlp // 128 * 2
    assert (after.head_bytes, after.other_bytes) == (before.head_bytes, before.other_bytes)
    assert after.kv_bytes_per_context_token == before.kv_bytes_per_context_token


def test_a_head_without_its_own_output_head_reads_the_targets(
    heads: Callable[[str], Path], applied: Applied
) -> None:
    before = byte_ledger(open_checkpoint(heads("dflash")))
    after = byte_ledger(applied("dflash", "fp8"))
    assert before.head_bytes == after.head_bytes == 2 * 512 * 256
    assert before.embedding_row_bytes == 0
    assert byte_ledger(open_checkpoint(heads("dspark"))).embedding_row_bytes == 2 * 32


def test_of_experts_a_step_reads_those_routed_to(heads: Callable[[str], Path]) -> None:
    ledger = byte_ledger(open_checkpoint(heads("mtp-deepseek")))
    assert ledger.mlp_bytes == 2 * (2 * 3 * 128 * 256 + 4 * 256)  # 2 of 4, and the router
    assert ledger.head_bytes == 2 * 512 * 256  # shared_head.head, a copy of the target's
    assert ledger.embedding_row_bytes == 2 * 256
    assert ledger.kv_bytes_per_context_token == 2 * 144


@pytest.mark.parametrize(("layout", "recipe"), PAIRS)
def test_the_projected_ledger_is_the_written_one(
    heads: Callable[[str], Path], applied: Applied, layout: str, recipe: str
) -> None:
    source = open_checkpoint(heads(layout))
    head = draft_head(source)
    assert head is not None
    promised = project(source, recipe_for_head(load_recipe(recipe), head))
    assert promised == byte_ledger(applied(layout, recipe))


def test_the_ledger_is_told_first_and_says_where_nothing_is_to_be_gained(tmp_path: Path) -> None:
    """78 % of the parameters are embedding and head, in kimi-k2.6's EAGLE-3; here 99 %."""
    path = write_head(tmp_path / "head", "eagle3-speculators")
    rows = 300_000
    decoder = {**DECODER, "model_type": "llama", "vocab_size": rows}
    tables = dict.fromkeys(("lm_head.weight", "embed_tokens.weight"), None)
    edit_head(
        path,
        {**tables, "lm_head.weight": torch.zeros(rows, 256, dtype=torch.bfloat16)}
        | {"d2t": None, "t2d": None},
        {"draft_vocab_size": rows, "transformer_layer_config": decoder},
    )
    told: list[str] = []

    def announce(line: str) -> None:
        assert not (tmp_path / "out").exists()
        told.append(line)

    apply(load_recipe("int8"), str(path), tmp_path / "out", device="cpu", announce=announce)
    assert len(told) == 1
    assert "99% are embedding and output head" in told[0]
    assert "It cannot pay" in told[0]


@pytest.mark.parametrize("recipe", ["int4-gptq", "fp8-static", "nf4", "kv-fp8"])
def test_a_recipe_that_runs_the_draft_is_refused_with_the_ones_that_do_not(
    heads: Callable[[str], Path], tmp_path: Path, recipe: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        apply(load_recipe(recipe), str(heads("eagle3")), tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    named = message.split("Data-free recipes: ")[1].rstrip(".").split(", ")
    assert {"fp8", "fp8-block", "int8", "int4", "int8-weight-only"} <= set(named)
    assert not any(load_recipe(name).needs_calibration for name in named)
    assert not (tmp_path / "out").exists()


def test_only_a_head_of_its_own_may_be_quantized(
    heads: Callable[[str], Path], applied: Applied, tmp_path: Path
) -> None:
    assert "lm_head.weight_packed" in applied("eagle3", "int4-head4").tensors
    with pytest.raises(RecipeError, match="shares the target's"):
        apply(load_recipe("int4-head4"), str(heads("dflash")), tmp_path / "out")


def test_fused_parts_share_nvfp4s_one_scale(applied: Applied) -> None:
    """Engines stack q, k and v, and gate and up: a scale of the whole matrix must be common."""
    tensors = load_file(applied("eagle3", "nvfp4a16").path / "model.safetensors")
    for parts in (QKV, MLP - {"mlp.down_proj"}):
        scales = {tensors[f"midlayer.{name}.weight_global_scale"].item() for name in parts}
        assert len(scales) == 1


def test_identity_is_a_copy(heads: Callable[[str], Path], tmp_path: Path) -> None:
    copy = apply(load_recipe("identity"), str(heads("dspark")), tmp_path / "copy", device="cpu")
    assert byte_ledger(copy) == byte_ledger(open_checkpoint(heads("dspark")))
    assert any("nothing quantized; logits were not" in line for line in applied_lines(copy))


def test_a_plain_draft_and_a_target_with_mtp_inside_are_no_heads(tmp_path: Path) -> None:
    config, shapes = LAYOUTS["mtp-qwen3-next"]
    names = [*shapes, "model.layers.0.self_attn.q_proj.weight"]
    tensors = {name: TensorInfo("BF16", (256, 256), "model.safetensors") for name in names}
    assert draft_head(Checkpoint(tmp_path, config, tensors)) is None
    plain = {name: info for name, info in tensors.items() if not name.startswith("mtp.")}
    assert draft_head(Checkpoint(tmp_path, {"architectures": ["LlamaForCausalLM"]}, plain)) is None


def test_an_eagle3_head_is_known_by_its_tensors_alone(heads: Callable[[str], Path]) -> None:
    """Early heads call themselves LlamaForCausalLM."""
    found = open_checkpoint(heads("eagle3"))
    plain = {**found.config, "architectures": ["LlamaForCausalLM"]}
    head = draft_head(Checkpoint(found.path, plain, found.tensors))
    assert head is not None
    assert head.family is FAMILIES["eagle3"]


def test_a_head_without_its_fc_is_refused(tmp_path: Path) -> None:
    path = write_head(tmp_path / "head", "dflash")
    tensors = load_file(path / "model.safetensors")
    del tensors["fc.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"DFlash.*no tensor is named like 'fc"):
        apply(load_recipe("int4"), str(path), tmp_path / "out")


def test_a_truncated_head_is_refused(tmp_path: Path) -> None:
    path = write_head(tmp_path / "head", "eagle3")
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        apply(load_recipe("int4"), str(path), tmp_path / "out")


def test_stacked_experts_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write_head(tmp_path / "head", "mtp-qwen3-next")
    tensors = load_file(path / "model.safetensors")
    stacked = torch.zeros(4, 256, 256, dtype=torch.bfloat16)
    tensors["mtp.layers.0.mlp.experts.gate_up_proj"] = stacked
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(RecipeError, match="4 experts in one tensor"):
        apply(load_recipe("int4"), str(path), tmp_path / "out")


def _shift_ids(tensors: dict[str, Any]) -> None:
    tensors["d2t"] = tensors["d2t"] + 1


def _flip_norm(tensors: dict[str, Any]) -> None:
    tensors["norm.weight"][0] += 1


def _double_scales(tensors: dict[str, Any]) -> None:
    tensors["midlayer.mlp.down_proj.weight_scale"] *= 2


def _break_scale(tensors: dict[str, Any]) -> None:
    tensors["midlayer.mlp.down_proj.weight_scale"][0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shift_ids, "'d2t' should be unchanged"),
        (_flip_norm, "'norm.weight' should be unchanged"),
        (_double_scales, "down_proj' is .* away"),
        (_break_scale, "no scale"),
    ],
)
def test_the_proof_sees_what_was_written_wrongly(
    heads: Callable[[str], Path],
    applied: Applied,
    tmp_path: Path,
    damage: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    good, source = applied("eagle3", "int4"), open_checkpoint(heads("eagle3"))
    head = draft_head(source)
    assert head is not None
    recipe = recipe_for_head(load_recipe("int4"), head)
    assert prove(recipe, source, good, torch.device("cpu")).num_quantized_modules == 7
    tensors = load_file(good.path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(good.config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        prove(recipe, source, open_checkpoint(tmp_path), torch.device("cpu"))


def test_a_quantized_exclusion_is_refused(heads: Callable[[str], Path], tmp_path: Path) -> None:
    """A recipe without the family's exclusions quantizes fc: the proof must not let it pass."""
    from quantdraft.quantize.backends import BACKENDS
    from quantdraft.quantize.backends.job import QuantizationJob

    source, recipe = open_checkpoint(heads("eagle3")), load_recipe("int8")
    job = QuantizationJob(recipe, source, tmp_path, "cpu", (), lambda _step: None)
    BACKENDS["llmcompressor"](job)
    with pytest.raises(CheckpointError, match="'fc' is quantized, and engines read it raw"):
        prove(recipe, source, open_checkpoint(tmp_path), torch.device("cpu"))


def test_evaluate_says_why_a_head_is_not_replayed(applied: Applied) -> None:
    candidate = applied("dflash", "int4").path
    with pytest.raises(OptionError) as caught:
        open_models(ModelSettings(str(candidate), target="org/target"))
    assert "cannot be replayed without the target's hidden states" in str(caught.value)
    assert "\n" not in str(caught.value)


METHODS = {
    "eagle3": ("eagle3", "EAGLE3"),
    "eagle3-speculators": ("eagle3", "EAGLE3"),
    "dflash": ("dflash", "DFLASH"),
    "dspark": ("dspark", "DSPARK"),
    "mtp-qwen3-next": ("mtp", "EAGLE"),
    "mtp-deepseek": ("mtp", "EAGLE"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_engine_is_told_its_own_method(applied: Applied, layout: str) -> None:
    checkpoint = applied(layout, "int4")
    head = draft_head(checkpoint)
    assert head is not None
    pair = LaunchPair("org/T", Path("/srv/head"), 4, quantization=checkpoint.quantization or {})
    method, algorithm = METHODS[layout]
    words = shlex.split(head_engine(head, engine_named("vllm")).launch(pair))
    assert json.loads(words[-1]) == {
        "method": method,
        "model": "/srv/head",
        "num_speculative_tokens": 4,
    }
    words = shlex.split(head_engine(head, engine_named("sglang")).launch(pair))
    assert words[words.index("--speculative-algorithm") + 1] == algorithm
    flag = words.index("--speculative-draft-model-quantization")
    assert words[flag + 1] == "compressed-tensors"


def test_block_sizes_count_as_each_family_counts_them(applied: Applied) -> None:
    for layout, flag, size in (
        ("dflash", "--speculative-dflash-block-size", "5"),  # its block holds the known token
        ("dspark", "--speculative-dspark-block-size", "4"),
        ("eagle3", "--speculative-num-steps", "4"),
    ):
        head = draft_head(applied(layout, "int4"))
        assert head is not None
        words = shlex.split(
            head_engine(head, engine_named("sglang")).launch(LaunchPair("T", Path("/d"), 4))
        )
        assert words[words.index(flag) + 1] == size


def test_an_engine_that_serves_no_heads_is_refused() -> None:
    with pytest.raises(OptionError, match="does not serve EAGLE-3 heads"):
        engine_method("eagle3", "transformers")


def test_what_engines_would_misread_is_found(applied: Applied) -> None:
    def messages(layout: str, engine: str, path: str, **target: Any) -> str:
        checkpoint = applied(layout, "int4")
        head = draft_head(checkpoint)
        assert head is not None
        found = head_engine(head, engine_named(engine)).check(
            Draft(Path(path), checkpoint.config, target)
        )
        return " | ".join(f"{each.severity}: {each.message}" for each in found)

    assert "contains 'dflash'" in messages("mtp-deepseek", "vllm", "/srv/dflash-mtp")
    assert "contains" not in messages("dflash", "vllm", "/srv/dflash-mtp")
    assert "hidden_size is 256" in messages("eagle3", "vllm", "/srv/x", hidden_size=512)
    assert "'midlayer'" in messages("eagle3-speculators", "sglang", "/srv/x")
    assert "'midlayer'" not in messages("eagle3", "sglang", "/srv/x")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_export_of_a_head_needs_no_tokenizer(applied: Applied, tmp_path: Path, engine: str) -> None:
    checkpoint = applied("eagle3", "int4")
    export(
        ExportSettings(
            checkpoint.path, engine, tmp_path / "out", target="org/T", num_speculative_tokens=3
        )
    )
    line = (tmp_path / "out" / "launch.sh").read_text(encoding="utf-8")
    assert "eagle3" in line.lower()
    assert '"model":"."' in line or "--speculative-draft-model-path . " in line
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("a draft head is not replayed") == 2
    assert "quantdraft evaluate" not in card
    with pytest.raises(QuantDraftError):
        export(ExportSettings(checkpoint.path, "transformers", tmp_path / "no", target="org/T"))
