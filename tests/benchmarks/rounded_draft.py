"""A recipe's draft by rounding to nearest, where llm-compressor is not installed.

Of recipes that need no data. The numbers and the layout are compressed-tensors', which must be
there: it is what loads such a checkpoint too.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.formats import WeightFormat
from quantdraft.checkpoints.tensors.unpacking import read_tensor
from quantdraft.common.files import whole_directory
from quantdraft.errors import OptionError
from quantdraft.quantize.apply import apply
from quantdraft.quantize.backends.config_groups import quantization_config, scheme
from quantdraft.quantize.ledger import untied_tensors
from quantdraft.quantize.recipe import load_recipe
from quantdraft.quantize.recipe_formats import formats_by_module
from tests.foreign import compress

LIBRARY = "llmcompressor"


def quantize(name: str, draft: Path, output: Path) -> str:
    """Write the recipe's checkpoint, and return what made it."""
    if is_installed(LIBRARY):
        apply(load_recipe(name), str(draft), output)
        return LIBRARY
    with whole_directory(output, force=True) as staging:
        round_draft(name, draft, staging)
    return "rounding to nearest"


def is_installed(package: str) -> bool:
    """True where the package can be imported; it is not."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def round_draft(name: str, draft: Path, output: Path) -> None:
    """Write the checkpoint into an empty directory."""
    recipe, source = load_recipe(name), open_checkpoint(draft)
    if recipe.calibration is not None:
        raise OptionError(f"recipe {name!r} needs data, and so the package {LIBRARY!r}.")
    tensors = untied_tensors(source, recipe)
    formats = formats_by_module(recipe, tensors)
    stored: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        own = tensor if tensor in source.tensors else source.embedding_name
        weight, module = read_tensor(source, str(own)), tensor.removesuffix(".weight")
        if module not in formats:
            stored[tensor] = weight.contiguous()
            continue
        parts, _ = compress(formats[module].layout, weights_of(formats[module]), weight)
        stored |= {f"{module}.{part}": each.contiguous() for part, each in parts.items()}
    save_file(stored, output / "model.safetensors", metadata={"format": "pt"})
    for path in draft.iterdir():
        if path.suffix in {".json", ".txt"} and not path.name.endswith("index.json"):
            shutil.copyfile(path, output / path.name)
    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    found = quantization_config(recipe, source.tensors).model_dump(mode="json")
    config["quantization_config"] = found | {"quantization_status": "compressed"}
    (output / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def weights_of(fmt: WeightFormat) -> dict[str, Any]:
    """compressed-tensors' arguments of a format's weights."""
    found: dict[str, Any] = scheme(fmt, "Linear").weights.model_dump(mode="json", exclude_none=True)
    return found
