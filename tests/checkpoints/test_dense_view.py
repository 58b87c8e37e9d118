"""The float tensors that stored files stand for: from headers, whatever library wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.claims import claims_but_not_quantized
from quantdraft.checkpoints.dense_view import dense_view
from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.layouts import stored_tensors
from quantdraft.checkpoints.stored_formats import linear_modules, stored_format
from quantdraft.checkpoints.weights import TensorInfo, read_tensors
from quantdraft.errors import CheckpointError
from tests.stored import LLAMA_CONFIG, Shapes, llama_tensors, write_checkpoint

UP = "model.layers.0.mlp.up_proj"
SHAPE_TENSORS = ("weight_shape", "quant_state")  # a file of zeros does not say a shape


def group(num_bits: int, kind: str, **fields: Any) -> dict[str, Any]:
    weights = {"num_bits": num_bits, "type": kind, "symmetric": True} | fields
    return {"targets": ["Linear"], "weights": weights}


def compressed(name: str, inputs: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    scheme = {"g": group(**fields) | {"input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": scheme}


CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": compressed("float-quantized", num_bits=8, kind="float", strategy="channel"),
    "fp8-one": compressed("float-quantized", num_bits=8, kind="float", strategy="tensor"),
    "int8-asym": compressed(
        "int-quantized", num_bits=8, kind="int", strategy="channel", symmetric=False
    ),
    "nvfp4": compressed(
        "nvfp4-pack-quantized", num_bits=4, kind="float", strategy="tensor_group", group_size=16
    ),
    "gptq-4": {"quant_method": "gptq", "bits": 4, "group_size": 32},
    "gptq-3": {"quant_method": "gptq", "bits": 3, "group_size": 64},
    "gptq-8": {"quant_method": "gptq", "bits": 8, "group_size": -1},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "awq-gemv": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"},
    "block-fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "autofp8": {"quant_method": "fp8", "activation_scheme": "static"},
    "fbgemm": {"quant_method": "fbgemm_fp8"},
    "llm-int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    **{
        f"modelopt-{name}": {"quant_method": "modelopt", "quant_algo": name}
        for name in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "MXFP8")
    },
    **{
        f"modelopt-{name}": {"quant_method": "modelopt", "quant_algo": name, "group_size": 128}
        for name in ("W4A16_AWQ", "W4A8_AWQ")
    },
}


def quantized(quantization: dict[str, Any]) -> Shapes:
    """The llama's tensors with every Linear stored as the config says."""
    tensors = {name: TensorInfo(*entry, "") for name, entry in llama_tensors().items()}
    for module in list(linear_modules(tensors)):
        fmt = stored_format(quantization, module)
        if fmt is not None:
            parts = stored_tensors(fmt, tensors.pop(f"{module}.weight"))
            tensors |= {f"{module}.{part}": info for part, info in parts.items()}
    return {
        name: (info.dtype, info.shape)
        for name, info in tensors.items()
        if not any(word in name for word in SHAPE_TENSORS)
    }


def write(directory: Path, tensors: Shapes, quantization: dict[str, Any] | None) -> Path:
    extra = {} if quantization is None else {"quantization_config": quantization}
    return write_checkpoint(directory, tensors, LLAMA_CONFIG | extra)


