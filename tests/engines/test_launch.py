"""The launch lines parse, and the format checks see what each engine stumbles over."""

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import Draft, Finding
from quantdraft.engines.llamacpp import gguf as conversion
from quantdraft.engines.registry import ENGINES, engine_named, support_tables
from quantdraft.engines.support import FORMATS, NO, YES, SupportTable, stored_names
from quantdraft.engines.vllm.settings import speculative_config
from quantdraft.errors import OptionError
from quantdraft.workflows.export.target import read_target
from tests.conftest import Pair as TinyPair

vllm, sglang, transformers = (engine_named(name) for name in ("vllm", "sglang", "transformers"))
tensorrt_llm, llamacpp = engine_named("tensorrt-llm"), engine_named("llamacpp")


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


INT4 = {
    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "input_activations": None,
}
W8A16 = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
INT8 = W8A16 | {"input_activations": {"num_bits": 8, "type": "int", "dynamic": True}}
FP8 = {
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
}
FP8_STATIC = FP8 | {"input_activations": {"num_bits": 8, "type": "float", "dynamic": False}}
FP8_BLOCK = FP8 | {
    "weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
}
NVFP4A16 = {
    "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
}
GPTQ = {
    "vocab_size": 512,
    "dtype": "float16",
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True},
}
NF4 = {
    "vocab_size": 512,
    "dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    },
}
PLAIN = {"vocab_size": 512, "dtype": "bfloat16"}
CACHE_ALONE = {"quant_method": "compressed-tensors", "config_groups": {}}


def findings(config: dict[str, Any], path: str = "served/draft", **target: Any) -> list[Finding]:
    target_config = {"vocab_size": 512, "dtype": "bfloat16"} | target
    return list(vllm.check(Draft(Path(path), config, target_config)))


def refusals(engine: Engine, draft: Draft) -> list[str]:
    return [each.message for each in engine.check(draft) if each.severity == "refuse"]


def test_vllm_line_parses_and_holds_k_and_draft() -> None:
    line = vllm.launch(LaunchPair("org/T", Path("/srv/my draft"), 5, dtype="bfloat16"))
    words = shlex.split(line)
    assert words[:3] == ["vllm", "serve", "org/T"]
    assert words[words.index("--dtype") + 1] == "bfloat16"
    assert json.loads(words[words.index("--speculative-config") + 1]) == {
        "method": "draft_model",
        "model": "/srv/my draft",
        "num_speculative_tokens": 5,
    }


def test_a_revision_of_the_hub_stands_in_the_line() -> None:
    target = read_target("org/T@v1.0")
    assert (target.name, target.revision) == ("org/T", "v1.0")
    assert "revision v1.0" in target.stamp(None)
    for engine in (vllm, engine_named("sglang")):
        assert engine.names_revision
        line = engine.launch(LaunchPair("org/T", Path("d"), 5, revision="v1.0"))
        assert "org/T --revision v1.0 " in line
    assert not engine_named("transformers").names_revision


def test_only_rejection_asks_vllm_for_a_sampling_draft() -> None:
    for rule in ("greedy", "greedy_draft", "exact_match"):
        assert "draft_sample_method" not in speculative_config(Path("d"), 4, rule)
    config = speculative_config(Path("d"), 4, "rejection")
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


def test_vllm_warns_of_one_scale_a_tensor() -> None:
    """Fused layers have been given each other's (vllm#53122)."""
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    found = findings(quantized(**(FP8 | {"weights": weights})))
    assert any("misassigned" in f.message and f.severity == "warn" for f in found)
    assert not any("misassigned" in f.message for f in findings(quantized(**FP8)))


def test_vllm_warns_of_formats_without_a_cpu_kernel() -> None:
    assert any("CPU" in f.message for f in findings(quantized(**W8A16)))
    assert any("AMX" in f.message for f in findings(quantized(**FP8_BLOCK)))
    assert any("8.9" in f.message for f in findings(quantized(**FP8)))


