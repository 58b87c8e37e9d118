"""What each back end leaves behind, and that what is wrong about it does not pass."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import read_tensor  # noqa: E402
from quantdraft.checkpoints.weights import INDEX_FILE, weight_files  # noqa: E402
from quantdraft.errors import CheckpointError, MissingPackageError, RecipeError  # noqa: E402
from quantdraft.quantize import apply as applying  # noqa: E402
from quantdraft.quantize.apply import apply  # noqa: E402
from quantdraft.quantize.backends import llmcompressor as llmcompressor_backend  # noqa: E402
from quantdraft.quantize.backends.config_groups import quantization_config  # noqa: E402
from quantdraft.quantize.backends.job import QuantizationJob  # noqa: E402
from quantdraft.quantize.backends.packages import missing_packages, require_packages  # noqa: E402
from quantdraft.quantize.calibration import calibration_data  # noqa: E402
from quantdraft.quantize.proof.proof import prove  # noqa: E402
from quantdraft.quantize.recipe import Recipe, load_recipe  # noqa: E402
from quantdraft.quantize.staging import stage_source  # noqa: E402
from tests.conftest import Pair  # noqa: E402
from tests.quantize.test_apply import apply_to, write_traffic  # noqa: E402

CPU = torch.device("cpu")
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traffic(tmp_path_factory.mktemp("traffic") / "traffic.jsonl", vocab_size=512)


def made(
    name: str, pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    missing = missing_packages(load_recipe(name).backend)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    return apply_to(pair.draft, name, tmp_path_factory.mktemp("made") / name, traffic)


@pytest.fixture(scope="module")
def gptq(tiny_pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made("int4-gptq-gptqmodel", tiny_pair, traffic, tmp_path_factory)


@pytest.fixture(scope="module")
def nf4(tiny_pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made("nf4", tiny_pair, traffic, tmp_path_factory)


def changed(checkpoint: Checkpoint, directory: Path, name: str, values: torch.Tensor) -> Checkpoint:
    """A copy of the checkpoint with one tensor replaced."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint.path, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = values
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(directory)


# --- gptqmodel ------------------------------------------------------------------------------------


def test_gptq_is_saved_as_auto_gptq_would(gptq: Checkpoint) -> None:
    quantization = gptq.quantization
    assert quantization is not None
    assert quantization["quant_method"] == "gptq"
    assert quantization["checkpoint_format"] == "gptq"
    zeros = read_tensor(gptq, f"{Q_PROJ}.qzeros")
    assert (zeros == 0x77777777).all()  # v1 holds 8 - 1 in each field


def test_gptq_config_holds_no_calibration_text(gptq: Checkpoint) -> None:
    assert not {"dataset", "tokenizer"} & (gptq.quantization or {}).keys()


def test_a_directory_of_auto_gptq_is_a_candidate_and_is_exported(
    gptq: Checkpoint, tiny_pair: Pair, tmp_path: Path
) -> None:
    """Its own names for weights and config; the same logits, and today's layout once exported."""
    from quantdraft.engines.native.model import load_native
    from quantdraft.engines.native.weight_sources import stored_weights
    from quantdraft.quantize.proof.proof import probe_logits
    from quantdraft.workflows.export.export import ExportSettings, export

    old = shutil.copytree(gptq.path, tmp_path / "old")
    (old / "quantdraft.json").unlink()
    (old / "model.safetensors").rename(old / "gptq_model-4bit-128g.safetensors")
    config = json.loads((old / "config.json").read_text())
    section = config.pop("quantization_config")
    (old / "config.json").write_text(json.dumps(config))
    plain = {key: section[key] for key in ("bits", "group_size", "sym", "desc_act")}
    (old / "quantize_config.json").write_text(json.dumps(plain))
    served = tmp_path / "served"
    export(ExportSettings(old, "vllm", served, target=str(tiny_pair.target)))
    expected = probe_logits(gptq, CPU)
    for directory in (old, served):
        found = open_checkpoint(directory)
        assert (found.quantization or {})["quant_method"] == "gptq"
        assert torch.equal(probe_logits(found, CPU), expected)
        assert load_native(stored_weights(found), torch.float32, CPU).is_own
    assert (served / "model.safetensors").is_file()


