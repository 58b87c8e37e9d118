"""apply, end to end: every bundled recipe, its proof, its failures; nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llmcompressor")

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.tensors.unpacking import quantized_modules
from quantdraft.common.files import file_sha256
from quantdraft.errors import (
    CheckpointError,
    MissingPackageError,
    OptionError,
    OutputError,
    OutputExistsError,
    RecipeError,
    TrafficError,
)
from quantdraft.quantize import apply as applying
from quantdraft.quantize.apply import applied_lines, apply
from quantdraft.quantize.backends.packages import missing_packages
from quantdraft.quantize.ledger import byte_ledger, project, projected_tensors
from quantdraft.quantize.proof.proof import prove
from quantdraft.quantize.proof.tensors import require_promised_tensors
from quantdraft.quantize.proof.weights import ComparedWeights
from quantdraft.quantize.recipe import Recipe, bundled_recipe_names, load_recipe
from tests.conftest import Pair

Applied = Callable[[str], Checkpoint]
SLOW = {"int4-autoround"}  # learns for minutes without an accelerator
# One of each way to a checkpoint; AutoRound is too slow to make twice.
REPEATED = ["int4", "int4-gptq", "fp8-static", "nvfp4", "int8-smoothquant", "mxfp8", "nf4-double"]
REPEATED += ["int4-awq", "int4-gptq-gptqmodel"]


def marked(names: list[str]) -> list[Any]:
    """Recipes to try; the slow ones marked, those of absent back ends skipped."""
    return [pytest.param(name, marks=_marks(name)) for name in names]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    missing = missing_packages(load_recipe(name).backend)
    absent = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
    return [absent, pytest.mark.slow] if name in SLOW else [absent]


@pytest.fixture(scope="module")
def draft(tiny_pair: Pair) -> Path:
    return tiny_pair.draft


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traffic(tmp_path_factory.mktemp("traffic") / "traffic.jsonl", vocab_size=512)


@pytest.fixture(scope="module")
def applied(draft: Path, traffic: Path, tmp_path_factory: pytest.TempPathFactory) -> Applied:
    """The draft under a bundled recipe, made once."""
    root, made = tmp_path_factory.mktemp("applied"), {}

    def make(name: str) -> Checkpoint:
        if name not in made:
            made[name] = apply_to(draft, name, root / name, traffic)
        return made[name]

    return make


def recipe_named(name: str) -> Recipe:
    """The bundled recipe; AutoRound's with a few steps, which decide its quality and its time."""
    recipe = load_recipe(name)
    return recipe.model_copy(update={"iterations": 5}) if recipe.method == "autoround" else recipe


def apply_to(draft: Path, name: str, output: Path, traffic: Path) -> Checkpoint:
    recipe = recipe_named(name)
    calibration = traffic if recipe.needs_calibration else None
    return apply(recipe, str(draft), output, calibration=calibration, device="cpu")


