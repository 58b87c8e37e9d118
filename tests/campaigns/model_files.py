"""The files of a model's directory, as check, apply, evaluate and export read them.

Left out: what transformers and llama.cpp read themselves.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.configs import read_generation_config
from quantdraft.checkpoints.heads.head import draft_head
from quantdraft.checkpoints.pairing import check_pairing
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.stored_formats import linear_modules, stored_format
from quantdraft.checkpoints.weights import read_header, read_tensors
from quantdraft.engines.engine import LaunchPair
from quantdraft.engines.findings import Draft
from quantdraft.engines.registry import ENGINES, engine_named
from quantdraft.measure.models import source_of
from quantdraft.quantize.ledger import byte_ledger, head_options, project
from quantdraft.quantize.recipe import load_recipe
from quantdraft.report.card import model_card
from quantdraft.workflows.export.heads import head_engine
from quantdraft.workflows.export.target import read_target
from tests.campaigns.hostile import Format, Mutate, as_json
from tests.campaigns.mutations import mutated_header
from tests.stored import LLAMA_CONFIG, write_checkpoint, write_safetensors

RECIPES = [load_recipe(name) for name in ("int4", "int8", "fp8-block", "nf4", "int4-head8")]
LAUNCH = LaunchPair("org/target", Path("draft"), 4, "bfloat16", "greedy")


def model_formats(root: Path) -> list[Format]:
    """Every format of a model's directory, written below `root`."""
    return [
        *_weights(root / "weights"),
        *_configs(root / "configs"),
        *_beside_the_weights(root / "model"),
    ]


def _weights(root: Path) -> list[Format]:
    tensors = {"a.weight": ("BF16", (4, 8)), "b.scale": ("F32", (3,)), "c": ("U8", ())}
    single, sharded = root / "one", root / "sharded"
    for directory in (single, sharded):
        directory.mkdir(parents=True)
    write_safetensors(single / "model.safetensors", tensors)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_safetensors(sharded / names[0], {"a.weight": tensors["a.weight"]})
    write_safetensors(sharded / names[1], {"b.scale": tensors["b.scale"]})
    index = {"metadata": {"total_size": 76}, "weight_map": {"a.weight": names[0]}}
    index["weight_map"]["b.scale"] = names[1]
    file, index_file = single / "model.safetensors", sharded / "model.safetensors.index.json"
    told = _header(file.read_bytes(), {"__metadata__": {"format": "pt"}})
    return [
        Format(
            "safetensors header",
            file,
            (file.read_bytes(), told),
            lambda: read_header(file),
            mutated_header,
        ),
        Format(
            "model.safetensors.index.json",
            index_file,
            (json.dumps(index).encode(),),
            lambda: read_tensors(sharded),
            as_json,
        ),
    ]


def _header(raw: bytes, added: dict[str, Any]) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(added | json.loads(raw[8 : 8 + size])).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


WEIGHTS_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
WEIGHTS_FP8 = {
    "num_bits": 8,
    "type": "float",
    "strategy": "block",
    "block_structure": [128, 128],
    "symmetric": True,
}
INPUTS_FP8 = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128}
SECTIONS: tuple[dict[str, Any], ...] = (
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS_INT4}},
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    },
    {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": WEIGHTS_FP8,
                "input_activations": {**INPUTS_FP8, "dynamic": True},
            },
            "head": {"targets": ["re:.*lm_head$"], "weights": WEIGHTS_INT4},
        },
    },
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "checkpoint_format": "gptq",
    },
    {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["lm_head"],
    },
)


def _configs(root: Path) -> list[Format]:
    directory = write_checkpoint(root / "model")
    plain = LLAMA_CONFIG | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    plain |= {"eos_token_id": [0, 1], "max_position_embeddings": 512, "head_dim": 64}
    nested = {"model_type": "gemma3", "text_config": plain, "tie_word_embeddings": True}
    configs = [plain, nested, *({**plain, "quantization_config": each} for each in SECTIONS)]
    seeds = tuple(json.dumps(each).encode() for each in configs)
    file = directory / "config.json"
    old = write_checkpoint(root / "old")
    old_file = old / "quantize_config.json"
    old_seed = json.dumps({"bits": 4, "group_size": 128, "desc_act": False, "sym": True}).encode()
    return [
        Format("config.json", file, seeds, lambda: _asked(directory), as_json),
        Format(
            "config.json: quantization_config",
            file,
            tuple(json.dumps(each).encode() for each in SECTIONS),
            lambda: _asked(directory),
            _in_section(plain),
        ),
        Format("quantize_config.json", old_file, (old_seed,), lambda: _asked(old), as_json),
        *_head_configs(root / "heads"),
    ]


