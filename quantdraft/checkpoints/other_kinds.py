"""What people give for a model that is another kind of thing: its name, and how to go on.

A model here is a directory in Hugging Face layout with safetensors. Only names of files and JSON
are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantdraft.common.documents import kind_of, read_json
from quantdraft.errors import CheckpointError

ADAPTER_FILE = "adapter_config.json"  # PEFT's
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SAVE = "m.save_pretrained('OUT')"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_ORIGINAL = "Give the model that it was made from, as safetensors."


def split_revision(model: str) -> tuple[str, str | None]:
    """Return a Hub id and its revision: `owner/name@v1.0` names a branch, a tag or a commit."""
    found = HUB_ID.fullmatch(model)
    return (model, None) if found is None else (found[1], found[2])


def require_directory(path: Path) -> None:
    """Raise CheckpointError for what is there and is no directory, with what to give instead."""
    if path.is_dir() or not (path.exists() or path.is_symlink()):
        return
    kind, name = kind_of(path), path.name.lower()
    if kind is not None:
        raise CheckpointError(f"'{path}' is {kind}, not a model directory.")
    if name.endswith(".gguf"):
        raise CheckpointError(_gguf(path, path.parent, path.name))
    if name.endswith((".safetensors", ".json", ".model")):
        raise CheckpointError(
            f"'{path}' is a file of a model. Give its directory, '{path.parent}'."
        )
    if name.endswith(PICKLE_SUFFIXES):
        raise CheckpointError(
            f"'{path}' is a file of pickle weights, which are refused: loading a pickle can run "
            "code. Save the model as safetensors (save_pretrained(..., safe_serialization=True)), "
            "and give its directory."
        )
    if name.endswith(".onnx"):
        raise CheckpointError(f"'{path}' is an ONNX file. {_ORIGINAL}")
    raise CheckpointError(
        f"'{path}' is a file, not a model directory. Give a directory with a config.json."
    )


def require_own_kind(directory: Path) -> None:
    """Raise CheckpointError for a directory that holds no model, or one in another format."""
    names = sorted(path.name for path in directory.iterdir())
    if ADAPTER_FILE in names:
        raise CheckpointError(_adapter(directory, names))
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        _require_not_mlx(directory)
        return
    for fits, say in _KINDS:
        if found := [name for name in names if fits(name)]:
            raise CheckpointError(f"'{directory}' {say(directory, found)}")


def tokenizer_code(directory: Path) -> str | None:
    """Return the sentence for a tokenizer that needs code of its own; None where it needs none."""
    found = _object(directory / "tokenizer_config.json").get("auto_map")
    own = found.get("AutoTokenizer") if isinstance(found, dict) else found
    if not own:
        return None
    return (
        f"the tokenizer of '{directory}' needs code of its own ('auto_map' in its "
        "tokenizer_config.json), which is not run. Read it; then put a tokenizer.json of the same "
        "ids into a copy without 'auto_map', or let `quantdraft capture --trust-remote-code` run "
        "it, whose traffic is evaluated without --target."
    )


def _adapter(directory: Path, names: Sequence[str]) -> str:
    base = _object(directory / ADAPTER_FILE).get("base_model_name_or_path")
    if "config.json" in names and any(
        n.endswith(".safetensors") and "adapter" not in n for n in names
    ):
        return (
            f"'{directory}' holds {ADAPTER_FILE} beside a whole model: transformers would load the "
            f"model that it names ({base!r}) instead of this one. Merge the adapter "
            "(merge_and_unload), or remove the file."
        )
    return (
        f"'{directory}' is a PEFT adapter ({ADAPTER_FILE}) of the model {base!r}, not a model. "
        'Merge it into a copy of that one, add its tokenizer, and give OUT: python -c "from peft '
        f"import AutoPeftModelForCausalLM as A; m = A.from_pretrained('{directory}')"
        f'.merge_and_unload(); {SAVE}"'
    )


def _gguf(given: Path, directory: Path, name: str) -> str:
    return (
        f"'{given}' is a GGUF {'file' if given.suffix else 'directory'}, which is not read here. "
        "As a candidate `quantdraft evaluate FILE.gguf --engine llamacpp` measures it; as another "
        'draft or a target convert it, and give OUT: python -c "from transformers import '
        "AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"a = dict(pretrained_model_name_or_path='{directory}', gguf_file='{name}'); "
        f'm = M.from_pretrained(**a); {SAVE}; T.from_pretrained(**a).{SAVE[2:]}"'
    )


def _of_gguf(directory: Path, found: Sequence[str]) -> str:
    return _gguf(directory, directory, found[0]).partition("' ")[2]


def _said(text: str) -> Callable[[Path, Sequence[str]], str]:
    return lambda _, found: text.format(found[0])


# The name of a file, and what the directory is that holds it; the first one that fits.
_KINDS: tuple[tuple[Callable[[str], bool], Callable[[Path, Sequence[str]], str]], ...] = (
    (
        lambda name: name == "model_index.json",
        _said("is a diffusers pipeline ({}), not a language model. Give a directory of one."),
    ),
    (lambda name: name.endswith(".gguf"), _of_gguf),
    (
        lambda name: name.endswith(".onnx") or name == "onnx",
        _said(f"holds an ONNX export ('{{}}') and no safetensors. {_ORIGINAL}"),
    ),
    (
        lambda name: name.startswith("openvino_model"),
        _said(f"holds an OpenVINO export ('{{}}') and no safetensors. {_ORIGINAL}"),
    ),
    (
        lambda name: name == "params.json" or name.startswith("consolidated."),
        _said(
            "is in the original format of Meta or Mistral ('{}'), not in Hugging Face layout. Give "
            "the model's Hugging Face directory, or convert it with transformers."
        ),
    ),
    (
        lambda name: name.endswith((".msgpack", ".h5", ".tflite")),
        _said(
            "holds weights of Flax or TensorFlow ('{}') and no safetensors. Give the model's "
            "safetensors."
        ),
    ),
    (
        lambda name: re.fullmatch(r"rank\d+\.engine", name) is not None,
        _said(f"holds an engine of TensorRT-LLM ('{{}}'), built for one GPU. {_ORIGINAL}"),
    ),
)


def _require_not_mlx(directory: Path) -> None:
    config = _object(directory / "config.json")
    found = config.get("quantization")
    if isinstance(found, dict) and {"bits", "group_size"} <= found.keys():
        raise CheckpointError(
            f"'{directory}' is quantized by MLX ({found['bits']} bits in groups of "
            f"{found['group_size']}), a format of Apple's processors alone. Give the model that it "
            f"was made from, or: mlx_lm.convert --dequantize --hf-path {directory} --mlx-path OUT"
        )


def _object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is none, or it cannot be read."""
    try:
        found = read_json(path, max_bytes=1 << 24)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