def write_traffic(path: Path, vocab_size: int) -> Path:
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    lines = [{"prompt_token_ids": ids(8), "response_token_ids": ids(40)} for _ in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", marked(bundled_recipe_names()))
def test_recipe_gives_what_it_promised(applied: Applied, draft: Path, name: str) -> None:
    recipe, source, checkpoint = recipe_named(name), open_checkpoint(draft), applied(name)
    manifest = checkpoint.manifest
    assert manifest is not None
    assert manifest["recipe"] == json.loads(recipe.model_dump_json())
    assert byte_ledger(checkpoint) == project(source, recipe)
    assert claims_but_not_quantized(checkpoint) is None
    num_expected = 0 if recipe.scheme == "none" else 14 + (recipe.lm_head != "keep")
    assert manifest["proof"]["num_quantized_modules"] == num_expected
    for file, digest in manifest["sha256"].items():
        assert file_sha256(checkpoint.path / file) == digest
    assert {"tokenizer.json", "config.json"} <= set(manifest["sha256"])
    assert "Written:" in applied_lines(checkpoint)[0]


@pytest.mark.parametrize("name", ["int4", "int4-gptq-head8", "int4-head8", "nvfp4", "w4afp8"])
def test_config_has_un_anchored_ignores_and_linear_targets(applied: Applied, name: str) -> None:
    quantization = applied(name).quantization
    assert quantization is not None
    groups = quantization["config_groups"]
    assert all(pattern.startswith("re:") for pattern in quantization["ignore"])
    assert groups["group_0"]["targets"] == ["Linear"]
    assert len(groups) == (2 if name.endswith("head8") else 1)


def test_distance_to_own_dequantized_weights_is_rounding_alone(applied: Applied) -> None:
    for name in ("int4", "int4-gptq", "int8-weight-only"):
        manifest = applied(name).manifest
        assert manifest is not None
        assert manifest["proof"]["logit_distance"] < 1e-3
        assert manifest["proof"]["baseline_logit_distance"] > 10 * 1e-3


def test_identity_is_a_copy(applied: Applied, draft: Path) -> None:
    copy = applied("identity").path
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert file_sha256(copy / name) == file_sha256(draft / name)


@pytest.mark.parametrize("name", marked(REPEATED))
def test_same_inputs_give_the_same_bytes(
    applied: Applied, draft: Path, traffic: Path, tmp_path: Path, name: str
) -> None:
    again = apply_to(draft, name, tmp_path / "again", traffic)
    assert again.manifest == applied(name).manifest
    for file in ("model.safetensors", "quantdraft.json"):
        assert file_sha256(again.path / file) == file_sha256(applied(name).path / file)


def test_sharded_draft_gives_the_same_weights(
    applied: Applied, draft: Path, traffic: Path, tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    shutil.copytree(draft, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model = LlamaForCausalLM.from_pretrained(draft)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    sharded = apply_to(tmp_path / "sharded", "int4-head4", tmp_path / "out", traffic)
    assert len({info.file for info in sharded.tensors.values()}) > 2
    whole = applied("int4-head4")
    source, formats = open_checkpoint(draft), quantized_modules(whole)
    errors = ComparedWeights(source, sharded, quantized_modules(sharded)).all_errors()
    assert errors == ComparedWeights(source, whole, formats).all_errors()


def test_untied_draft_keeps_its_own_head(draft: Path, traffic: Path, tmp_path: Path) -> None:
    untied = save_llama(draft, tmp_path / "untied", tie_word_embeddings=False)
    checkpoint = apply_to(untied, "int4-head8", tmp_path / "out", traffic)
    assert "lm_head.weight_packed" in checkpoint.tensors
    kept = apply_to(untied, "int4", tmp_path / "kept", traffic)
    assert kept.tensors["lm_head.weight"].dtype == "BF16"


@pytest.mark.parametrize("name", ["int4", "fp8-block"])
def test_width_that_groups_do_not_divide_is_refused(
    draft: Path, traffic: Path, tmp_path: Path, name: str
) -> None:
    narrow = save_llama(draft, tmp_path / "narrow", hidden_size=192)
    with pytest.raises(RecipeError, match="has 192 inputs, which groups of 128 do not divide"):
        apply_to(narrow, name, tmp_path / "out", traffic)
    assert not (tmp_path / "out").exists()


def test_smaller_group_fits_that_width(draft: Path, tmp_path: Path) -> None:
    narrow = save_llama(draft, tmp_path / "narrow", hidden_size=192)
    recipe = load_recipe("int4").model_copy(update={"group_size": 64})
    checkpoint = apply(recipe, str(narrow), tmp_path / "out", device="cpu")
    assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == (512, 3)


def save_llama(draft: Path, directory: Path, **changes: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(draft, directory)
    config = LlamaConfig.from_pretrained(draft)
    config = LlamaConfig(**(config.to_dict() | {"head_dim": None} | changes))
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


# --- checkpoints that lie -------------------------------------------------------------------------


def test_claim_of_another_method_over_float_weights_is_detected(
    draft: Path, tmp_path: Path
) -> None:
    liar = tmp_path / "liar"
    shutil.copytree(draft, liar)
    config = json.loads((liar / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (liar / "config.json").write_text(json.dumps(config))
    assert "gptq quantization, but 14 layers hold BF16" in (
        claims_but_not_quantized(open_checkpoint(liar)) or ""
    )


def test_full_precision_draft_claims_nothing(draft: Path) -> None:
    assert claims_but_not_quantized(open_checkpoint(draft)) is None


def test_scales_multiplied_at_random_are_corrupt(
    applied: Applied, draft: Path, tmp_path: Path
) -> None:
    import torch

    damaged = damage(applied("int4").path, tmp_path / "damaged")
    with pytest.raises(CheckpointError, match="scales or integers are corrupt"):
        prove(load_recipe("int4"), open_checkpoint(draft), damaged, torch.device("cpu"))


@pytest.mark.parametrize(
    ("distance", "message"), [(0.0, "not really quantized"), (1.0, "corrupt, or loaded wrongly")]
)
def test_loaded_model_must_be_the_quantized_one(
    applied: Applied,
    draft: Path,
    monkeypatch: pytest.MonkeyPatch,
    distance: float,
    message: str,
) -> None:
    """What an engine loads is neither the full-precision draft nor something else altogether."""
    import torch

    from quantdraft.quantize.proof import proof

    source, cpu = open_checkpoint(draft), torch.device("cpu")
    logits = proof.probe_logits(source, cpu)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    shown = logits + distance * noise * logits.std()
    monkeypatch.setattr(proof, "probe_logits", lambda *_args: shown)
    with pytest.raises(CheckpointError, match=message):
        prove(load_recipe("int4"), source, applied("int4"), cpu)


def damage(path: Path, directory: Path) -> Checkpoint:
    """A copy whose group scales are multiplied by random factors in [0, 2]."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(path, directory)
    tensors = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [n for n in tensors if n.endswith("weight_scale")]:
        factors = 2 * torch.rand(tensors[name].shape, generator=generator)
        tensors[name] = (tensors[name] * factors).to(tensors[name].dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(directory)


def test_another_recipe_s_tensors_are_not_what_was_promised(applied: Applied, draft: Path) -> None:
    with pytest.raises(CheckpointError, match="the written checkpoint has"):
        require_promised_tensors(load_recipe("int8"), open_checkpoint(draft), applied("int4"))


def test_projection_names_every_tensor(applied: Applied, draft: Path) -> None:
    promised = projected_tensors(open_checkpoint(draft), load_recipe("int4-head8"))
    assert promised.keys() == applied("int4-head8").tensors.keys()


# --- what a user can get wrong --------------------------------------------------------------------


def test_calibrated_recipe_without_traffic_says_how_to_get_it(draft: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="quantdraft capture"):
        apply(load_recipe("int4-gptq"), str(draft), tmp_path / "out", device="cpu")


def test_traffic_beyond_the_vocabulary_is_refused(draft: Path, tmp_path: Path) -> None:
    foreign = write_traffic(tmp_path / "foreign.jsonl", vocab_size=100_000)
    with pytest.raises(TrafficError, match="beyond the draft's vocabulary of 512"):
        apply_to(draft, "int4-gptq", tmp_path / "out", foreign)


def test_quantized_draft_is_refused(applied: Applied, tmp_path: Path, traffic: Path) -> None:
    with pytest.raises(RecipeError, match="quantized already"):
        apply_to(applied("int4").path, "fp8", tmp_path / "out", traffic)


def test_existing_output_is_kept_without_force(draft: Path, tmp_path: Path, traffic: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="--force"):
        apply_to(draft, "int8", tmp_path / "out", traffic)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


def test_output_cannot_be_the_draft(draft: Path, traffic: Path) -> None:
    with pytest.raises(OptionError, match="is the draft itself"):
        apply_to(draft, "int8", draft, traffic)


def test_draft_without_tokenizer_is_refused(draft: Path, tmp_path: Path, traffic: Path) -> None:
    shutil.copytree(draft, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        apply_to(tmp_path / "bare", "int8", tmp_path / "out", traffic)


def test_missing_package_names_recipe_and_command(
    draft: Path, tmp_path: Path, traffic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(MissingPackageError, match=r"recipe 'fp8' .*quantdraft\[llmcompressor\]"):
        apply_to(draft, "fp8", tmp_path / "out", traffic)
    assert list(tmp_path.iterdir()) == []


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    return fail


def test_full_disk_is_one_line_and_leaves_nothing(
    draft: Path, tmp_path: Path, traffic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    # The two forms in which a full disk shows: Python's own, and the safetensors writer's.
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written = SafetensorError(f"I/O error: {full.strerror} (os error {errno.ENOSPC})")
    for error in (full, written):
        path = "safetensors.torch.save_file"
        monkeypatch.setattr(path, fail_with(error))
        with pytest.raises(OutputError, match="No space left on device") as caught:
            apply_to(draft, "int8", tmp_path / "out", traffic)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("out of memory")])
def test_interruption_leaves_nothing(
    draft: Path,
    tmp_path: Path,
    traffic: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    monkeypatch.setattr(applying, "prove", fail_with(error))
    with pytest.raises(type(error)):
        apply_to(draft, "int4-head4", tmp_path / "out", traffic)
    assert list(tmp_path.iterdir()) == []


def test_on_the_cpu_the_quantizing_library_sees_no_gpu(
    draft: Path, tmp_path: Path, traffic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def quantize(job: object) -> None:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        raise MemoryError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setitem(applying.BACKENDS, "llmcompressor", quantize)
    with pytest.raises(MemoryError):
        apply_to(draft, "int8", tmp_path / "out", traffic)
    assert seen == [""]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


KILLED_IN_ITS_PROOF = """
import os, signal, sys
from pathlib import Path
import torch
from quantdraft.quantize import apply as applying
from quantdraft.quantize.recipe import load_recipe
torch.set_num_threads(int(sys.argv[4]))
applying.prove = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
draft, output, traffic = sys.argv[1:4]
applying.apply(
    load_recipe("int4-gptq"), draft, Path(output), calibration=Path(traffic), device="cpu"
)
"""


@pytest.mark.slow
def test_a_killed_calibration_starts_over_and_gives_the_undisturbed_runs_bytes(
    applied: Applied, draft: Path, traffic: Path, tmp_path: Path
) -> None:
    import torch

    given = [str(draft), str(tmp_path / "out"), str(traffic), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_ITS_PROOF, *given], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert len(list(tmp_path.glob(".out.*.staging"))) == 1, "the calibration was over"
    again = apply_to(draft, "int4-gptq", tmp_path / "out", traffic)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    undisturbed = applied("int4-gptq")
    assert again.manifest == undisturbed.manifest
    for path in undisturbed.path.iterdir():
        assert file_sha256(again.path / path.name) == file_sha256(path)


def test_failed_proof_keeps_the_old_output(
    draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    monkeypatch.setattr(applying, "prove", fail_with(CheckpointError("corrupt")))
    with pytest.raises(CheckpointError, match="corrupt"):
        apply(load_recipe("int8"), str(draft), tmp_path / "out", device="cpu", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "old.txt").read_text() == "old"


def test_default_output_is_named_after_draft_and_recipe(
    draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing else appears: no log file, no word on the terminal."""
    monkeypatch.chdir(tmp_path)
    steps: list[str] = []
    apply(load_recipe("int8"), str(draft), device="cpu", progress=steps.append)
    assert [path.name for path in tmp_path.iterdir()] == [f"{draft.name}-int8"]
    assert len(steps) >= 2
    assert capfd.readouterr() == ("", "")


def test_recipe_that_ignores_everything_is_refused(draft: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        load_recipe("int8").model_dump() | {"ignore": ("re:.*",)}  # every module
    )
    with pytest.raises(RecipeError, match="ignores every layer"):
        apply(recipe, str(draft), tmp_path / "out", device="cpu")
