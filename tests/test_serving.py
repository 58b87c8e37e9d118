"""The launch lines parse, and the format checks see what each engine stumbles over."""

import ast
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from quantdraft.errors import OptionError
from quantdraft.serving import ENGINES, engine_named, transformers, vllm
from quantdraft.serving.findings import Draft, Finding
from tests.conftest import Pair


def quantized(**group: Any) -> dict[str, Any]:
    return {
        "vocab_size": 512,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"targets": ["Linear"], **group}},
            "ignore": ["lm_head"],
        },
    }


INT4 = {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}, "input_activations": None}
W8A16 = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
INT8 = W8A16 | {"input_activations": {"num_bits": 8, "type": "int", "dynamic": True}}
FP8 = {
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
}
FP8_STATIC = FP8 | {"input_activations": {"num_bits": 8, "type": "float", "dynamic": False}}
FP8_BLOCK = FP8 | {"weights": {"num_bits": 8, "type": "float", "strategy": "block"}}


def findings(config: dict[str, Any], path: str = "served/draft", **target: Any) -> list[Finding]:
    target_config = {"vocab_size": 512, "dtype": "bfloat16"} | target
    return list(vllm.check(Draft(Path(path), config, target_config)))


def test_vllm_line_parses_and_holds_k_and_draft() -> None:
    line = vllm.launch("org/T", Path("/srv/my draft"), 5, dtype="bfloat16")
    words = shlex.split(line)
    assert words[:3] == ["vllm", "serve", "org/T"]
    assert words[words.index("--dtype") + 1] == "bfloat16"
    assert json.loads(words[words.index("--speculative-config") + 1]) == {
        "method": "draft_model",
        "model": "/srv/my draft",
        "num_speculative_tokens": 5,
    }


def test_only_rejection_asks_vllm_for_a_sampling_draft() -> None:
    for rule in ("greedy", "greedy_draft", "exact_match"):
        assert "draft_sample_method" not in vllm.speculative_config(Path("d"), 4, rule)
    config = vllm.speculative_config(Path("d"), 4, "rejection")
    assert config["draft_sample_method"] == "probabilistic"


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (INT4, "W4A16"),
        (W8A16, "W8A16"),
        (INT8, "INT8"),
        (FP8, "FP8"),
        (FP8_STATIC, "FP8_STATIC"),
        (FP8_BLOCK, "FP8_BLOCK"),
    ],
)
def test_formats_are_read_from_the_config(group: dict[str, Any], name: str) -> None:
    assert Draft(Path("d"), quantized(**group)).format == name


def test_a_plain_int4_or_int8_draft_has_no_finding() -> None:
    assert findings(quantized(**INT4)) == []
    assert findings(quantized(**INT8)) == []


@pytest.mark.parametrize("name", ["my-eagle-draft", "Eagle3", "DFlash2", "dspark"])
def test_vllm_refuses_names_that_choose_another_method(name: str) -> None:
    (finding,) = findings(quantized(**INT4), path=f"served/{name}")
    assert finding.severity == "refuse"


def test_vllm_refuses_several_groups_and_unequal_vocabularies() -> None:
    config = quantized(**INT4)
    config["quantization_config"]["config_groups"]["group_1"] = {
        "targets": ["re:.*lm_head"],
        **W8A16,
    }
    assert [f.severity for f in findings(config)] == ["refuse"]
    (finding,) = findings(quantized(**INT4), vocab_size=640)
    assert finding.severity == "refuse"
    assert "512" in finding.message
    assert "640" in finding.message


def test_vllm_warns_of_formats_without_a_cpu_kernel() -> None:
    assert any("CPU" in f.message for f in findings(quantized(**W8A16)))
    assert any("AMX" in f.message for f in findings(quantized(**FP8_BLOCK)))
    assert any("8.9" in f.message for f in findings(quantized(**FP8)))


def test_vllm_warns_of_a_float16_mix_and_of_exact_targets() -> None:
    assert any("float16" in f.message for f in findings(quantized(**INT4), dtype="float16"))
    exact = findings(quantized(**(INT4 | {"targets": ["model.layers.0.mlp.up_proj"]})))
    assert [f.severity for f in exact] == ["warn"]


def test_an_unread_target_is_said() -> None:
    (finding,) = vllm.check(Draft(Path("d"), quantized(**INT4), None))
    assert finding.severity == "warn"
    assert "not read" in finding.message


def test_transformers_script_compiles_with_a_fixed_k() -> None:
    script = transformers.launch("org/T", Path("/srv/o'draft"), 6, acceptance_rule="greedy")
    tree = ast.parse(script)
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and node.targets[0].id.isupper()
    }
    assert values == {"TARGET": "org/T", "DRAFT": "/srv/o'draft", "NUM_SPECULATIVE_TOKENS": 6}
    assert "do_sample=False" in script
    assert "do_sample=True" in transformers.launch("T", Path("d"), 6, acceptance_rule="rejection")


def test_transformers_script_runs(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = transformers.launch(str(tiny_pair.target), tiny_pair.draft, 3, dtype="float32")
    monkeypatch.setattr(sys, "argv", ["launch.py", "def f(x):"])
    ran: dict[str, Any] = {}
    exec(
        compile(script.replace("max_new_tokens=256", "max_new_tokens=12"), "launch.py", "exec"), ran
    )
    assert ran["draft"].generation_config.num_assistant_tokens == 3
    new_tokens = ran["output"].shape[1] - ran["prompt"]["input_ids"].shape[1]
    assert 1 <= new_tokens <= 12
    assert capsys.readouterr().out.startswith("def f(x):")


def test_transformers_says_that_it_unpacks() -> None:
    (finding,) = transformers.check(Draft(Path("d"), quantized(**INT4), None))
    assert "the speed is not" in finding.message


def test_engines_have_all_parts_and_unknown_ones_are_refused() -> None:
    for name, engine in ENGINES.items():
        assert engine_named(name) is engine
        assert engine.LAUNCH_FILE
        assert engine.NOTES
    with pytest.raises(OptionError, match="vllm, transformers"):
        engine_named("ollama")