def test_vllm_refuses_a_bfloat16_draft_in_float16_and_warns_of_the_reverse() -> None:
    (forced,) = findings(quantized(**INT4), dtype="float16")
    assert forced.severity == "refuse"
    assert "1,100" in forced.message
    (halved,) = findings(quantized(**INT4) | {"dtype": "float16"})
    assert halved.severity == "warn"
    assert findings(quantized(**INT4) | {"dtype": "float16"}, dtype="float16") == []


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "re:^model.*up_proj$", "lm_head"])
def test_vllm_refuses_targets_that_match_under_no_prefix(name: str) -> None:
    (finding,) = findings(quantized(**(INT4 | {"targets": [name]})))
    assert finding.severity == "refuse"
    assert name in finding.message


def test_vllm_refuses_exact_and_anchored_ignores_but_for_the_head() -> None:
    config = quantized(**INT4)
    for name in ("model.layers.0.mlp.up_proj", "re:^model.norm"):
        config["quantization_config"]["ignore"] = ["lm_head", name]
        (finding,) = findings(config)
        assert finding.severity == "refuse"
    config["quantization_config"]["ignore"] = ["lm_head", "re:.*up_proj$", r"re:(.*\.)?norm$"]
    assert findings(config) == []


def test_vllm_warns_of_a_type_that_cannot_be_pinned() -> None:
    draft = Draft(Path("d"), quantized(**INT4), {"vocab_size": 512})
    assert [f.message for f in vllm.check(draft)] == [
        "the target's float type was not read: pin it with --dtype."
    ]


def test_an_unread_target_is_said() -> None:
    (finding,) = vllm.check(Draft(Path("d"), quantized(**INT4), None))
    assert finding.severity == "warn"
    assert "not read" in finding.message


def test_transformers_script_compiles_with_a_fixed_k() -> None:
    script = transformers.launch(
        LaunchPair("org/T", Path("/srv/o'draft"), 6, acceptance_rule="greedy")
    )
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
    sampled = LaunchPair("T", Path("d"), 6, acceptance_rule="rejection")
    assert "do_sample=True" in transformers.launch(sampled)