# --- bitsandbytes ---------------------------------------------------------------------------------


def test_nf4_keeps_the_head_and_reads_back(nf4: Checkpoint) -> None:
    assert nf4.tensors["model.embed_tokens.weight"].dtype == "BF16"
    assert nf4.tensors[f"{Q_PROJ}.weight"].dtype == "U8"
    assert not any(key.startswith("_load") for key in nf4.quantization or {})


# --- llm-compressor -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvfp4(tiny_pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return made("nvfp4", tiny_pair, traffic, tmp_path_factory)


def test_nvfp4_keeps_its_global_scales_in_float32(nvfp4: Checkpoint) -> None:
    for name in ("weight_global_scale", "input_global_scale"):
        assert nvfp4.tensors[f"{Q_PROJ}.{name}"].dtype == "F32"


def test_scale_of_the_inputs_that_is_no_scale_is_caught(
    nvfp4: Checkpoint, tiny_pair: Pair, tmp_path: Path
) -> None:
    zero = changed(nvfp4, tmp_path / "zero", f"{Q_PROJ}.input_global_scale", torch.zeros(1))
    with pytest.raises(CheckpointError, match="a scale is above 0"):
        prove(load_recipe("nvfp4"), open_checkpoint(tiny_pair.draft), zero, CPU)


def test_changed_norm_is_caught(nvfp4: Checkpoint, tiny_pair: Pair, tmp_path: Path) -> None:
    name = "model.norm.weight"
    other = changed(nvfp4, tmp_path / "other", name, 2 * read_tensor(nvfp4, name))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' should be unchanged"):
        prove(load_recipe("nvfp4"), open_checkpoint(tiny_pair.draft), other, CPU)