def refuse(directory: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        dense_view(open_checkpoint(directory))
    text = str(raised.value)
    assert all(word in text for word in (*words, str(directory)) if word), text
    assert "\n" not in text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layout_stands_for_the_weights_it_was_made_of(tmp_path: Path, name: str) -> None:
    write(tmp_path, quantized(CONFIGS[name]), CONFIGS[name])
    found = {n: info.shape for n, info in dense_view(open_checkpoint(tmp_path)).items()}
    assert found == {n: shape for n, (_, shape) in llama_tensors().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_part_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    """Each part that carries value, one after another: the scale, and the weight itself."""
    tensors = quantized(CONFIGS[name])
    parts = [n for n in tensors if n.startswith(f"{UP}.")]
    for lost in parts:
        if lost.endswith(("g_idx", "weight_format")):
            continue
        write(tmp_path, {n: t for n, t in tensors.items() if n != lost}, CONFIGS[name])
        refuse(tmp_path, f"no {lost}")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_part_of_another_type_or_shape_is_named(tmp_path: Path, name: str) -> None:
    """Bytes for integers, a row for a column, a list for a matrix: libraries compute with them."""
    tensors = quantized(CONFIGS[name])
    for part in [n for n in tensors if n.startswith(f"{UP}.") and not n.endswith("weight_format")]:
        dtype, shape = tensors[part]
        wrong: list[tuple[str, tuple[int, ...]]] = [("BOOL", shape), (dtype, (*shape, 2))]
        if len(shape) == 2 and 1 not in shape and not part.endswith(".weight"):
            wrong += [(dtype, shape[::-1]), (dtype, (math.prod(shape),))]
        for each in wrong:
            write(tmp_path, tensors | {part: each}, CONFIGS[name])
            with pytest.raises(CheckpointError, match=rf"holds {UP}|{part}|of shape"):
                dense_view(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("name", "part", "shape"),
    [
        ("fp8", "weight_scale", (1, 768)),
        ("fp8", "weight_scale", (768,)),
        ("int8-asym", "weight_zero_point", (1, 768)),
        ("int8-asym", "weight_zero_point", (768,)),
    ],
)
def test_a_number_per_row_that_lies_as_a_row_is_refused(
    tmp_path: Path, name: str, part: str, shape: tuple[int, ...]
) -> None:
    """compressed-tensors would spread it over the columns, wherever the sizes allow it."""
    tensors = quantized(CONFIGS[name])
    wrong = {f"{UP}.{part}": (tensors[f"{UP}.{part}"][0], shape)}
    refuse(write(tmp_path, tensors | wrong, CONFIGS[name]), f"{UP}.{part}", "[768, 1]")


def test_columns_in_another_order_need_the_order(tmp_path: Path) -> None:
    tensors = quantized(CONFIGS["gptq-4"])
    less = {n: t for n, t in tensors.items() if not n.endswith("g_idx")}
    write(tmp_path, less, CONFIGS["gptq-4"])
    assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()
    write(tmp_path, less, CONFIGS["gptq-4"] | {"desc_act": True})
    refuse(tmp_path, "no model.layers.0.", "g_idx")


@pytest.mark.parametrize(("byte", "is_read"), [(0, True), (3, False)])
def test_zero_points_under_a_symmetric_config_must_be_none(
    tmp_path: Path, byte: int, is_read: bool
) -> None:
    weights = CONFIGS["int8-asym"]["config_groups"]["g"]["weights"] | {"symmetric": True}
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    config = CONFIGS["int8-asym"] | {"config_groups": groups}
    write(tmp_path, quantized(CONFIGS["int8-asym"]), config)
    file = tmp_path / "model.safetensors"
    at = read_tensors(tmp_path)[f"{UP}.weight_zero_point"].offset
    raw = bytearray(file.read_bytes())
    raw[at] = byte
    file.write_bytes(raw)
    if is_read:
        assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()
    else:
        refuse(tmp_path, "weight_zero_point", "'symmetric' true")


@pytest.mark.parametrize(
    ("key", "edit"),
    [
        ("exclude_modules", {"exclude_modules": ["re:["]}),
        ("ignore", {"ignore": ["re:["]}),
        ("dynamic", {"dynamic": {"+:[": {}}}),
        ("dynamic", {"dynamic": {"-:*": {}}}),
    ],
)
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, key: str, edit: dict[str, Any]) -> None:
    config = CONFIGS["modelopt-FP8"] | edit
    refuse(write(tmp_path, quantized(CONFIGS["modelopt-FP8"]), config), key, "is not a pattern")


def test_weights_that_are_rounded_anew_in_every_step_are_refused(tmp_path: Path) -> None:
    config = compressed("float-quantized", num_bits=8, kind="float", strategy="channel")
    tensors = quantized(config)
    config["config_groups"]["g"]["weights"]["dynamic"] = True
    refuse(write(tmp_path, tensors, config), "'dynamic'")


@pytest.mark.parametrize(
    ("file", "own", "beside"),
    [
        (
            "hf_quant_config.json",
            CONFIGS["modelopt-FP8"],
            {"quantization": {"quant_algo": "NVFP4"}},
        ),
        ("quantize_config.json", CONFIGS["gptq-4"], {"bits": 4, "group_size": 128}),
        ("quantize_config.json", CONFIGS["gptq-4"] | {"sym": True}, {"bits": 4, "sym": False}),
        ("quant_config.json", CONFIGS["awq"], {"w_bit": 4, "q_group_size": 64}),
    ],
)
def test_two_files_that_contradict_each_other_are_refused(
    tmp_path: Path, file: str, own: dict[str, Any], beside: dict[str, Any]
) -> None:
    write(tmp_path, quantized(own), own)
    (tmp_path / file).write_text(json.dumps(beside))
    refuse(tmp_path, "contradicts itself", f"in {file}")
    (tmp_path / file).write_text(json.dumps({"quantization": own}))  # the same said twice
    dense_view(open_checkpoint(tmp_path))


@pytest.mark.parametrize("name", CONFIGS)
def test_scales_that_the_config_does_not_speak_of_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, quantized(CONFIGS[name]), None)
    refuse(tmp_path, "no quantization at all", "Add the quantization config")


def test_float8_weights_alone_are_refused(tmp_path: Path) -> None:
    tensors = llama_tensors() | {f"{UP}.weight": ("F8_E4M3", (768, 256))}
    refuse(write(tmp_path, tensors, None), f"{UP}.weight", "F8_E4M3", "no quantization")


def test_scales_of_a_cache_need_a_config_that_says_so(tmp_path: Path) -> None:
    scale = {"model.layers.0.self_attn.k_proj.k_scale": ("F32", ())}
    write(tmp_path, quantized(CONFIGS["modelopt-FP8"]) | scale, CONFIGS["modelopt-FP8"])
    refuse(tmp_path, "k_proj.k_scale", "no quantized cache")
    said = CONFIGS["modelopt-FP8"] | {"kv_cache_quant_algo": "FP8"}
    write(tmp_path, quantized(CONFIGS["modelopt-FP8"]) | scale, said)
    assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()


