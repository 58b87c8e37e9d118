"""export: what is written, what is refused, and that nothing is left behind."""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.unpacking import dequantize, quantized_modules, stored_weight
from quantdraft.common.files import file_sha256, write_json
from quantdraft.engines.llamacpp.gguf import _splits_as_gpt2 as splits_as_gpt2
from quantdraft.engines.llamacpp.gguf_blocks import quantize_file
from quantdraft.errors import (
    CheckpointError,
    OptionError,
    OutputExistsError,
    PairingError,
    VerdictError,
)
from quantdraft.record import Evaluation, Served, ServedArm, ServedRequest, write_evaluation
from quantdraft.workflows.export.export import ExportSettings, export
from quantdraft.workflows.export.padding import plan_padding
from tests.conftest import VOCAB_SIZE, Pair, save_tokenizer
from tests.example_evaluation import alarmed, evaluation, unmeasured

CONFIG = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def whole_model(value: float) -> dict[str, Any]:
    """Every tensor of a Llama of one layer, all of one number."""
    square, wide = (128, 128), (64, 128)
    linears = {f"self_attn.{name}_proj": square for name in "qkvo"}
    linears |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": (128, 64)}
    norms = ("input_layernorm", "post_attention_layernorm")
    layer: dict[str, tuple[int, ...]] = {**linears, **dict.fromkeys(norms, (128,))}
    shapes = {f"layers.0.{name}": shape for name, shape in layer.items()}
    shapes |= {"embed_tokens": (8, 128), "norm": (128,)}
    return {f"model.{n}.weight": np.full(s, value, np.float32) for n, s in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Files alone: nothing here is loaded as a model."""
    directory = tmp_path / "candidate"
    directory.mkdir()
    save_file(whole_model(1.0), directory / "model.safetensors")
    write_json(directory / "config.json", CONFIG)
    write_json(directory / "tokenizer.json", {})
    write_json(
        directory / "quantdraft.json",
        {
            "schema_version": 1,
            "draft": {"name": "org/Draft-0.5B"},
            "recipe": {"name": "int8", "summary": "INT8 weights and inputs.", "scheme": "W8A8"},
        },
    )
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    return directory


@pytest.fixture
def target(tmp_path: Path) -> str:
    directory = tmp_path / "target"
    directory.mkdir()
    write_json(directory / "config.json", {"vocab_size": 8, "dtype": "bfloat16"})
    return str(directory)


def run_of(checkpoint: Path, made: Evaluation, **target: Any) -> Path:
    """A run directory whose record is of these weights, and says `target` of the target."""
    identity = made.provenance["candidate"] | {
        "sha256": {
            "config.json": "0" * 64,
            "model.safetensors": file_sha256(checkpoint / "model.safetensors"),
        }
    }
    run = checkpoint.parent / f"run-{made.verdict.decision}"
    provenance = made.provenance | {"candidate": identity}
    provenance["target"] = made.provenance["target"] | target
    write_evaluation(replace(made, provenance=provenance), run / "evaluation.json")
    return run


def config_of(line: str) -> Any:
    words = shlex.split(line)
    return json.loads(words[words.index("--speculative-config") + 1])


def test_a_go_is_exported_with_card_launch_line_and_measured_k(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(
        ExportSettings(
            checkpoint,
            "vllm",
            output,
            target=target,
            run=run_of(checkpoint, evaluation()),
            require_go=True,
        )
    ).lines
    assert not [line for line in lines if line.startswith("WARNING")]
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "launch.sh"} <= names
    assert "pytorch_model.bin" not in names
    assert (output / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()

    launch = (output / "launch.sh").read_text().splitlines()[-1]
    assert os.access(output / "launch.sh", os.X_OK)
    told = {
        "method": "draft_model",
        "num_speculative_tokens": 5,  # the candidate's best k in the record
    }
    assert config_of(launch) == {**told, "model": "."}
    assert config_of(lines[-1]) == {**told, "model": str(output)}


def test_the_card_has_front_matter_evidence_and_verdict(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    export(
        ExportSettings(
            checkpoint, "vllm", output, target=target, run=run_of(checkpoint, evaluation())
        )
    )
    card = (output / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/Draft-0.5B"
    assert front["base_model_relation"] == "quantized"
    assert {"speculative-decoding", "w8a8"} <= set(front["tags"])
    assert "## Verdict: go" in card
    assert "1.133×" in card
    assert "a" * 64 in card  # the traffic's sha256
    assert (output / "launch.sh").read_text().splitlines()[-1] in card


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "transformers"])
def test_what_is_exported_starts_from_anywhere_and_says_nothing_of_this_machine(
    checkpoint: Path, target: str, tmp_path: Path, engine: str
) -> None:
    """A program that stands for the engine prints the directories that it was told of."""
    output, programs = tmp_path / "my served", tmp_path / "bin"
    export(ExportSettings(checkpoint, engine, output, target=target))
    for path in output.iterdir():
        if path.suffix in {".sh", ".py", ".md", ".yaml"}:
            assert str(tmp_path) not in path.read_text(), path.name
    if engine == "transformers":
        script = (output / "launch.py").read_text()
        assert f"TARGET = '../{Path(target).name}'" in script
        assert "DRAFT = '.'" in script
        assert script.index("os.chdir") < script.index("TARGET =")
        return
    programs.mkdir()
    for name in ("vllm", "python", "trtllm-serve"):
        program = programs / name
        program.write_text('#!/bin/sh\ncat config.json trtllm.yaml 2>/dev/null; echo "$PWD $*"\n')
        program.chmod(0o755)
    moved = tmp_path / "elsewhere" / "served"
    moved.parent.mkdir()
    output.rename(moved)
    shutil.copytree(target, moved.parent / Path(target).name)
    done = subprocess.run(
        [str(moved / "launch.sh")],
        cwd="/",
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(moved) in done.stdout
    assert f"../{Path(target).name}" in done.stdout
    assert (moved / f"../{Path(target).name}" / "config.json").is_file()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_a_target_that_lies_elsewhere_is_named_and_can_be_told(
    checkpoint: Path, target: str, tmp_path: Path, engine: str
) -> None:
    output, programs = tmp_path / "deep" / "served", tmp_path / "bin"
    export(ExportSettings(checkpoint, engine, output, target=target))
    moved = tmp_path / "served"
    output.rename(moved)
    programs.mkdir()
    for name in ("vllm", "python", "trtllm-serve"):
        (programs / name).write_text('#!/bin/sh\necho "$*"\n')
        (programs / name).chmod(0o755)
    plain = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    script = [str(moved / "launch.sh")]
    lost = subprocess.run(script, cwd="/", env=plain, capture_output=True, text=True, check=False)
    assert lost.returncode == 1
    assert f"{moved}/../../{Path(target).name}: run TARGET=" in lost.stderr
    assert not lost.stdout
    (tmp_path / "other target").mkdir()
    told = {**plain, "TARGET": "other target"}
    done = subprocess.run(
        script, cwd=tmp_path, env=told, capture_output=True, text=True, check=True
    )
    assert f"{tmp_path / 'other target'} " in done.stdout
    hub = subprocess.run(
        script, env=plain | {"TARGET": "org/T"}, capture_output=True, text=True, check=True
    )
    assert " org/T " in f" {hub.stdout}"


def measured_in(dtype: str, served: str | None = None) -> Evaluation:
    """A go whose acceptance was measured in one float type, and served by vLLM in another."""
    made = evaluation()
    answer = ServedRequest("a", 8, 1, 0.2, 0.1, 3, 12, (3, 1, 0, 0), 3.0, "identical")
    arms = {"candidate": ServedArm("candidate", (answer,))}
    engine = served and Served("vllm", "0.32.0", "cpu", served, 4, {}, True, arms)
    provenance = made.provenance | {"compute_dtype": dtype}
    return replace(made, provenance=provenance, served=engine or None)


@pytest.mark.parametrize(
    ("measured", "served", "launched", "is_said"),
    [
        ("float32", None, "bfloat16", True),
        ("bfloat16", None, "bfloat16", False),
        ("float32", "float32", "float32", False),  # as it ran, whatever the target is stored in
        ("bfloat16", "bfloat16", "bfloat16", False),
        ("float32", "bfloat16", "bfloat16", True),
        ("float32", "the servers' own", "bfloat16", True),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_draft_that_is_launched_in_another_float_type_than_measured_is_said_to_be(
    checkpoint: Path,
    target: str,
    tmp_path: Path,
    engine: str,
    measured: str,
    served: str | None,
    launched: str,
    is_said: bool,
) -> None:
    output = tmp_path / "served"
    run = run_of(checkpoint, measured_in(measured, served))
    lines = export(ExportSettings(checkpoint, engine, output, target=target, run=run)).lines
    words = shlex.split((output / "launch.sh").read_text().splitlines()[-1])
    assert words[words.index("--dtype") + 1] == launched
    found = [line for line in lines if "dtype_mismatch" in line]
    card = (output / "README.md").read_text()
    assert bool(found) == is_said == ("dtype_mismatch" in card)
    if is_said:
        assert found[0].startswith("WARNING: dtype_mismatch: the draft was measured in float32")
        assert "--dtype bfloat16" in found[0]


def test_require_go_refuses_everything_else(checkpoint: Path, target: str, tmp_path: Path) -> None:
    for made in (alarmed(), unmeasured()):
        run = run_of(checkpoint, made)
        with pytest.raises(VerdictError, match=made.verdict.decision):
            export(
                ExportSettings(
                    checkpoint, "vllm", tmp_path / "served", target=target, run=run, require_go=True
                )
            )
    with pytest.raises(VerdictError, match="--run"):
        export(
            ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target, require_go=True)
        )
    assert not (tmp_path / "served").exists()


def test_a_no_go_warns_on_screen_and_on_the_card(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(
        ExportSettings(checkpoint, "vllm", output, target=target, run=run_of(checkpoint, alarmed()))
    ).lines
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert "NO-GO" in warnings[0]
    assert "acceptance-collapsed" in warnings[1]
    card = (output / "README.md").read_text()
    assert "## Verdict: no-go" in card
    assert "NO-GO" in card


def test_no_evaluation_and_no_measured_k_are_said(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    lines = export(ExportSettings(checkpoint, "vllm", tmp_path / "a", target=target)).lines
    assert any("Not evaluated" in line for line in lines)
    assert any("k = 4 is a guess" in line for line in lines)
    assert "## Verdict: none" in (tmp_path / "a" / "README.md").read_text()

    run = run_of(checkpoint, unmeasured())
    lines = export(ExportSettings(checkpoint, "vllm", tmp_path / "b", target=target, run=run)).lines
    assert any("not a measured best" in line for line in lines)
    assert "undefined" in (tmp_path / "b" / "README.md").read_text()


def test_a_k_that_was_asked_for_is_used(checkpoint: Path, target: str, tmp_path: Path) -> None:
    output, run = tmp_path / "served", run_of(checkpoint, evaluation())
    lines = export(
        ExportSettings(checkpoint, "vllm", output, target=target, run=run, num_speculative_tokens=3)
    ).lines
    assert config_of((output / "launch.sh").read_text())["num_speculative_tokens"] == 3
    assert any("measured best is 5" in line for line in lines)
    with pytest.raises(OptionError):
        export(
            ExportSettings(
                checkpoint, "vllm", tmp_path / "x", target=target, num_speculative_tokens=0
            )
        )


def test_an_evaluation_of_other_weights_is_refused(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    run = run_of(checkpoint, evaluation())
    save_file(
        whole_model(0.0),
        checkpoint / "model.safetensors",
    )
    with pytest.raises(PairingError, match="other weights"):
        export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target, run=run))


def test_a_record_without_hashes_vouches_for_nothing(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    made = evaluation()
    provenance = made.provenance | {"candidate": {"name": "int8"}}
    write_evaluation(replace(made, provenance=provenance), tmp_path / "r" / "evaluation.json")
    with pytest.raises(PairingError, match="cannot vouch"):
        export(
            ExportSettings(
                checkpoint, "vllm", tmp_path / "served", target=target, run=tmp_path / "r"
            )
        )


def test_what_the_engine_would_refuse_is_not_written(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="eagle-"):
        export(ExportSettings(checkpoint, "vllm", tmp_path / "eagle-draft", target=target))
    write_json(Path(target) / "config.json", {"vocab_size": 16})
    with pytest.raises(CheckpointError, match="vocab_size is 8 in the draft and 16"):
        export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target))
    assert not (tmp_path / "served").exists()


def test_only_the_listed_weights_are_exported(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    for name in ("consolidated", "old-model", "adapter_model"):
        shutil.copyfile(checkpoint / "model.safetensors", checkpoint / f"{name}.safetensors")
    write_json(checkpoint / "pytorch_model.bin.index.json", {"weight_map": {}})
    export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target))
    written = {path.name for path in (tmp_path / "served").iterdir()}
    assert {name for name in written if "model" in name} == {"model.safetensors"}
    config = json.loads((tmp_path / "served" / "config.json").read_text())
    assert config == CONFIG


def test_a_stored_copy_of_the_embedding_is_not_exported(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    plain = load_file(checkpoint / "model.safetensors")
    head = {"lm_head.weight": plain["model.embed_tokens.weight"]}
    save_file({**plain, **head}, checkpoint / "model.safetensors")
    export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target))
    assert load_file(tmp_path / "served" / "model.safetensors").keys() == plain.keys()


def test_an_incomplete_draft_is_not_exported(checkpoint: Path, target: str, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model\.norm\.weight'"):
        export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target))


def test_both_names_of_the_rotary_base_are_exported(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    write_json(checkpoint / "config.json", CONFIG | {"rope_theta": 5e5})
    manifest = json.loads((checkpoint / "quantdraft.json").read_text())
    hashes = {"config.json": file_sha256(checkpoint / "config.json")}
    write_json(checkpoint / "quantdraft.json", manifest | {"sha256": hashes})
    export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target))
    config = json.loads((tmp_path / "served" / "config.json").read_text())
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (5e5, 5e5)
    written = json.loads((tmp_path / "served" / "quantdraft.json").read_text())
    assert written["sha256"]["config.json"] == file_sha256(tmp_path / "served" / "config.json")


def test_outputs_are_kept_unless_forced(checkpoint: Path, target: str, tmp_path: Path) -> None:
    output = tmp_path / "served"
    export(ExportSettings(checkpoint, "vllm", output, target=target))
    with pytest.raises(OutputExistsError):
        export(ExportSettings(checkpoint, "transformers", output, target=target))
    export(ExportSettings(checkpoint, "transformers", output, target=target, force=True))
    assert (output / "launch.py").is_file()
    assert not (output / "launch.sh").exists()
    with pytest.raises(OptionError, match="the checkpoint itself"):
        export(ExportSettings(checkpoint, "vllm", checkpoint, target=target, force=True))
    assert (checkpoint / "model.safetensors").is_file()


def word_after(line: str, name: str) -> str:
    words = shlex.split(line)
    return words[words.index(name) + 1]


def test_the_card_stamps_the_targets_revision_and_precision(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    run = run_of(checkpoint, evaluation(), revision="abc123")
    export(ExportSettings(checkpoint, "vllm", tmp_path / "served", target=target, run=run))
    card = (tmp_path / "served" / "README.md").read_text()
    assert f"`{Path(target).name}` (revision abc123, precision bfloat16)" in card
    run = run_of(checkpoint, evaluation(), revision="abc123")
    export(ExportSettings(checkpoint, "vllm", tmp_path / "hub", target="org/T", run=run))
    assert "`org/T` (revision abc123" in (tmp_path / "hub" / "README.md").read_text()


def test_another_target_than_the_evaluated_one_is_said(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    run = run_of(checkpoint, evaluation(), dtype="float32")
    lines = export(ExportSettings(checkpoint, "vllm", tmp_path / "a", target=target, run=run)).lines
    assert any("another float type (float32, not bfloat16)" in line for line in lines)

    recorded = {"config.json": file_sha256(Path(target) / "config.json")}
    run = run_of(checkpoint, evaluation(), sha256=recorded)
    lines = export(ExportSettings(checkpoint, "vllm", tmp_path / "b", target=target, run=run)).lines
    assert not [line for line in lines if line.startswith("WARNING")]
    run = run_of(checkpoint, evaluation(), sha256={"config.json": "0" * 64})
    lines = export(ExportSettings(checkpoint, "vllm", tmp_path / "c", target=target, run=run)).lines
    assert any("another config.json" in line for line in lines)


def test_sglang_gets_its_flags(checkpoint: Path, target: str, tmp_path: Path) -> None:
    lines = export(ExportSettings(checkpoint, "sglang", tmp_path / "served", target=target)).lines
    assert word_after(lines[-1], "--speculative-draft-model-quantization") == "unquant"
    launch = (tmp_path / "served" / "launch.sh").read_text()
    flag = "--speculative-draft-model-path"
    assert (word_after(lines[-1], flag), word_after(launch, flag)) == (
        str(tmp_path / "served"),
        ".",
    )
    assert word_after(lines[-1], "--dtype") == "bfloat16"


def test_tensorrt_llm_gets_its_yaml(checkpoint: Path, target: str, tmp_path: Path) -> None:
    output = tmp_path / "served"
    lines = export(ExportSettings(checkpoint, "tensorrt_llm", output, target=target)).lines
    assert lines[-1].endswith(f"sh {output / 'launch.sh'}")
    assert word_after((output / "launch.sh").read_text(), "--config") == "trtllm.yaml"
    config = yaml.safe_load((output / "trtllm.yaml").read_text())
    assert config["speculative_config"]["speculative_model"] == "."


# Vocabulary padding


@pytest.fixture(scope="module")
def pair(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny pair, its target with 32 rows more than the draft, as families pad them."""
    import torch
    from transformers import AutoModelForCausalLM

    target = tmp_path_factory.mktemp("padded") / "target"
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.target, dtype=torch.float32)
    model.resize_token_embeddings(VOCAB_SIZE + 32)
    model.save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_pair.target / name, target / name)
    return Pair(target, tiny_pair.draft, tiny_pair.prompts)