def _in_section(plain: dict[str, Any]) -> Mutate:
    def mutate(seed: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
        section = as_json(seed, seeds, chance)
        return json.dumps(plain).encode()[:-1] + b', "quantization_config": ' + section + b"}"

    return mutate


def _head_configs(root: Path) -> list[Format]:
    from tests.stored_heads import LAYOUTS, write_head

    def one(directory: Path) -> Format:
        file = directory / "config.json"
        return Format(
            f"head config: {directory.name}",
            file,
            (file.read_bytes(),),
            lambda: _asked_head(open_checkpoint(directory)),
            as_json,
        )

    return [one(write_head(root / layout, layout)) for layout in LAYOUTS]


def _asked(directory: Path) -> None:
    """What check, apply, evaluate and export ask of a stand-alone model, as far as files go."""
    checkpoint = open_checkpoint(directory)
    if draft_head(checkpoint) is not None:
        _asked_head(checkpoint)
        return
    quantization = checkpoint.quantization or {}
    for module in ("lm_head", *linear_modules(checkpoint.tensors)):
        fmt = stored_format(quantization, module)
        if fmt is not None:
            _ = fmt.layout, fmt.name, fmt.value_dtype
    if checkpoint.quantization is None:
        _outlook(checkpoint)
    byte_ledger(checkpoint)
    _findings(checkpoint)


def _outlook(checkpoint: Checkpoint) -> None:
    for recipe in RECIPES:
        project(checkpoint, recipe)
        head_options(checkpoint, recipe)


def _findings(checkpoint: Checkpoint) -> None:
    target = read_target(str(checkpoint.path))
    draft = Draft(Path("draft"), checkpoint.config, target.config)
    pair = replace(LAUNCH, dtype=target.dtype(None), quantization=checkpoint.quantization or {})
    for engine in map(engine_named, ENGINES):
        engine.check(draft)
        compile_if_python(engine.launch(pair))
    target.stamp(None)


def compile_if_python(launch: str) -> None:
    """A script must stay the script it was, whatever the config calls its float type."""
    if launch.startswith('"""'):
        compile(launch, "launch.py", "exec")


def _asked_head(checkpoint: Checkpoint) -> None:
    head = draft_head(checkpoint)
    if head is None:
        return
    byte_ledger(checkpoint)
    head.summary()
    pair = replace(LAUNCH, quantization=checkpoint.quantization or {})
    for engine in ("vllm", "sglang"):
        serving = head_engine(head, engine_named(engine))
        serving.launch(pair)
        serving.check(Draft(Path("draft"), checkpoint.config, LLAMA_CONFIG))


def _beside_the_weights(root: Path) -> list[Format]:
    directory = write_checkpoint(root, config={**LLAMA_CONFIG, "vocab_size": 64})
    small = _tokenizer(64)
    (directory / "tokenizer.json").write_bytes(small)
    target = Path(shutil.copytree(directory, root.with_name("target")))
    generation = {"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": None, "top_p": 0.9}
    manifest = _manifest()

    def pairing() -> None:
        check_pairing(target, directory)
        read_generation_config(directory)

    def applied() -> None:
        checkpoint = open_checkpoint(directory)
        model_card(
            "draft",
            checkpoint.manifest,
            None,
            engine="vllm",
            launch="vllm serve",
            target="org/target",
            notes=(),
            warnings=(),
        )
        source_of(checkpoint)

    files = {
        "tokenizer.json": (small, pairing),
        "generation_config.json": (json.dumps(generation).encode(), pairing),
        "quantdraft.json": (json.dumps(manifest).encode(), applied),
    }
    return [
        Format(name, directory / name, (seed,), read, as_json)
        for name, (seed, read) in files.items()
    ]


def _tokenizer(vocab_size: int) -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<end>", *(chr(33 + i) for i in range(vocab_size - 1))]
    tokenizer = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str().encode()


def _manifest() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "recipe": json.loads(RECIPES[0].model_dump_json()),
        "draft": {"name": "org/draft", "path": str(pair_dir() / "draft"), "revision": None},
        "calibration": {"sha256": "a" * 64, "prompt_ids": ["line-1"], "num_samples": 1},
        "seeds": {"calibration": 0},
        "sha256": {"config.json": "b" * 64},
        "environment": {"versions": {"torch": "2.13.0"}},
    }