def test_scale_that_left_one_layer_and_not_reached_the_next_is_caught(
    tiny_pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """SmoothQuant with its norms put back: each weight is a fair rounding, the function is not."""
    smooth = made("int8-smoothquant", tiny_pair, traffic, tmp_path_factory)
    source, broken = open_checkpoint(tiny_pair.draft), smooth
    for index in range(2):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{index}.{norm}.weight"
            before, after = read_tensor(source, name), read_tensor(smooth, name)
            assert not torch.equal(before, after)
            directory = tmp_path / f"{index}-{norm}"
            broken = changed(broken, directory, name, before)
    with pytest.raises(CheckpointError, match="what was scaled out of one layer"):
        prove(load_recipe("int8-smoothquant"), source, broken, CPU)


def test_cache_scales_are_promised_and_halve_the_cache(
    tiny_pair: Pair, traffic: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from quantdraft.quantize.ledger import byte_ledger

    cache = made("kv-fp8", tiny_pair, traffic, tmp_path_factory)
    assert "model.layers.0.self_attn.k_scale" in cache.tensors
    before, after = byte_ledger(open_checkpoint(tiny_pair.draft)), byte_ledger(cache)
    assert before.kv_bytes_per_context_token == 2 * after.kv_bytes_per_context_token
    assert cache.manifest is not None
    assert cache.manifest["proof"]["baseline_logit_distance"] > 0


def verbatim(modifiers: dict[str, dict[str, object]]) -> Recipe:
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor", "modifiers": modifiers}
    return Recipe.model_validate(plain | {"calibration": {"source": "traffic"}})


def test_verbatim_modifiers_are_run_and_proven(
    tiny_pair: Pair, traffic: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llmcompressor")
    body = {"targets": "Linear", "scheme": "W8A8", "ignore": ["lm_head"]}
    recipe = verbatim({"SmoothQuantModifier": {}, "QuantizationModifier": body})
    out = tmp_path / "out"
    checkpoint = apply(recipe, str(tiny_pair.draft), out, calibration=traffic, device="cpu")
    assert checkpoint.manifest is not None
    assert checkpoint.manifest["proof"]["num_quantized_modules"] == 14
    assert (checkpoint.quantization or {})["ignore"] == [r"re:(.*\.)?lm_head$"]


def test_modifier_that_does_not_exist_is_one_line(
    tiny_pair: Pair, traffic: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llmcompressor")
    recipe, out = verbatim({"GPTQModifier": {"no_such_setting": 1}}), tmp_path / "out"
    with pytest.raises(RecipeError, match="no_such_setting") as caught:
        apply(recipe, str(tiny_pair.draft), out, calibration=traffic, device="cpu")
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("name", ["int4", "int8-head8", "fp8-block", "mxfp4", "nvfp4a16"])
def test_tensors_at_a_time_give_the_bytes_of_the_whole_file(
    tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    """llm-compressor's own `model_free_ptq` reads a file at once, and writes the same."""
    llmcompressor = pytest.importorskip("llmcompressor")
    recipe, source = load_recipe(name), open_checkpoint(tiny_pair.draft)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    with stage_source(recipe, source, tmp_path / "out") as staged:
        llmcompressor_backend.quantize(
            QuantizationJob(recipe, staged, ours, "cpu", (), lambda _message: None)
        )
        config = quantization_config(recipe, staged.tensors)
        llmcompressor.model_free_ptq(staged.path, theirs, config=config, device="cpu")
    assert weight_files(ours) == weight_files(theirs)
    for file in weight_files(ours):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    for file in ("config.json", INDEX_FILE):
        assert json.loads((ours / file).read_text()) == json.loads((theirs / file).read_text())


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int4-gptq", "int8-smoothquant", "int4-gptq-gptqmodel"])
def test_back_end_sees_the_samples_and_nothing_else(
    tiny_pair: Pair, traffic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What reaches the embedding while a recipe is applied; the proof's own passes left out."""
    recipe, seen = load_recipe(name), set()
    if missing_packages(recipe.backend):
        pytest.skip("back end absent")
    lookup = torch.nn.functional.embedding

    def recorded(ids: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if ids.device.type != "meta" and ids.shape[-1] > 1:
            seen.update(tuple(row) for row in ids.tolist())
        return lookup(ids, *rest, **options)

    class Enough(Exception):
        """Raised in place of the proof."""

    def stop(*_: Any) -> None:
        raise Enough

    monkeypatch.setattr(torch.nn.functional, "embedding", recorded)
    monkeypatch.setattr(applying, "prove", stop)
    with pytest.raises(Enough):
        apply(recipe, str(tiny_pair.draft), tmp_path / "out", calibration=traffic, device="cpu")
    data = calibration_data(recipe, open_checkpoint(tiny_pair.draft), traffic)
    assert seen == set(data.samples)


# --- packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "package", "extra"),
    [
        ("nf4", "bitsandbytes", "bitsandbytes"),
        ("int4-gptq-gptqmodel", "gptqmodel", "gptqmodel"),
        ("int4-awq", "llmcompressor", "llmcompressor"),
    ],
)
def test_missing_package_names_recipe_and_extra(
    monkeypatch: pytest.MonkeyPatch, recipe: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        require_packages(load_recipe(recipe))
    command = f"pip install 'quantdraft[{extra}]'"
    assert str(caught.value) == f"recipe {recipe!r} needs the package {package!r}: {command}"
    assert package in missing_packages(load_recipe(recipe).backend)


@pytest.mark.parametrize(
    ("name", "num_groups", "targets"),
    [
        ("int8", 1, ["Linear"]),
        ("int8-head8", 1, ["Linear", r"re:(.*\.)?lm_head$"]),
        ("int4-head8", 2, ["Linear"]),
    ],
)
def test_a_quantized_head_is_targeted_by_name(name: str, num_groups: int, targets: list[str]):
    """vLLM looks a head's scheme up by its name: 'Linear' does not cover it."""
    groups = quantization_config(load_recipe(name), {}).config_groups
    assert len(groups) == num_groups
    assert groups["group_0"].targets == targets
