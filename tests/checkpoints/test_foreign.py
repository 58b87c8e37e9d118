"""What other libraries store is read as they read it: their own code, or the documented formula."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.foreign_configs import foreign_format  # noqa: E402
from quantdraft.checkpoints.stored_formats import stored_format  # noqa: E402
from quantdraft.checkpoints.tensors.foreign import unpack_experts  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.checkpoints.tensors.packing import pack_stream, unpack_int32  # noqa: E402
from quantdraft.checkpoints.tensors.rounding import round_inputs  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import dequantize, unpack  # noqa: E402
from quantdraft.errors import CheckpointError  # noqa: E402
from tests.conftest import Pair  # noqa: E402

E4M3 = torch.float8_e4m3fn
CPU = torch.device("cpu")


def gptqmodel_file(name: str) -> ModuleType:
    """One file of gptqmodel, without the seconds that its package takes to import."""
    found = importlib.util.find_spec("gptqmodel")
    if found is None or found.origin is None:
        pytest.skip("gptqmodel is not installed")
    path = Path(found.origin).parent / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random(*shape: int, high: int | None = None) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    if high is None:
        return torch.rand(shape, generator=generator)
    return torch.randint(0, high, shape, generator=generator)


def read(config: dict[str, Any], **parts: Any) -> Any:
    """The weight of module `m`, dequantized."""
    fmt = foreign_format(config, "m")
    assert fmt is not None
    return dequantize(unpack({f"m.{name}": part for name, part in parts.items()}, "m", fmt))


def test_awqs_interleaved_outputs_are_read_as_its_own_code_reads_them() -> None:
    awq = gptqmodel_file("quantization/awq/utils/packing_utils.py")
    values, zeros, scales = random(128, 64, high=16), random(4, 64, high=16), random(4, 64).half()
    qweight, qzeros = awq.pack_awq(values, zeros, 4)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32}
    found = read(config, qweight=qweight, qzeros=qzeros, scales=scales)
    assert torch.equal(found, awq.dequantize_gemm(qweight, qzeros, scales.float(), 4, 32).T)
    by_hand = (values - zeros.repeat_interleave(32, 0)) * scales.float().repeat_interleave(32, 0)
    assert torch.equal(found, by_hand.T)


def test_awqs_rows_of_outputs_are_read_with_their_padding() -> None:
    """GEMV: eight columns a word in order; 2 groups of zero points and scales are padded to 16."""
    values, zeros, scales = random(4, 128, high=16), random(4, 2, high=16), random(4, 2).half()
    padded = torch.zeros(4, 16, dtype=torch.float16)
    padded[:, :2] = scales
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}
    words = torch.nn.functional.pad(pack_stream(zeros, 4), (0, 1))
    found = read(config, qweight=pack_stream(values, 4), qzeros=words, scales=padded)
    spread = (each.float().repeat_interleave(64, 1) for each in (zeros, scales))
    by_hand = (values - next(spread)) * next(spread)
    assert torch.equal(found, by_hand)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_a_stream_of_bits_is_packed_and_unpacked_as_gptqmodel_does(bits: int) -> None:
    contiguous = gptqmodel_file("quantization/awq/utils/packing_utils.py")._pack_contiguous
    fields = random(3, 64, high=2**bits)
    packed = pack_stream(fields, bits)
    assert torch.equal(packed, contiguous(fields, bits))
    assert torch.equal(unpack_int32(packed, bits, 64) + 0, (fields - 2 ** (bits - 1)).char())


def test_fine_grained_fp8_is_read_as_transformers_reads_it() -> None:
    library = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight, scale = (random(256, 384) - 0.5).to(E4M3), random(2, 3)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    wanted = library.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert torch.equal(read(config, weight=weight, weight_scale_inv=scale), wanted)
    powers = torch.tensor([[120, 127, 130], [125, 126, 128]], dtype=torch.uint8)
    wanted = library.Fp8Dequantize(None)._dequantize_one(weight, powers, torch.float32)
    assert torch.equal(read(config, weight=weight, weight_scale_inv=powers), wanted)


def test_gpt_oss_experts_are_read_as_transformers_reads_them() -> None:
    library = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = random(2, 64, 3, 16, high=256).byte(), 110 + random(2, 64, 3, high=30).byte()
    wanted = library.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(unpack_experts(blocks, scales), wanted)


def modelopt(algorithm: str, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, **fields}


def test_modelopts_fp8_is_the_weight_times_its_scale() -> None:
    weight, scale = (random(8, 32) - 0.5).to(E4M3), torch.tensor(0.03)
    tensor = read(modelopt("FP8"), weight=weight, weight_scale=scale, input_scale=scale)
    assert torch.equal(tensor, weight.float() * 0.03)
    rows = random(8)
    per_row = read(modelopt("FP8_PER_CHANNEL_PER_TOKEN"), weight=weight, weight_scale=rows)
    assert torch.equal(per_row, weight.float() * rows[:, None])
    blocks = random(2, 1, 3, 1)
    weight = (random(256, 384) - 0.5).to(E4M3)
    found = read(modelopt("FP8_PB_WO"), weight=weight, weight_scale=blocks)
    spread = blocks.reshape(2, 3).repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(found, weight.float() * spread)


def test_modelopts_nvfp4_has_a_scale_of_scales() -> None:
    """0x2B: the low half 0xB is -1.5 and comes first, the high half 2 is 1."""
    weight = torch.full((2, 8), 0x2B, dtype=torch.uint8)
    scale, factor = torch.tensor([[2.0], [0.5]]).to(E4M3), torch.tensor(0.25)
    found = read(modelopt("W4A16_NVFP4"), weight=weight, weight_scale=scale, weight_scale_2=factor)
    assert found.tolist() == [[-0.75, 0.5] * 8, [-0.1875, 0.125] * 8]


def test_modelopts_int4_lies_two_outputs_to_a_byte() -> None:
    """0x9F: the earlier output, in the low half, is -1, the later -7; inputs have factors."""
    weight = torch.full((1, 4), 0x9F, dtype=torch.uint8)
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    factors = torch.tensor([1.0, 2.0, 1.0, 1.0])
    config = modelopt("W4A16_AWQ", group_size=2)
    found = read(config, weight=weight, weight_scale=scale, pre_quant_scale=factors)
    assert found.tolist() == [[-1, -2, -2, -2], [-28, -56, -56, -56]]
    config = modelopt("W4A8_AWQ", group_size=2)
    parts = {"weight": weight, "weight_scale": scale, "weight_scale_2": torch.tensor(0.5)}
    assert read(config, **parts).tolist() == [[-1, -1, -2, -2], [-28, -28, -56, -56]]


def test_mixed_precision_names_each_layer() -> None:
    layers = {"a.up_proj": {"quant_algo": "FP8"}, "a.o_proj": {"quant_algo": "NVFP4"}}
    config = modelopt("MIXED_PRECISION", quantized_layers=layers)
    names = {m: stored_format(config, m) for m in (*layers, "a.down_proj")}
    assert [fmt and fmt.name for fmt in names.values()] == ["fp8-static", "nvfp4", None]
    with pytest.raises(CheckpointError, match="quant_algo 'NVFP4_SVD'; read are"):
        stored_format(modelopt("NVFP4_SVD"), "m")


def test_fbgemm_bounds_inputs_before_it_rounds_them() -> None:
    fmt = foreign_format({"quant_method": "fbgemm_fp8", "activation_scale_ub": 2.0}, "m")
    assert fmt is not None
    assert round_inputs(torch.tensor([[8.0, 1.0]]), fmt).tolist() == [[2.0, 1.0]]


def store_fp8(source: Path, directory: Path, input_scale: float) -> dict[str, Any]:
    """A draft as ModelOpt exports it in FP8; its float weights, dequantized, are returned."""
    shutil.copytree(source, directory)
    stored, dense = {}, {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        stored[name] = dense[name] = tensor
        if tensor.dim() == 2 and "embed" not in name and "lm_head" not in name:
            scale = tensor.float().abs().max() / 448
            stored[name] = (tensor.float() / scale).to(E4M3)
            stored |= {f"{name}_scale": scale.reshape(())}
            stored[name.replace(".weight", ".input_scale")] = torch.tensor(input_scale)
            dense[name] = stored[name].float() * scale
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    own = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    (directory / "hf_quant_config.json").write_text(json.dumps({"quantization": own}))
    return dense


def test_modelopts_directory_is_loaded_with_its_scales_and_rounded_inputs(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    dense = store_fp8(tiny_pair.draft, tmp_path / "fp8", input_scale=0.01)
    found = load_model(tmp_path / "fp8", torch.float32, CPU)
    state = found.state_dict()
    assert all(torch.equal(state[name], each.float()) for name, each in dense.items())
    plain = load_model(tiny_pair.draft, torch.float32, CPU)
    plain.load_state_dict(dense, strict=False)
    fmt = foreign_format(open_checkpoint(tmp_path / "fp8").quantization or {}, "m")
    assert fmt is not None
    for name, module in plain.named_modules():
        if f"{name}.weight_scale" in load_file(tmp_path / "fp8" / "model.safetensors"):
            module.register_forward_pre_hook(
                lambda _, inputs: ((inputs[0] / 0.01).clamp(-448, 448).to(E4M3).float() * 0.01,)
            )
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, plain(ids).logits, atol=1e-5)
    assert found.generation_config.eos_token_id == plain.generation_config.eos_token_id


def test_scales_without_a_config_are_refused_before_a_model_runs(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    store_fp8(tiny_pair.draft, tmp_path / "fp8", input_scale=0.01)
    (tmp_path / "fp8" / "hf_quant_config.json").unlink()
    with pytest.raises(CheckpointError, match="no quantization at all"):
        load_model(tmp_path / "fp8", torch.float32, CPU)


def test_a_quantized_cache_rounds_keys_and_values_by_the_files_scales(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    from transformers import DynamicCache

    store_fp8(tiny_pair.draft, tmp_path / "fp8", input_scale=0.01)
    plain = load_model(tmp_path / "fp8", torch.float32, CPU)
    file, own = tmp_path / "fp8" / "model.safetensors", tmp_path / "fp8" / "hf_quant_config.json"
    stored = load_file(file)
    layers = {n.split(".self_attn.")[0] for n in stored if ".self_attn." in n}
    for layer in layers:
        stored[f"{layer}.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
        stored[f"{layer}.self_attn.v_proj.v_scale"] = torch.tensor(0.25)
    save_file(stored, file, metadata={"format": "pt"})
    said = json.loads(own.read_text())["quantization"]
    own.write_text(json.dumps({"quantization": said | {"kv_cache_quant_algo": "FP8"}}))

    def rounded(values: Any, scale: float) -> Any:
        return (values / scale).clamp(-448, 448).to(E4M3).float() * scale

    class Rounding(DynamicCache):
        def update(self, keys: Any, values: Any, *rest: Any, **named: Any) -> Any:
            return super().update(rounded(keys, 0.5), rounded(values, 0.25), *rest, **named)

    found, ids = load_model(tmp_path / "fp8", torch.float32, CPU), torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = plain(ids, past_key_values=Rounding()).logits
        assert torch.allclose(found(ids).logits, wanted, atol=1e-6)
        assert not torch.allclose(plain(ids).logits, wanted, atol=1e-6)
    own.write_text(json.dumps({"quantization": said | {"kv_cache_quant_algo": "NVFP4"}}))
    with pytest.raises(CheckpointError, match="of the kind 'NVFP4'; read is FP8"):
        load_model(tmp_path / "fp8", torch.float32, CPU)


def test_fp8_experts_have_their_inputs_rounded_though_they_are_no_modules(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file, stored = tmp_path / "model.safetensors", {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        stored[name] = tensor
        if ".experts." in name:
            stored[name] = tensor.to(E4M3)
            stored[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(stored, file, metadata={"format": "pt"})
    own = json.loads((tmp_path / "config.json").read_text())
    others = ["self_attn", "gate"]
    own["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    own["quantization_config"]["modules_to_not_convert"] = others
    (tmp_path / "config.json").write_text(json.dumps(own))
    model = load_model(tmp_path, torch.float32, CPU)
    experts = model.model.layers[0].mlp.experts
    inputs = random(3, 32)
    with torch.no_grad():
        chosen, weights = torch.tensor([[0], [1], [0]]), torch.ones(3, 1)
        found = experts(inputs, chosen, weights)
    fmt = stored_format(own["quantization_config"], "x.experts.0.w1")
    assert fmt is not None
    for row, expert in enumerate([0, 1, 0]):
        gate_up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
        gate, up = (round_inputs(inputs[row : row + 1], fmt) @ gate_up.T).chunk(2, -1)
        by_hand = round_inputs(torch.nn.functional.silu(gate) * up, fmt) @ down.T
        assert torch.allclose(found[row], by_hand[0], atol=1e-6)


def test_the_older_name_of_compressed_tensors_section_is_read(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    """`compression_config`, which transformers does not know: it would drop the scales."""
    shutil.copytree(tiny_pair.draft, tmp_path / "old")
    stored, dense = {}, {}
    for name, tensor in load_file(tmp_path / "old" / "model.safetensors").items():
        stored[name] = dense[name] = tensor
        if name.endswith("_proj.weight"):
            scale = (tensor.float().abs().amax(1, keepdim=True) / 127).to(tensor.dtype)
            stored[name] = (tensor.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
            stored[f"{name}_scale"] = scale
            dense[name] = stored[name].float() * scale.float()
    save_file(stored, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    config["compression_config"] = {
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    state = load_model(tmp_path / "old", torch.float32, CPU).state_dict()
    for name, tensor in dense.items():
        assert torch.allclose(state[name], tensor.float(), atol=1e-6), name
