"""The fields that this package reads from a model directory's JSON files, with their types.

The author of a directory is unknown: a size that is a text, or a list for a section, is one line
here and no traceback later. Fields that nothing reads are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator

from quantdraft.checkpoints.rotary import require_one_rotary
from quantdraft.common.documents import read_json_object
from quantdraft.errors import CheckpointError

GENERATION_FILE = "generation_config.json"
MAX_STRETCH = 1 << 20  # of a rotary embedding


def _require_pattern(name: str) -> str:
    if name.startswith("re:"):
        try:
            re.compile(name.removeprefix("re:"))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{name!r} is not a pattern: {error}") from error
    return name


def _require_rule(name: str) -> str:
    _require_pattern("re:" + name.removeprefix("+:").removeprefix("-:"))
    return name


Count = Annotated[int, Field(ge=0, le=1 << 40)]
Bits = Annotated[int, Field(ge=1, le=64)]
GroupSize = Annotated[int, Field(ge=-1, le=1 << 40)]
Size = Annotated[int, Field(ge=1, le=1 << 40)]
TokenIds = Annotated[int, Field(ge=-1, le=1 << 40)] | list[Annotated[int, Field(ge=-1, le=1 << 40)]]
# The name is copied into launch lines and a Python script.
TypeName = Annotated[str, Field(pattern=r"^(torch\.)?[A-Za-z]\w{0,31}$")]
Pattern = Annotated[str, AfterValidator(_require_pattern)]
Rule = Annotated[str, AfterValidator(_require_rule)]  # of GPTQModel: a pattern after '+:' or '-:'


class _Fields(BaseModel):
    """Strict types: "256" is no number. Fields that are not listed may hold anything."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Values(_Fields):
    """The quantization of a config group's weights or inputs (compressed-tensors)."""

    num_bits: Bits
    type: str
    strategy: str | None = None
    group_size: int | None = None
    block_structure: Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    symmetric: bool = True

    @model_validator(mode="after")
    def _complete(self) -> _Values:
        if self.strategy in {"group", "tensor_group"} and not 0 < (self.group_size or 0) < 1 << 40:
            raise ValueError(f"strategy {self.strategy!r} needs a group_size above 0")
        if self.strategy == "block" and self.block_structure is None:
            raise ValueError("strategy 'block' needs a block_structure of two sizes")
        return self


class _Group(_Fields):
    targets: list[Pattern]
    weights: _Values | None = None
    input_activations: _Values | None = None


class _CacheScheme(_Fields):
    num_bits: Bits | None = None


class _OwnFile(_Fields):
    """ModelOpt's section of hf_quant_config.json, which newer ones have in config.json, flat."""

    quant_algo: str | None = None
    group_size: GroupSize | None = None
    exclude_modules: list[Pattern] | None = None
    ignore: list[Pattern] | None = None
    quantized_layers: dict[str, dict[str, Any]] | None = None
    kv_cache_quant_algo: str | None = None


class _Quantization(_OwnFile):
    quant_method: str | None = None
    quantization: _OwnFile | None = None
    bits: Bits | None = None
    config_groups: dict[str, _Group] | None = None
    kv_cache_scheme: _CacheScheme | str | None = None  # a word: AutoFP8's and ModelOpt's
    llm_int8_skip_modules: list[str] | None = None
    modules_to_not_convert: list[str] | None = None
    ignored_layers: list[str] | None = None
    dynamic: dict[Rule, dict[str, Any]] | bool | None = None  # GPTQModel's rules
    weight_block_size: Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    activation_scheme: str | None = None
    activation_scale_ub: float | None = None
    version: str | None = None
    w_bit: Bits | None = None
    q_group_size: GroupSize | None = None
    sparsity_config: dict[str, Any] | None = None
    format: str | None = None
    checkpoint_format: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> _Quantization:
        if self.quant_method == "gptq" and self.bits is None:
            raise ValueError("quant_method 'gptq' needs 'bits'")
        if self.group_size == 0:
            raise ValueError("group_size is 0")
        return self


class _Generation(_Fields):
    bos_token_id: TokenIds | None = None
    eos_token_id: TokenIds | None = None
    pad_token_id: TokenIds | None = None


class _Model(_Generation):
    """One model's section: the whole config, or the language model's part of it."""

    vocab_size: Size | None = None
    draft_vocab_size: Size | None = None
    hidden_size: Size | None = None
    target_hidden_size: Size | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Size | None = None
    n_layer: Count | None = None
    n_head: Count | None = None
    n_embd: Count | None = None
    n_routed_experts: Count | None = None
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    intermediate_size: Size | list[Size] | None = None
    model_type: str | None = None
    dtype: TypeName | dict[str, Any] | None = None
    torch_dtype: TypeName | dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    quantization_config: _Quantization | None = None
    compression_config: _Quantization | None = None


class _Config(_Model):
    architectures: list[str] | None = None
    speculators_model_type: str | None = None
    text_config: _Model | None = None
    transformer_layer_config: _Model | None = None


class _AppliedRecipe(_Fields):
    name: str
    summary: str | None = None
    scheme: str | None = None
    kv_cache: str = "keep"


class _Draft(_Fields):
    name: str | None = None
    path: str | None = None


class _Samples(_Fields):
    prompt_ids: list[str]
    sha256: str | None = None


class _Manifest(_Fields):
    """The parts of quantdraft.json, which `apply` writes, that later commands read."""

    schema_version: Literal[1]
    recipe: _AppliedRecipe | None = None
    draft: _Draft | None = None
    calibration: _Samples | None = None
    training: _Samples | None = None
    sha256: dict[str, str] | None = None
    draft_head: str | None = None


def require_config(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError, with the field, for a config.json that cannot be what it claims.

    That includes one that states a rotary setting twice, and differently.
    """
    _require(_Config, config, path)
    require_one_rotary(config, path)


def require_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError, with the field, for a quantdraft.json that `apply` did not write."""
    _require(_Manifest, manifest, path)


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Return the generation settings of a model directory, empty where it has none."""
    path = directory / GENERATION_FILE
    if not path.is_file():
        return {}
    settings = read_json_object(path)
    _require(_Generation, settings, path)
    return settings


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence, in tokens, that a config allows; None where it does not say.

    A scaled rotary embedding (transformers' `rope_parameters`, `rope_scaling` before 5)
    multiplies `max_position_embeddings` or is in it already, by its kind; where publishers do it
    either way, the larger is taken.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    found = config.get("rope_parameters") or config.get("rope_scaling")
    by_layer = found.values() if isinstance(found, dict) else ()
    all_of_them = [each for each in (found, *by_layer) if isinstance(each, dict)]
    return max([positions, *(_stretch(positions, rope) for rope in all_of_them)])


def _stretch(positions: int, rope: Mapping[str, Any]) -> int:
    kind, factor = rope.get("rope_type", rope.get("type", "linear")), rope.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor < MAX_STRETCH:
        return positions
    if kind in ("linear", "dynamic"):
        return int(positions * factor)
    original = rope.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int):
        return int(original * factor)
    return positions


def _require(kind: type[_Fields], plain: dict[str, Any], path: Path) -> None:
    try:
        kind.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"'{path}': {f'{where}: ' if where else ''}{first['msg']}. Is it the file that its "
            "publisher made?"
        ) from error
