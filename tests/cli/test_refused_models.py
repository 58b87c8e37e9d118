"""A model that is not read is refused by every command in the same words, and leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quantdraft.cli import main
from tests.checkpoints.test_other_kinds import DIRECTORIES, build
from tests.conftest import Pair
from tests.foreign import write_foreign

ASYMMETRIC = {"num_bits": 8, "type": "int", "symmetric": False, "dynamic": True}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 8, "group_size": 64, "act_bits": 8}
# What a config says of floats: refused before anything of it is looked for.
CLAIMED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: ({"quant_method": name}, f"quantized by '{name}', which quantdraft does not read")
        for name in ("hqq", "quanto", "torchao", "aqlm", "quark")
    },
    "auto-round": (
        AUTO_ROUND | {"act_sym": False, "packing_format": "auto_round:auto_gptq"},
        "quantized by 'auto-round', which quantdraft does not read",
    ),
    "gptq-marlin": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        "checkpoint_format 'marlin'",
    ),
    "rotated": (
        {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}},
        "rotates inputs or weights",
    ),
    "sparse": (
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}},
        "stores sparse weights",
    ),
}
# A whole directory of another tool, whose config says one thing more.
EDITED: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "w8a8-asymmetric": (
        "w8a8",
        lambda c: c["config_groups"]["group_0"]["input_activations"].update(symmetric=False),
        "around a zero point",
    ),
    "modelopt-asymmetric": (
        "modelopt-fp8",
        lambda c: c.update(config_groups={"group_0": {"input_activations": ASYMMETRIC}}),
        "around a zero point",
    ),
    "modelopt-new": (
        "modelopt-fp8",
        lambda c: c.update(quant_algo="W2A2_NEW"),
        "quant_algo 'W2A2_NEW'",
    ),
    "gptq-inputs": ("gptq", lambda c: c.update(act_bits=8, act_sym=False), "'act_bits' 8"),
    "fp8-scheme": (
        "autofp8",
        lambda c: c.update(activation_scheme="per_head"),
        "activation_scheme 'per_head'",
    ),
    "awq-gemv-fast": ("awq", lambda c: c.update(version="gemv_fast"), "version 'gemv_fast'"),
}
ARCHITECTURES: dict[str, tuple[dict[str, Any], str]] = {
    "t5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "an encoder and a decoder",
    ),
    "rwkv": ({"model_type": "rwkv", "architectures": ["RwkvForCausalLM"]}, "cannot step back"),
    "bert": (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        "reads in both directions",
    ),
}
OTHER = {f"kind-{index}": each for index, each in enumerate(DIRECTORIES)}
KINDS = [*CLAIMED, *EDITED, *ARCHITECTURES, *OTHER]

# GOOD: a draft or a target that is read; BAD: what is not; the rest by its name.
COMMANDS: dict[str, str] = {
    "check -d": "check -t GOOD -d BAD",
    "check -t": "check -t BAD -d GOOD",
    "apply": "apply -r int4 -d BAD -o OUT",
    "distill": "distill -d BAD -t GOOD --traffic TRAFFIC --epochs 1 -o OUT",
    "evaluate": "evaluate BAD -b GOOD -t GOOD --traffic TRAFFIC --no-latency -o OUT",
    "evaluate -b": "evaluate GOOD -b BAD -t GOOD --traffic TRAFFIC --no-latency -o OUT",
    "evaluate -t": "evaluate GOOD -b GOOD -t BAD --traffic TRAFFIC --no-latency -o OUT",
    "capture": "capture -t BAD -p PROMPTS -o OUT",
    "export": "export BAD --engine vllm -t GOOD -o OUT",
    "bench": "bench BAD -b GOOD -t GOOD --seconds 0.1 -o OUT",
    "bench -t": "bench GOOD -b GOOD -t BAD --seconds 0.1 -o OUT",
    "sweep": "sweep -d BAD -r int4 -t GOOD --traffic TRAFFIC --no-latency -o OUT",
    "select": "select -d BAD -d GOOD -t GOOD --traffic TRAFFIC --no-latency -o OUT",
}
# An engine may serve a target that transformers has no model for.
ALLOWED = {(name, "check -t") for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def refused(
    tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str]]:
    """Return what gives the directory of a kind, and what is said of it."""
    root = tmp_path_factory.mktemp("refused")
    return cache(lambda kind: _write(kind, tiny_pair.draft, root / kind))


def _write(kind: str, draft: Path, directory: Path) -> tuple[Path, str]:
    if kind in OTHER:
        files, said = OTHER[kind]
        return build(directory, files), said
    if kind in EDITED:
        source, edit, said = EDITED[kind]
        write_foreign(source, draft, directory)
        _edit(directory, edit)
        return directory, re.escape(said)
    fields, said = (CLAIMED | ARCHITECTURES)[kind]
    shutil.copytree(draft, directory)
    fields = {"quantization_config": fields} if kind in CLAIMED else fields
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory, re.escape(said)


def _edit(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the quantization section, in the file that holds it."""
    own = directory / "hf_quant_config.json"
    path, key = (
        (own, "quantization")
        if own.exists()
        else (directory / "config.json", "quantization_config")
    )
    document = json.loads(path.read_text())
    edit(document[key])
    path.write_text(json.dumps(document))


def _run(command: str, bad: Path, pair: Pair, directory: Path) -> Result:
    traffic = directory / "traffic.jsonl"
    traffic.write_text('{"prompt_token_ids": [5, 6], "response_token_ids": [7, 8]}\n')
    words = {
        "GOOD": pair.draft,
        "BAD": bad,
        "OUT": directory / "out",
        "TRAFFIC": traffic,
        "PROMPTS": pair.prompts,
    }
    return CliRunner().invoke(main, [str(words.get(each, each)) for each in command.split()])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_read_is_refused_by_name(
    kind: str,
    command: str,
    refused: Callable[[str], tuple[Path, str]],
    tiny_pair: Pair,
    tmp_path: Path,
) -> None:
    directory, said = refused(kind)
    result = _run(COMMANDS[command], directory, tiny_pair, tmp_path)
    if (kind, command) in ALLOWED:
        assert re.search(said, " ".join(result.output.split()))
        return
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    if command == "apply":
        said += r"|is quantized already"
    if command == "distill":
        said += r"|is quantized\. Train"
    if command == "sweep":  # lists what each draft came to, and keeps what others gave
        assert re.search(said, " ".join(result.output.split()))
        return
    # `capture` says first what its prompts were read as.
    lines = [each for each in result.stderr.splitlines() if each and "read as prompts" not in each]
    assert len(lines) == 1, result.stderr
    assert re.search(said, lines[0]), lines[0]
    assert str(directory) in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["traffic.jsonl"]
