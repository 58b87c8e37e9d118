"""Directories as other tools publish them, made of a float draft: by hand, to the tool's layout.

`write_foreign(kind, source, directory)` quantizes every Linear of a draft but its head; it returns
the float weights that the files stand for, by name. compressed-tensors' and bitsandbytes' are
written by these libraries themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.tensors.packing import AWQ_ORDER, pack_stream

GROUP = 64
INPUT_SCALE = 0.05
Stored = tuple[dict[str, Any], Any]  # tensors by the part's name, and the float weight


@dataclass(frozen=True)
class Kind:
    """A layout: what becomes of a weight, and what the config says of it, in which file."""

    store: Callable[[Any], Stored]
    config: Mapping[str, Any]
    file: str = "config.json"
    name: str = "quantization_config"  # where the config stands in its file; "": it is the file
    scheme: Mapping[str, Any] = field(default_factory=dict)


def _groups(weight: Any, group_size: int, is_symmetric: bool) -> tuple[Any, Any, Any]:
    """Return fields in [0, 16), scales and zero points of groups in a row: (out, groups)."""
    import torch

    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, group_size)
    if is_symmetric:
        scale = groups.abs().amax(-1) / 7
        zeros = torch.full_like(scale, 8)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / 15
        zeros = (-low / scale).round().clamp(1, 15)  # 0 has no place in the older layout
    scale = scale.half().float().clamp(min=1e-5)
    fields = (groups / scale[..., None]).round() + zeros[..., None]
    return fields.clamp(0, 15).reshape(rows, columns).long(), scale, zeros.long()


def _spread(fields: Any, scale: Any, zeros: Any, group_of_column: Any) -> Any:
    return (fields.float() - zeros.float()[:, group_of_column]) * scale[:, group_of_column]


def _gptq(is_symmetric: bool, is_v2: bool = False, has_order: bool = False) -> Any:
    def store(weight: Any) -> Stored:
        import torch

        columns = weight.shape[1]
        order = torch.arange(columns)
        if has_order:  # the most important columns first
            order = weight.float().pow(2).sum(0).argsort(descending=True, stable=True)
        fields, scale, zeros = _groups(weight[:, order], GROUP, is_symmetric)
        group_of_column = torch.empty(columns, dtype=torch.long)
        group_of_column[order] = torch.arange(columns) // GROUP
        in_place = torch.empty_like(fields)
        in_place[:, order] = fields
        parts = {
            "qweight": pack_stream(in_place, 4).T.contiguous(),
            "qzeros": pack_stream((zeros if is_v2 else zeros - 1).T.contiguous(), 4),
            "scales": scale.T.contiguous().half(),
            "g_idx": group_of_column.int(),
        }
        return parts, _spread(in_place, scale, zeros, group_of_column)

    return store


def _awq(weight: Any) -> Stored:
    import torch

    def pack(fields: Any) -> Any:
        ordered = fields.reshape(len(fields), -1, 8)[..., list(AWQ_ORDER)]
        return pack_stream(ordered.flatten(1), 4)

    fields, scale, zeros = _groups(weight, GROUP, is_symmetric=False)
    parts = {
        "qweight": pack(fields.T.contiguous()),
        "qzeros": pack(zeros.T.contiguous()),
        "scales": scale.T.contiguous().half(),
    }
    return parts, _spread(fields, scale, zeros, torch.arange(weight.shape[1]) // GROUP)


def _fp8(weight: Any, scale: Any) -> tuple[Any, Any]:
    """Return E4M3 values, and what they stand for under a scale that fits the weight's shape."""
    import torch

    values = (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return values, values.float() * scale


def _fp8_block(weight: Any) -> Stored:
    rows, columns = weight.shape
    blocks = weight.float().abs().reshape(rows // 128, 128, columns // 128, 128)
    scale = blocks.amax((1, 3)) / 448
    values, dense = _fp8(weight, scale.repeat_interleave(128, 0).repeat_interleave(128, 1))
    return {"weight": values, "weight_scale_inv": scale}, dense


def _fp8_tensor(*inputs: str) -> Any:
    def store(weight: Any) -> Stored:
        import torch

        scale = weight.float().abs().max() / 448
        values, dense = _fp8(weight, scale)
        parts = {"weight": values, "weight_scale": scale.reshape(())}
        return parts | {name: torch.tensor(INPUT_SCALE) for name in inputs}, dense

    return store


def _fbgemm(weight: Any) -> Stored:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    values, dense = _fp8(weight, scale)
    return {"weight": values, "weight_scale": scale}, dense


def _nvfp4(weight: Any) -> Stored:
    import torch

    from quantdraft.checkpoints.tensors.microscaling import DOUBLED_E2M1

    rows, columns = weight.shape
    factor = weight.float().abs().max() / (6 * 448)
    groups = weight.float().reshape(rows, -1, 16)
    scale = (groups.abs().amax(-1) / 6 / factor).clamp(min=2**-6).to(torch.float8_e4m3fn)
    table = torch.tensor(DOUBLED_E2M1) / 2
    wanted = groups / (scale.float() * factor)[..., None]
    codes = (wanted[..., None] - table).abs().argmin(-1)
    dense = (table[codes] * (scale.float() * factor)[..., None]).reshape(rows, columns)
    pairs = codes.reshape(rows, -1, 2)
    parts = {
        "weight": (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8),
        "weight_scale": scale,
        "weight_scale_2": factor,
        "input_scale": torch.tensor(4 / (6 * 448)),
    }
    return parts, dense


def write_mxfp4(source: Path, directory: Path) -> None:
    """Write a gpt-oss as OpenAI publishes it: experts in blocks and scales, all else in floats."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, directory)
    stored: dict[str, Any] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = _mxfp4(tensor)
        else:
            stored[name] = tensor
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    path = directory / "config.json"
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "lm_head"]}
    config = json.loads(path.read_text()) | {"quantization_config": quantization}
    path.write_text(json.dumps(config))


def _mxfp4(weight: Any) -> tuple[Any, Any]:
    """Return blocks (experts, out, groups, 16) and scales (experts, out, groups), both uint8.

    weight: (experts, in, out)
    """
    import torch

    from quantdraft.checkpoints.tensors.microscaling import DOUBLED_E2M1

    groups = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    powers = groups.abs().amax(-1).clamp(min=2**-120).log2().floor() - 2
    wanted = groups / torch.exp2(powers)[..., None]
    codes = (wanted[..., None] - torch.tensor(DOUBLED_E2M1) / 2).abs().argmin(-1)
    pairs = codes.unflatten(-1, (16, 2))
    blocks = pairs[..., 0] | pairs[..., 1] << 4
    return blocks.to(torch.uint8).contiguous(), (powers + 127).to(torch.uint8).contiguous()


def _compressed(layout: str, **weights: Any) -> Any:
    return lambda weight: compress(layout, weights, weight)


def compress(layout: str, weights: Mapping[str, Any], weight: Any) -> Stored:
    """Return what compressed-tensors stores of a weight, and what it makes of that: float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": weight}
    if weights["strategy"] == "tensor_group":
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    low, high = _extremes(weight, weights)
    factor = state.get("weight_global_scale")
    scale, zeros = calculate_qparams(low, high, args, global_scale=factor)
    state["weight_scale"], state["weight_zero_point"] = scale, zeros
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    scale = stored["weight_scale"]
    exact = {"weight_scale": scale.float()} if scale.is_floating_point() else {}
    return stored, compressor.decompress(stored | exact, scheme)["weight"].float()


def _extremes(weight: Any, weights: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the least and the greatest weight under every scale."""
    import torch

    if weights["strategy"] == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if weights["strategy"] == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if weights["strategy"] != "block":
        groups = weight.reshape(len(weight), -1, weights["group_size"])
        return groups.amin(-1), groups.amax(-1)
    height, width = weights["block_structure"]
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    blocks = padded.unfold(0, height, height).unfold(1, width, width)
    return blocks.amin((-1, -2)), blocks.amax((-1, -2))


def _scheme(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Kind:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    config = {"quant_method": "compressed-tensors", "format": layout}
    config |= {"quantization_status": "compressed", "ignore": ["lm_head"]}
    return Kind(_compressed(layout, **weights), config | {"config_groups": {"group_0": group}})


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
_INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
_BY_TOKEN = {"strategy": "token", "dynamic": True, "symmetric": True}
_OLD_GPTQ = {"bits": 4, "group_size": GROUP, "damp_percent": 0.01, "static_groups": False}
_OLD_GPTQ |= {"true_sequential": True, "model_name_or_path": None, "model_file_base_name": "model"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
_MODELOPT = {"kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
_OWN_FILE = {"file": "hf_quant_config.json", "name": "quantization"}

KINDS: dict[str, Kind] = {
    "awq": Kind(_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "awq-old": Kind(
        _awq,
        {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"},
        "quant_config.json",
        "",
    ),
    "gptq": Kind(_gptq(is_symmetric=True), _GPTQ | {"sym": True, "desc_act": False}),
    "gptq-zeros-v2": Kind(
        _gptq(is_symmetric=False, is_v2=True),
        _GPTQ | {"sym": False, "desc_act": False, "checkpoint_format": "gptq_v2"},
    ),
    "gptq-old": Kind(
        _gptq(is_symmetric=False, has_order=True),
        _OLD_GPTQ | {"sym": False, "desc_act": True},
        "quantize_config.json",
        "",
    ),
    "fp8-block": Kind(
        _fp8_block,
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        | {"weight_block_size": [128, 128]},
    ),
    "autofp8": Kind(
        _fp8_tensor("input_scale"),
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    ),
    "autofp8-dynamic": Kind(_fp8_tensor(), {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fbgemm": Kind(
        _fbgemm,
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
        | {"modules_to_not_convert": ["lm_head"]},
    ),
    "modelopt-fp8": Kind(
        _fp8_tensor("input_scale"), {"quant_algo": "FP8", **_MODELOPT}, **_OWN_FILE
    ),
    "modelopt-nvfp4": Kind(
        _nvfp4, {"quant_algo": "NVFP4", "group_size": 16, **_MODELOPT}, **_OWN_FILE
    ),
    "w4a16": _scheme("pack-quantized", _INT4 | {"symmetric": True}),
    "w4a16-zeros": _scheme("pack-quantized", _INT4 | {"symmetric": False}),
    "w8a8": _scheme("int-quantized", _INT8, {"num_bits": 8, "type": "int", **_BY_TOKEN}),
    "w8a8-zeros": _scheme(
        "int-quantized",
        _INT8 | {"symmetric": False},
        {"num_bits": 8, "type": "int", **_BY_TOKEN},
    ),
    "fp8": _scheme("float-quantized", _FP8, {"num_bits": 8, "type": "float", **_BY_TOKEN}),
}
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "llm-int8": {"load_in_8bit": True},
}


def write_foreign(kind: str, source: Path, directory: Path) -> dict[str, Any]:
    """Write a draft's directory in a foreign layout; return its float weights by name."""
    if kind in BITSANDBYTES:
        return _write_bitsandbytes(BITSANDBYTES[kind], source, directory)
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, directory)
    how, stored, dense = KINDS[kind], {}, {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = dense[name] = tensor
            continue
        parts, dense[name] = how.store(tensor)
        stored |= {name.replace(".weight", f".{part}"): each for part, each in parts.items()}
    whole = {name: each.contiguous() for name, each in stored.items()}
    save_file(whole, directory / "model.safetensors", metadata={"format": "pt"})
    path = directory / how.file
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= {how.name: dict(how.config)} if how.name else how.config
    path.write_text(json.dumps(found))
    return dense


def _write_bitsandbytes(fields: dict[str, Any], source: Path, directory: Path) -> dict[str, Any]:
    import bitsandbytes
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(**fields), dtype=torch.float32
    )
    shutil.copytree(source, directory)
    model.save_pretrained(directory)
    dense = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            values = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
            dense[f"{name}.weight"] = values
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            scale = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            dense[f"{name}.weight"] = module.weight.data.float() * scale[:, None] / 127
    return dense