def logits(path: Path) -> Any:
    import torch

    from quantdraft.checkpoints.tensors.loading import load_model

    model = load_model(path, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        return model(torch.arange(1, 17).unsqueeze(0)).logits


def test_a_padded_draft_has_the_same_logits_and_zeros_behind(pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "served"
    with pytest.raises(CheckpointError, match="--pad-vocab"):
        export(ExportSettings(pair.draft, "vllm", output, target=str(pair.target)))
    lines = export(
        ExportSettings(pair.draft, "vllm", output, target=str(pair.target), pad_vocab=True)
    ).lines
    assert any(f"padded from {VOCAB_SIZE} to {VOCAB_SIZE + 32}" in line for line in lines)
    assert f"from {VOCAB_SIZE} to {VOCAB_SIZE + 32} rows" in (output / "README.md").read_text()

    from safetensors.torch import load_file as torch_file

    before, after = open_checkpoint(pair.draft), open_checkpoint(output)
    assert after.config["vocab_size"] == VOCAB_SIZE + 32
    old, new = (torch_file(c.path / "model.safetensors") for c in (before, after))
    assert old.keys() == new.keys()
    tables = [name for name in old if name.startswith(("model.embed", "lm_head"))]
    for name, tensor in old.items():
        assert new[name][: len(tensor)].equal(tensor)
        rows = 32 if name in tables else 0
        assert new[name].shape == (tensor.shape[0] + rows, *tensor.shape[1:])
        assert not new[name][len(tensor) :].any()
    assert tables
    assert (pair.draft / "model.safetensors").stat().st_nlink == 1  # nothing written through a link

    ours, theirs = logits(output), logits(pair.draft)
    assert ours.shape[-1] == VOCAB_SIZE + 32
    assert (ours[..., :VOCAB_SIZE] - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert not ours[..., VOCAB_SIZE:].any()


@pytest.mark.parametrize("recipe", ["int8", "int8-head8", "int4-head4"])
def test_a_quantized_head_is_padded_with_zero_weights(
    recipe: str, pair: Pair, tmp_path: Path
) -> None:
    pytest.importorskip("llmcompressor")
    from quantdraft.quantize.apply import apply
    from quantdraft.quantize.recipe import load_recipe

    candidate, output = tmp_path / "candidate", tmp_path / "served"
    apply(load_recipe(recipe), str(pair.draft), candidate)
    export(ExportSettings(candidate, "vllm", output, target=str(pair.target), pad_vocab=True))
    ours, theirs = logits(output), logits(candidate)
    assert (ours[..., :VOCAB_SIZE] - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert ours.shape[-1] == VOCAB_SIZE + 32
    assert not ours[..., VOCAB_SIZE:].any()
    manifest = open_checkpoint(output).manifest or {}
    assert manifest["padding"] == {"from": VOCAB_SIZE, "to": VOCAB_SIZE + 32}
    hashes = manifest["sha256"]
    assert all(file_sha256(output / name) == found for name, found in hashes.items())


def test_padding_is_refused_where_it_would_be_wrong(pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "served"
    with pytest.raises(CheckpointError, match="is not cut"):
        export(ExportSettings(pair.target, "vllm", output, target=str(pair.draft), pad_vocab=True))
    with pytest.raises(OptionError, match="not a directory"):
        export(ExportSettings(pair.draft, "vllm", output, target="org/T", pad_vocab=True))

    other = shutil.copytree(pair.target, tmp_path / "other")
    save_tokenizer(other, order=-1)
    with pytest.raises(PairingError, match="different tokens"):
        export(ExportSettings(pair.draft, "vllm", output, target=str(other), pad_vocab=True))
    assert not output.exists()


# auto-gptq


@pytest.fixture
def auto_gptq(checkpoint: Path) -> Path:
    """A directory as auto-gptq left it: its own names for the weights and for the config."""
    (checkpoint / "quantdraft.json").unlink()
    (checkpoint / "model.safetensors").unlink()
    tensors = {n: t.astype(np.float16) for n, t in whole_model(1.0).items() if "up_proj" not in n}
    tensors |= {
        "model.layers.0.mlp.up_proj.qweight": np.zeros((16, 64), np.int32),
        "model.layers.0.mlp.up_proj.qzeros": np.full((4, 8), 0x77777777, np.int32),
        "model.layers.0.mlp.up_proj.scales": np.ones((4, 64), np.float16),
        "model.layers.0.mlp.up_proj.g_idx": np.arange(128, dtype=np.int32) // 32,
    }
    save_file(tensors, checkpoint / "gptq_model-4bit-32g.safetensors")
    section = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.01}
    write_json(checkpoint / "quantize_config.json", section)
    return checkpoint


def test_a_directory_of_auto_gptq_is_a_candidate(auto_gptq: Path) -> None:
    opened = open_checkpoint(auto_gptq)
    assert opened.manifest is None
    assert opened.quantization is not None
    assert opened.quantization["quant_method"] == "gptq"
    ((module, fmt),) = quantized_modules(opened).items()
    assert module == "model.layers.0.mlp.up_proj"
    weight = dequantize(stored_weight(opened, module, fmt))
    # Fields of 0 are -8; symmetric zero points, 8, are stored one too low: (-8 + 0) * 1.
    assert (weight == -8).all()
    assert tuple(weight.shape) == (64, 128)


def test_a_directory_of_auto_gptq_is_exported_in_todays_layout(
    auto_gptq: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(ExportSettings(auto_gptq, "sglang", output, target=target)).lines
    assert word_after(lines[-1], "--speculative-draft-model-quantization") == "gptq_marlin"
    assert (output / "model.safetensors").is_file()
    assert not (output / "gptq_model-4bit-32g.safetensors").exists()
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert config["quantization_config"]["group_size"] == 32
    for engine in ("vllm", "transformers"):
        export(ExportSettings(auto_gptq, engine, tmp_path / engine, target=target))


def test_a_quantized_head_of_another_library_is_not_padded(
    auto_gptq: Path, tiny_pair: Pair, tmp_path: Path
) -> None:
    opened = open_checkpoint(auto_gptq)
    tensors = load_file(auto_gptq / "gptq_model-4bit-32g.safetensors")
    tensors["lm_head.qweight"] = np.zeros((16, 8), np.int32)
    save_file(tensors, auto_gptq / "gptq_model-4bit-32g.safetensors")
    section = dict(opened.quantization or {}) | {"lm_head": True}
    write_json(auto_gptq / "quantize_config.json", section)
    write_json(auto_gptq / "config.json", CONFIG | {"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match="quantized by gptq"):
        plan_padding(open_checkpoint(auto_gptq), 16)


# llama.cpp


def test_without_llamacpp_the_commands_are_written(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    output = tmp_path / "served"
    lines = export(
        ExportSettings(checkpoint, "llama.cpp", output, target=target, gguf_type="q4_0")
    ).lines
    assert {path.name for path in output.iterdir()} == {"README.md", "convert.sh", "launch.sh"}
    script = (output / "convert.sh").read_text()
    (line,) = [line for line in script.splitlines() if "convert_hf_to_gguf.py" in line]
    source = word_after(line, "$LLAMACPP/convert_hf_to_gguf.py")
    assert (output / source).resolve() == checkpoint
    assert "build/bin/llama-quantize draft-full.gguf draft-q4_0.gguf Q4_0" in script
    assert str(tmp_path) not in script
    assert word_after(lines[-1], "-md") == str(output / "draft-q4_0.gguf")
    assert any("still to be made" in line for line in lines)
    assert any("target as a GGUF" in line for line in lines)
    card = (output / "README.md").read_text()
    assert "another quantization" in card
    assert "## Verdict: none" in card


def test_no_evaluation_speaks_for_a_gguf(checkpoint: Path, target: str, tmp_path: Path) -> None:
    run = run_of(checkpoint, evaluation())
    output = tmp_path / "served"
    lines = export(ExportSettings(checkpoint, "llamacpp", output, target=target, run=run)).lines
    assert any("no evaluation is of it" in line for line in lines)
    assert "## Verdict: none" in (output / "README.md").read_text()
    with pytest.raises(VerdictError, match="GGUF"):
        export(
            ExportSettings(
                checkpoint, "llamacpp", output, target=target, run=run, require_go=True, force=True
            )
        )


def test_what_was_trained_through_a_rounding_is_no_gguf(
    auto_gptq: Path, target: str, tmp_path: Path
) -> None:
    """Its floats were trained for that rounding; the draft's own are those of another model."""
    write_json(auto_gptq / "quantdraft.json", {"schema_version": 1, "training": {"prompt_ids": []}})
    with pytest.raises(OptionError, match="Train without --recipe"):
        export(ExportSettings(auto_gptq, "llamacpp", tmp_path / "served", target=target))


def test_the_full_precision_draft_must_be_known(
    auto_gptq: Path, target: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--draft"):
        export(ExportSettings(auto_gptq, "llamacpp", tmp_path / "served", target=target))
    lines = export(
        ExportSettings(
            auto_gptq, "llamacpp", tmp_path / "a", target=target, draft=Path("/srv/full")
        )
    ).lines
    assert word_after(lines[-1], "-md").endswith("draft-q4_0.gguf")
    assert "/srv/full" in (tmp_path / "a" / "convert.sh").read_text()
    with pytest.raises(OptionError, match="needs --engine llamacpp"):
        export(
            ExportSettings(
                auto_gptq, "vllm", tmp_path / "b", target=target, draft=Path("/srv/full")
            )
        )
    with pytest.raises(OptionError, match="--gguf-type 'q9'"):
        export(ExportSettings(auto_gptq, "llamacpp", tmp_path / "b", target=target, gguf_type="q9"))


def fake_llamacpp(directory: Path, script: str) -> Path:
    directory.mkdir()
    (directory / "convert_hf_to_gguf.py").write_text(script)
    return directory


def test_the_converter_is_run_on_the_full_precision_draft(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    script = "import json, sys; json.dump(sys.argv[1:], open(sys.argv[3], 'w'))"
    sources = fake_llamacpp(tmp_path / "llama.cpp", script)
    output = tmp_path / "served"
    export(
        ExportSettings(
            checkpoint, "llamacpp", output, target=target, gguf_type="q8_0", llamacpp_dir=sources
        )
    )
    given = json.loads((output / "draft-q8_0.gguf").read_text())
    assert given[0] == str(checkpoint)
    assert given[given.index("--outtype") + 1] == "q8_0"


def test_a_failing_converter_gives_its_reason_and_leaves_nothing(
    checkpoint: Path, target: str, tmp_path: Path
) -> None:
    sources = fake_llamacpp(tmp_path / "llama.cpp", "raise SystemExit('no such architecture')")
    with pytest.raises(CheckpointError, match="no such architecture"):
        export(
            ExportSettings(
                checkpoint, "llamacpp", tmp_path / "s", target=target, llamacpp_dir=sources
            )
        )
    assert not (tmp_path / "s").exists()
    with pytest.raises(OptionError, match="convert_hf_to_gguf"):
        export(
            ExportSettings(
                checkpoint, "llamacpp", tmp_path / "s", target=target, llamacpp_dir=tmp_path
            )
        )


def test_only_the_plain_byte_level_tokenizer_splits_as_gpt2(tmp_path: Path) -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    cases = [
        (plain, None, True),
        (plain | {"use_regex": False}, None, False),
        (plain | {"add_prefix_space": True}, None, False),
        ({"type": "Sequence", "pretokenizers": [plain]}, None, False),
        (plain, {"type": "NFC"}, False),
    ]
    for pre_tokenizer, normalizer, expected in cases:
        tokenizer = {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
        write_json(tmp_path / "tokenizer.json", tokenizer)
        assert splits_as_gpt2(tmp_path) is expected


def test_q4_0_keeps_the_head_in_8_bits_and_norms_as_they_are(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    source, made = tmp_path / "full.gguf", tmp_path / "draft-q4_0.gguf"
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(str(source), "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    for name in ("token_embd.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, values)
    writer.add_tensor("output_norm.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    quantize_file(source, made)
    reader = gguf.GGUFReader(str(made))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types == {
        "token_embd.weight": "Q8_0",  # tied: it is the head too
        "blk.0.ffn_up.weight": "Q4_0",
        "output_norm.weight": "F32",
    }
    assert reader.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    read = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    # A block of 32 spans 16 (Q4_0) or 255 (Q8_0) steps of at most its largest value.
    largest = np.abs(values).max()
    assert np.abs(read["blk.0.ffn_up.weight"] - values).max() <= largest / 8
    assert np.abs(read["token_embd.weight"] - values).max() <= largest / 127


def test_weights_under_auto_gptqs_name_load(tiny_pair: Pair, tmp_path: Path) -> None:
    renamed = shutil.copytree(tiny_pair.draft, tmp_path / "renamed")
    (renamed / "model.safetensors").rename(renamed / "gptq_model-4bit-128g.safetensors")
    assert logits(renamed).equal(logits(tiny_pair.draft))