def test_transformers_script_runs(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its paths are those beside it, wherever it is called from."""
    monkeypatch.chdir("/")
    target = os.path.relpath(tiny_pair.target, tiny_pair.draft)
    script = transformers.launch(LaunchPair(target, Path(), 3, dtype="float32"))
    monkeypatch.setattr(sys, "argv", ["launch.py", "def f(x):"])
    ran: dict[str, Any] = {"__file__": str(tiny_pair.draft / "launch.py")}
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


def flag(line: str, name: str) -> str:
    words = shlex.split(line)
    assert words.count(name) == 1
    return words[words.index(name) + 1]


def test_sglang_line_has_every_flag_and_one_token_more_than_steps() -> None:
    line = sglang.launch(LaunchPair("org/T", Path("/srv/my draft"), 5, dtype="bfloat16"))
    assert shlex.split(line)[:3] == ["python", "-m", "sglang.launch_server"]
    assert flag(line, "--model-path") == "org/T"
    assert flag(line, "--dtype") == "bfloat16"
    assert flag(line, "--speculative-algorithm") == "STANDALONE"
    assert flag(line, "--speculative-draft-model-path") == "/srv/my draft"
    assert flag(line, "--speculative-num-steps") == "5"
    assert flag(line, "--speculative-eagle-topk") == "1"
    assert flag(line, "--speculative-num-draft-tokens") == "6"
    assert "rejection" not in line
    sampled = sglang.launch(LaunchPair("T", Path("d"), 5, acceptance_rule="rejection"))
    assert "--speculative-use-rejection-sampling" in shlex.split(sampled)


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (PLAIN, "unquant"),
        (quantized(**INT4), "compressed-tensors"),
        (quantized(**FP8), "compressed-tensors"),
        (GPTQ, "gptq_marlin"),
        (GPTQ | {"quantization_config": GPTQ["quantization_config"] | {"sym": False}}, "gptq"),
        (NF4, "bitsandbytes"),
    ],
)
def test_sglang_is_always_told_the_drafts_quantization(config: dict[str, Any], value: str) -> None:
    pair = LaunchPair("T", Path("d"), 4, quantization=config.get("quantization_config", {}))
    assert flag(sglang.launch(pair), "--speculative-draft-model-quantization") == value


def test_sglang_refuses_unequal_vocabularies_and_unknown_methods() -> None:
    (finding,) = sglang.check(Draft(Path("d"), quantized(**INT4), PLAIN | {"vocab_size": 640}))
    assert finding.severity == "refuse"
    assert "24051" in finding.message
    assert "--pad-vocab" in finding.message
    other = PLAIN | {"quantization_config": {"quant_method": "hqq"}}
    found = sglang.check(Draft(Path("d"), other, PLAIN))
    assert ("refuse", True) in [(f.severity, "'hqq'" in f.message) for f in found]
    assert sglang.check(Draft(Path("d"), quantized(**INT4), PLAIN)) == ()


def test_tensorrt_llm_line_names_the_yaml_that_names_the_draft() -> None:
    pair = LaunchPair("org/T", Path("/srv/my draft"), 5, dtype="bfloat16")
    line = tensorrt_llm.launch(pair)
    assert shlex.split(line)[:2] == ["trtllm-serve", "org/T"]
    assert flag(line, "--backend") == "pytorch"
    assert flag(line, "--config") == "/srv/my draft/trtllm.yaml"
    (text,) = tensorrt_llm.extra_files(pair).values()
    config = yaml.safe_load(text)
    assert config["dtype"] == "bfloat16"
    assert config["speculative_config"] == {
        "decoding_type": "Draft_Target",
        "max_draft_len": 5,
        "speculative_model": "/srv/my draft",
    }


def test_tensorrt_llm_refuses_what_it_has_no_loader_for() -> None:
    refused = tensorrt_llm.check(Draft(Path("d"), quantized(**INT4), PLAIN))
    assert [f.severity for f in refused] == ["refuse"]
    assert "int4" in refused[0].message
    (warned,) = tensorrt_llm.check(Draft(Path("d"), quantized(**FP8), PLAIN))
    assert warned.severity == "warn"
    for group in (NVFP4A16, FP8_STATIC, INT8):
        (other,) = tensorrt_llm.check(Draft(Path("d"), quantized(**group), PLAIN))
        assert other.severity == "refuse"
    assert "takes 8 bits for FP8" in other.message
    for method in ("gptq:int4", "gptq:int8-weight-only", "awq:int4", "fbgemm_fp8:fp8", "fp8:fp8"):
        assert tensorrt_llm.loads.formats[method].level == "no"
    assert tensorrt_llm.check(Draft(Path("d"), PLAIN, PLAIN)) == ()


def test_llamacpp_line_has_a_constant_k_and_an_f16_cache() -> None:
    line = llamacpp.launch(LaunchPair("/srv/T.gguf", Path("/srv/my draft/draft-q8_0.gguf"), 5))
    assert shlex.split(line)[0] == "llama-server"
    assert flag(line, "-m") == "/srv/T.gguf"
    assert flag(line, "-md") == "/srv/my draft/draft-q8_0.gguf"
    assert flag(line, "--spec-type") == "draft-simple"
    assert flag(line, "--spec-draft-n-max") == "5"
    assert flag(line, "--spec-draft-p-min") == "0"
    assert flag(line, "-ctkd") == flag(line, "-ctvd") == "f16"


def test_llamacpp_leaves_the_draft_unused_beyond_128_tokens_of_difference() -> None:
    near, far = (Draft(Path("d"), PLAIN, {"vocab_size": 512 + n}) for n in (128, 129))
    assert llamacpp.check(near) == ()
    assert [f.severity for f in llamacpp.check(far)] == ["warn"]


@pytest.mark.parametrize(
    ("config", "name", "gguf_type"),
    [
        (PLAIN, "dense", "bf16"),
        (quantized(**INT4), "int4", "q4_0"),
        (quantized(**W8A16), "int8-weight-only", "q8_0"),
        (quantized(**INT8), "int8", "q8_0"),
        (quantized(**FP8), "fp8", "q8_0"),
        (quantized(**FP8_STATIC), "fp8-static", "q8_0"),
        (quantized(**FP8_BLOCK), "fp8-block", "q8_0"),
        (quantized(**NVFP4A16), "nvfp4-weight-only", "q4_0"),
        (GPTQ, "gptq:int4", "q4_0"),
        (NF4, "nf4", "q4_0"),
    ],
)
def test_a_stored_config_is_found_in_the_table(
    config: dict[str, Any], name: str, gguf_type: str
) -> None:
    quantization = config.get("quantization_config", {})
    assert stored_names(quantization) == [name]
    assert vllm.loads.of_checkpoint(quantization) == vllm.loads.formats[name]
    assert conversion.closest_type(quantization) == gguf_type


def test_a_quantized_cache_is_said_by_every_engine_and_what_nobody_tried_is_not_known() -> None:
    for config in (quantized(**FP8), PLAIN | {"quantization_config": dict(CACHE_ALONE)}):
        config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
        for engine in (vllm, sglang, tensorrt_llm, transformers):
            found = engine.check(Draft(Path("d"), config, PLAIN))
            assert {f.severity for f in found} == {"warn"}
            (said,) = [f.message for f in found if "with an FP8 cache" in f.message]
            assert ("not known" in said) == (engine is sglang)


MODELOPT = {"quant_method": "modelopt"}
FOREIGN: dict[str, tuple[dict[str, Any], str]] = {  # by name in tables: config, closest GGUF type
    "modelopt:fp8-static": (MODELOPT | {"quantization": {"quant_algo": "FP8"}}, "q8_0"),
    "modelopt:fp8": (MODELOPT | {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "q8_0"),
    "modelopt:fp8-block": (MODELOPT | {"quant_algo": "FP8_PB_WO"}, "q8_0"),
    "modelopt:nvfp4": (MODELOPT | {"quant_algo": "NVFP4"}, "q4_0"),
    "modelopt:nvfp4-weight-only": (MODELOPT | {"quant_algo": "W4A16_NVFP4"}, "q4_0"),
    "modelopt:int4": (MODELOPT | {"quant_algo": "W4A16_AWQ"}, "q4_0"),
    "modelopt:int4-fp8": (MODELOPT | {"quant_algo": "W4A8_AWQ"}, "q4_0"),
    "modelopt:int8-weight-only": (MODELOPT | {"quant_algo": "W8A16"}, "q8_0"),
    "modelopt:int8-static": (MODELOPT | {"quant_algo": "W8A8_SQ_PER_CHANNEL"}, "q8_0"),
    "modelopt:mxfp8": (MODELOPT | {"quant_algo": "MXFP8"}, "q8_0"),
    "awq:int4": ({"quant_method": "awq", "bits": 4, "group_size": 128}, "q4_0"),
    "fp8:fp8-block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "q8_0"),
    "fp8:fp8": ({"quant_method": "fp8"}, "q8_0"),
    "fp8:fp8-static": ({"quant_method": "fp8", "activation_scheme": "static"}, "q8_0"),
    "fbgemm_fp8:fp8": ({"quant_method": "fbgemm_fp8"}, "q8_0"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_other_tools_publish_has_a_row_in_every_table(name: str) -> None:
    quantization, gguf_type = FOREIGN[name]
    assert stored_names(quantization) == [name]
    assert conversion.closest_type(quantization) == gguf_type
    config = PLAIN | {"quantization_config": quantization}
    for engine in (vllm, sglang, transformers, tensorrt_llm, llamacpp):
        assert name in engine.loads.formats
        assert not [
            f for f in engine.check(Draft(Path("d"), config, PLAIN)) if "not know" in str(f)
        ]
    refused = {f.severity for f in transformers.check(Draft(Path("d"), config, PLAIN))}
    drops = name.startswith("modelopt:") or name in {"fp8:fp8", "fp8:fp8-static"}
    assert ("refuse" in refused) == drops  # it would read other scales, or none


def test_fp8_scales_have_the_name_that_the_engine_reads() -> None:
    by_weight = {"quant_method": "fp8", "weight_block_size": None}
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    cases = [  # config, name of its scales, who refuses it
        (by_weight, "weight_scale", {transformers}),
        (by_weight, "weight_scale_inv", {vllm, sglang}),
        (blocks, "weight_scale_inv", set()),
        (blocks, "weight_scale", {vllm, sglang, transformers}),
    ]
    for quantization, scale, refusing in cases:
        config = PLAIN | {"quantization_config": quantization}
        draft = Draft(Path("d"), config, PLAIN, parameters=frozenset({"weight", scale}))
        found = {e for e in (vllm, sglang, transformers) if refusals(e, draft)}
        assert found == refusing
        assert all(f"'{scale}'" in refusals(e, draft)[0] for e in refusing)


def test_fp8_without_blocks_in_its_config_is_not_for_transformers() -> None:
    for scheme in ("dynamic", "static"):
        own = {"quant_method": "fp8", "activation_scheme": scheme, "ignored_layers": ["lm_head"]}
        draft = Draft(Path("d"), PLAIN | {"quantization_config": own}, PLAIN)
        (said,) = refusals(transformers, draft)
        assert "weight_block_size" in said
        assert not refusals(vllm, draft)


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        (MODELOPT | {"quantization": {"exclude_modules": ["model.layers.0.*"]}}, "model.layers.0"),
        (MODELOPT | {"ignore": ["model.layers.0.mlp*"]}, "model.layers.0.mlp*"),
        (MODELOPT | {"exclude_modules": ["lm_head", "*router*", "model.layers.1"]}, None),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp.gate"]}, "gate"),
        ({"quant_method": "fp8", "ignored_layers": ["lm_head", "model.norm"]}, None),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.0.o"]}, "0.o"),
        ({"quant_method": "awq", "modules_to_not_convert": ["model.layers.0.mlp"]}, None),
        (GPTQ["quantization_config"] | {"dynamic": {"-:model.layers.0": {}}}, "model.layers.0"),
        (GPTQ["quantization_config"] | {"dynamic": {"-:.*layers.0": {}}}, None),
    ],
)
def test_vllm_refuses_lists_whose_names_match_nothing_in_a_draft(
    quantization: dict[str, Any], name: str | None
) -> None:
    own = {"quant_algo": "FP8"} | quantization
    if isinstance(nested := own.get("quantization"), dict):
        own = own | {"quantization": nested | {"quant_algo": "FP8"}}
    said = refusals(vllm, Draft(Path("d"), PLAIN | {"quantization_config": own}, PLAIN))
    assert len(said) == (name is not None)
    assert name is None or (name in said[0] and "draft_model." in said[0])


def test_vllm_refuses_a_list_of_layers_and_gptq_with_zero_points() -> None:
    layers = {"model.layers.0.up_proj": {"quant_algo": "FP8"}}
    mixed = MODELOPT | {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    zeros = GPTQ["quantization_config"] | {"sym": False}
    for own, word in ((mixed, "model.layers.0.up_proj"), (zeros, "'sym': true")):
        draft = Draft(Path("d"), PLAIN | {"quantization_config": own}, PLAIN)
        assert word in refusals(vllm, draft)[0]


def test_gptq_of_every_width_is_known_to_every_engine() -> None:
    for bits, levels in {8: "yes", 3: "no", 2: "no"}.items():
        own = GPTQ["quantization_config"] | {"bits": bits}
        assert vllm.loads.of_checkpoint(own).level == levels
        known = [table.of_checkpoint(own).level for table in support_tables().values()]
        assert "unknown" not in known


def test_llamacpps_converter_reads_what_it_was_run_on() -> None:
    levels = {name: each.level for name, each in llamacpp.loads.formats.items()}
    for name in ("gptq:int4", "fp8:fp8-block", "modelopt:nvfp4", "modelopt:fp8-static"):
        assert levels[name] == "part"
    for name in ("awq:int4", "fbgemm_fp8:fp8", "fp8-static"):
        assert levels[name] == "no"


def test_inputs_by_a_stored_scale_on_vllms_cpu_are_said_to_be_untried() -> None:
    group = W8A16 | {"input_activations": {"num_bits": 8, "type": "int", "dynamic": False}}
    own = quantized(**group)["quantization_config"]
    assert stored_names(own) == ["int8-static"]
    assert vllm.loads_on_cpu is not None
    found = vllm.loads_on_cpu.of_checkpoint(own)
    assert (found.level, "not run" in str(found.note)) == ("part", True)


def test_modelopts_mixed_precision_is_as_loadable_as_its_worst_layer() -> None:
    layers = {"a.up_proj": {"quant_algo": "FP8"}, "a.down_proj": {"quant_algo": "W4A16_AWQ"}}
    own = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    quantization = MODELOPT | {"quantization": own}
    assert stored_names(quantization) == ["modelopt:fp8-static", "modelopt:int4"]
    assert vllm.loads.of_checkpoint(quantization).level == "no"


def test_sglang_is_told_which_of_modelopts_loaders_to_use() -> None:
    for algorithm, word in {"FP8": "modelopt", "NVFP4": "modelopt_fp4"}.items():
        said = MODELOPT | {"quantization": {"quant_algo": algorithm}}
        line = sglang.launch(LaunchPair("org/T", Path("d"), 4, quantization=said))
        assert f"--speculative-draft-model-quantization {word}" in line


def test_int4_with_fp8_inputs_is_for_one_gpu_generation() -> None:
    config = quantized(**(INT4 | {"input_activations": FP8["input_activations"]}))
    assert stored_names(config["quantization_config"]) == ["int4-fp8"]
    assert "9.0" in findings(config)[0].message
    (refused,) = sglang.check(Draft(Path("d"), config, PLAIN))
    assert refused.severity == "refuse"


def test_every_engine_says_the_launch_line_in_its_file() -> None:
    pair = LaunchPair("org/T", Path("/srv/draft"), 4)
    for engine in map(engine_named, ENGINES):
        assert engine.launch(pair) in engine.launch_text(engine.launch(pair), pair.target)


def test_engines_have_all_parts_and_unknown_ones_are_refused() -> None:
    for name in ENGINES:
        engine = engine_named(name)
        assert engine.name == name
        assert set(engine.loads.formats) <= set(FORMATS)
        assert engine.launch_file
        assert engine.notes
    assert engine_named("llama.cpp") is llamacpp
    assert engine_named("tensorrt_llm") is tensorrt_llm
    with pytest.raises(OptionError, match="vllm, sglang, transformers, tensorrt-llm, llamacpp"):
        engine_named("ollama")


class Mine(Engine):
    name = "mine"
    launch_file = "launch.sh"
    notes = ("It is an example.",)
    loads = SupportTable({"dense": YES, "int4": NO})

    def launch(self, pair: LaunchPair) -> str:
        return f"mine {pair.target} {pair.draft}"

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        return tuple(self.loading(draft))


def test_an_engine_is_one_class_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "mine", f"{__name__}:Mine")
    mine = engine_named("Mine")
    assert mine.check(Draft(Path("d"), PLAIN, PLAIN)) == ()
    (refused,) = mine.check(Draft(Path("d"), quantized(**INT4), PLAIN))
    assert refused.message == "mine does not load int4: it has no loader for this format"
    assert support_tables()["mine"] is Mine.loads


def test_engines_names_are_known_before_an_engine_is_imported() -> None:
    code = (
        "import sys; from quantdraft.engines.registry import ENGINES; "
        "print([name for name in sys.modules if name.startswith('quantdraft.engines.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['quantdraft.engines.registry']"


def test_groups_that_no_kernel_of_an_engine_has_are_refused() -> None:
    def grouped(size: int) -> dict[str, Any]:
        return quantized(weights={**(INT4["weights"] or {}), "group_size": size})

    assert findings(grouped(64)) == []
    (refused,) = findings(grouped(48))
    assert refused.severity == "refuse"
    assert "its kernels load groups of 32, 64 or 128, not of 48" in refused.message
    awq = PLAIN | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 256}}
    assert any("not of 256" in each.message for each in findings(awq))
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True}
    row = PLAIN | {"quantization_config": gptq}
    assert not any("groups" in each.message for each in findings(row))


def test_matrices_without_a_tile_are_padded_by_vllm_and_refused_by_sglang() -> None:
    """960 by 576 are q, k and v of SmolLM2-135M."""
    draft = Draft(Path("d"), quantized(**INT4), {"vocab_size": 512}, {"l.qkv_proj": (960, 576)})
    of_vllm = {each.message: each.severity for each in vllm.check(draft)}
    (padded,) = [message for message in of_vllm if "960 outputs by 576" in message]
    assert of_vllm[padded] == "warn"
    assert "llm-compressor#1489" in padded
    refused = [each.message for each in sglang.check(draft) if each.severity == "refuse"]
    assert any("no tile for 960 outputs by 576 inputs" in message for message in refused)
    odd = Draft(Path("d"), quantized(**INT4), None, {"l.o_proj": (128, 48)})
    said = " ".join(each.message for each in vllm.check(odd))
    assert "not on a CPU: its sizes are multiples of 32, and 'l.o_proj' is of 128 by 48" in said
