"""What each back end leaves behind, and that what is wrong about it does not pass."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from quantdraft.errors import CheckpointError, MissingPackageError, RecipeError  # noqa: E402
from quantdraft.proof import claims_but_not_quantized, prove  # noqa: E402
from quantdraft.quantization import apply  # noqa: E402
from quantdraft.quantizers.packages import missing_packages, require_packages  # noqa: E402
from quantdraft.recipe import Recipe, load_recipe  # noqa: E402
from quantdraft.unpacking import read_tensor  # noqa: E402
from tests.conftest import Pair  # noqa: E402
from tests.test_quantization import apply_to, write_traffic  # noqa: E402

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


def test_v1_weights_labelled_v2_are_caught(gptq: Checkpoint, tiny_pair: Pair, tmp_path) -> None:
    """What optimum's own writer leaves: every zero point off by one."""
    shutil.copytree(gptq.path, tmp_path / "mislabelled")
    path = tmp_path / "mislabelled" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= {"checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    path.write_text(json.dumps(config))
    mislabelled, source = open_checkpoint(path.parent), open_checkpoint(tiny_pair.draft)
    with pytest.raises(CheckpointError, match=r"off to one side .* zero points are corrupt"):
        prove(load_recipe("int4-gptq-gptqmodel"), source, mislabelled, CPU)


# --- bitsandbytes ---------------------------------------------------------------------------------


def test_nf4_keeps_the_head_and_reads_back(nf4: Checkpoint) -> None:
    assert nf4.tensors["model.embed_tokens.weight"].dtype == "BF16"
    assert nf4.tensors[f"{Q_PROJ}.weight"].dtype == "U8"
    assert not any(key.startswith("_load") for key in nf4.quantization or {})


def test_swapped_scales_are_caught(nf4: Checkpoint, tiny_pair: Pair, tmp_path: Path) -> None:
    name = f"{Q_PROJ}.weight.absmax"
    swapped = changed(nf4, tmp_path / "swapped", name, 10 * read_tensor(nf4, name))
    with pytest.raises(CheckpointError, match=r"q_proj.*corrupt"):
        prove(load_recipe("nf4"), open_checkpoint(tiny_pair.draft), swapped, CPU)


def test_dense_weights_under_a_bitsandbytes_config_are_caught(
    nf4: Checkpoint, tiny_pair: Pair, tmp_path: Path
) -> None:
    shutil.copytree(tiny_pair.draft, tmp_path / "liar")
    shutil.copyfile(nf4.path / "config.json", tmp_path / "liar" / "config.json")
    problem = claims_but_not_quantized(open_checkpoint(tmp_path / "liar"))
    assert "14 layers hold BF16 weights" in (problem or "")


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
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' was to stay"):
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
    from quantdraft.ledger import byte_ledger

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
    recipe, out = verbatim({"NoModifier": {}}), tmp_path / "out"
    with pytest.raises(RecipeError, match="NoModifier") as caught:
        apply(recipe, str(tiny_pair.draft), out, calibration=traffic, device="cpu")
    assert "\n" not in str(caught.value)
    assert not out.exists()


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