def test_a_scale_for_a_layer_that_is_left_out_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["modelopt-FP8"] | {"ignore": ["*.up_proj"]}
    refuse(write(tmp_path, quantized(CONFIGS["modelopt-FP8"]), config), UP, "is not quantized")


def test_a_group_size_that_the_scales_contradict_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["gptq-4"] | {"group_size": 64}
    write(tmp_path, quantized(CONFIGS["gptq-4"]), config)
    refuse(tmp_path, "groups of 64", "q_proj.")


@pytest.mark.parametrize("method", ["hqq", "quanto", "torchao", "aqlm", "gguf", "auto-round"])
def test_a_library_that_is_not_read_is_named(tmp_path: Path, method: str) -> None:
    refuse(write(tmp_path, llama_tensors(), {"quant_method": method}), method, "does not read")


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    config = CONFIGS["fp8"] | {"sparsity_config": {"format": "sparse-24-bitmask"}}
    refuse(write(tmp_path, quantized(CONFIGS["fp8"]), config), "sparse-24-bitmask")


INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"symmetric": False}, "around a zero point"),
        ({"strategy": "tensor"}, "depend on its batch"),
        ({"num_bits": 4}, "type 'int' with 4 bits"),
        ({"num_bits": 16, "type": "float"}, "type 'float' with 16 bits"),
    ],
)
def test_inputs_that_are_rounded_in_another_way_are_refused(
    tmp_path: Path, edit: dict[str, Any], said: str
) -> None:
    layer = group(8, "int", strategy="channel")
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    config |= {"config_groups": {"g": layer | {"input_activations": INPUTS}}}
    tensors = quantized(config)
    write(tmp_path, tensors, config)
    assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()
    config["config_groups"] = {"g": layer | {"input_activations": INPUTS | edit}}
    refuse(write(tmp_path, tensors, config), said)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"output_activations": INPUTS}, "'output_activations'"),
        ({"weights": group(16, "float", strategy="channel")["weights"]}, "with 16 bits"),
        ({"weights": group(4, "float", strategy="channel")["weights"]}, "with 4 bits"),
    ],
)
def test_what_else_a_group_may_say_is_refused(
    tmp_path: Path, edit: dict[str, Any], said: str
) -> None:
    config = CONFIGS["fp8"]
    refuse_group = {"g": config["config_groups"]["g"] | edit}
    refuse(write(tmp_path, quantized(config), config | {"config_groups": refuse_group}), said)


def test_rotations_while_it_runs_are_refused(tmp_path: Path) -> None:
    config = CONFIGS["fp8"] | {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}
    refuse(write(tmp_path, quantized(CONFIGS["fp8"]), config), "transform_config")


def test_gptqmodels_rules_give_a_module_its_own_bits_or_none(tmp_path: Path) -> None:
    rules = {"-:.*down_proj": {}, r"+:.*up_proj": {"bits": 8, "group_size": 64}}
    config = CONFIGS["gptq-4"] | {"dynamic": rules}
    assert stored_format(config, "model.layers.0.mlp.down_proj") is None
    fmt = stored_format(config, UP)
    assert fmt is not None
    assert (fmt.num_bits, fmt.group_size) == (8, 64)
    write(tmp_path, quantized(config), config)
    assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()


def test_experts_in_blocks_become_one_parameter(tmp_path: Path) -> None:
    experts = "model.layers.0.mlp.experts.gate_up_proj"
    blocks: Shapes = {f"{experts}_blocks": ("U8", (4, 128, 2, 16))}
    scales: Shapes = {f"{experts}_scales": ("U8", (4, 128, 2))}
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    write(tmp_path, llama_tensors() | blocks | scales, config)
    assert dense_view(open_checkpoint(tmp_path))[experts].shape == (4, 64, 128)
    write(tmp_path, llama_tensors() | blocks, config)
    refuse(tmp_path, f"{experts}_blocks", "without its scales")
    write(tmp_path, llama_tensors() | blocks | scales, None)
    refuse(tmp_path, "no 'mxfp4'")


def test_modelopts_own_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, quantized(CONFIGS["modelopt-FP8"]), None)
    own = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": own}))
    assert dense_view(open_checkpoint(tmp_path)).keys() == llama_tensors().keys()


def test_a_shape_without_files_is_read_too() -> None:
    fmt = SCHEMES["W4A16"]
    parts = stored_tensors(fmt, TensorInfo("BF16", (64, 128), "none.safetensors"))
    assert set(parts) == {"weight_packed", "weight_scale", "weight_shape"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_claim_of_any_read_format_is_checked_against_the_files(tmp_path: Path, name: str) -> None:
    quantization = CONFIGS[name]
    told = claims_but_not_quantized(
        open_checkpoint(write(tmp_path / "true", quantized(quantization), quantization))
    )
    assert told is None
    told = claims_but_not_quantized(
        open_checkpoint(write(tmp_path / "false", llama_tensors(), quantization))
    )
    assert "claims" in (told or "")
