"""Recipes: how to quantize a draft, read from YAML and checked against a schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quantdraft.common.documents import all_problems, read_yaml_mapping
from quantdraft.errors import RecipeError, nearest

Backend = Literal["none", "llmcompressor", "bitsandbytes", "gptqmodel"]
Method = Literal["none", "rtn", "gptq", "awq", "autoround", "smoothquant"]
# What each is lies in `quantdraft.checkpoints.formats`.
Scheme = Literal[
    "none",
    "FP8_DYNAMIC",
    "FP8_STATIC",
    "FP8_BLOCK",
    "W8A8",
    "W8A16",
    "W4A16",
    "W4AFP8",
    "NVFP4",
    "NVFP4A16",
    "MXFP4",
    "MXFP8",
    "NF4",
    "NF4_DOUBLE",
    "FP4",
    "LLM_INT8",
]
HeadLever = Literal["keep", "8-bit", "4-bit"]

BITSANDBYTES_SCHEMES = frozenset({"NF4", "NF4_DOUBLE", "FP4", "LLM_INT8"})
CALIBRATED_METHODS = frozenset({"gptq", "awq", "autoround", "smoothquant"})
CALIBRATED_SCHEMES = frozenset({"FP8_STATIC", "NVFP4"})  # they store a scale of the inputs
# What a recipe may name of llm-compressor's own. Its others prune, and one of those runs a text of
# the recipe as Python (`update_scheduler: calc(…)`).
VERBATIM_MODIFIERS = frozenset(
    {
        "QuantizationModifier",
        "GPTQModifier",
        "AWQModifier",
        "AutoRoundModifier",
        "SmoothQuantModifier",
        "LogarithmicEqualizationModifier",
        "QuIPModifier",
        "SpinQuantModifier",
    }
)
# Methods that move scale between neighbouring layers: the weights are no longer the draft's own.
RESCALING_METHODS = frozenset({"awq", "smoothquant"})


class Calibration(BaseModel):
    """The samples that a calibrated method sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["traffic", "file", "hub"] = "traffic"
    path: str | None = None  # file: JSON lines with `column`; `apply --calibration` overrides it
    dataset: str | None = None  # hub: the data set's id, owner/name
    split: str = "train"
    column: str = "text"
    num_samples: int = Field(default=256, ge=1)
    max_seq_length: int = Field(default=2048, ge=16)
    seed: int = 0
    # traffic: the part of its conversations that samples are chosen from; the rest is judged on.
    # None: half, or all of a file that is such a part already.
    share: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _agree(self) -> Calibration:
        if (self.source == "hub") != (self.dataset is not None):
            raise ValueError("source 'hub' goes with 'dataset', and no other source does")
        if self.path is not None and self.source != "file":
            raise ValueError("'path' goes with source 'file'")
        return self


class Requires(BaseModel):
    """What a machine needs to compute in the format; applying the recipe needs none of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compute_capability: float = Field(ge=1)  # of a CUDA device, e.g. 8.9


class Recipe(BaseModel):
    """One way to quantize a draft; a YAML file whose name is the recipe's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    backend: Backend
    scheme: Scheme | None = None
    method: Method = "rtn"
    # Of integer weights that share a scale. Smaller ones no kernel has.
    group_size: int | None = Field(default=None, ge=8)
    iterations: int = Field(default=200, ge=1)  # autoround: tuning steps a layer
    ignore: tuple[str, ...] = ("lm_head",)
    lm_head: HeadLever = "keep"
    kv_cache: Literal["keep", "fp8"] = "keep"
    calibration: Calibration | None = None
    requires: Requires | None = None
    notes: str | None = None  # what a user should know before choosing it
    modifiers: dict[str, dict[str, Any]] | None = None  # llm-compressor's own, verbatim
    changes: dict[str, Any] = {}  # what `--set` made of another recipe; the fields have it already

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        problems = [*self._backend_problems(), *self._missing_calibration()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _backend_problems(self) -> Iterator[str]:
        if self.modifiers is not None:
            yield from self._verbatim_problems()
            return
        if self.scheme is None:
            yield "a recipe needs a 'scheme', or 'modifiers' in its place"
        if self.backend == "none" and (self.scheme, self.kv_cache) != ("none", "keep"):
            yield "backend 'none' goes with scheme 'none', and quantizes nothing"
        if self.backend != "none" and self.scheme == "none" and self.kv_cache == "keep":
            yield "scheme 'none' goes with backend 'none', or with a 'kv_cache'"
        is_bitsandbytes = self.scheme in BITSANDBYTES_SCHEMES
        if is_bitsandbytes != (self.backend == "bitsandbytes"):
            known = ", ".join(sorted(BITSANDBYTES_SCHEMES))
            yield f"backend 'bitsandbytes' goes with the schemes {known}, and with no other"
        if self.backend == "bitsandbytes" and self.method != "rtn":
            yield "backend 'bitsandbytes' rounds to nearest: method 'rtn'"
        if self.backend == "gptqmodel" and (self.scheme, self.method) != ("W4A16", "gptq"):
            yield "backend 'gptqmodel' does scheme 'W4A16' by method 'gptq'"
        if self.backend != "llmcompressor" and (self.lm_head, self.kv_cache) != ("keep", "keep"):
            yield "only backend 'llmcompressor' quantizes a head or a cache"
        if self.group_size is not None and self.scheme not in {"W4A16", "W4AFP8"}:
            yield f"scheme {self.scheme!r} has no 'group_size' to choose"
        if self.method in {"awq", "autoround"} and self.lm_head != "keep":
            yield f"method {self.method!r} keeps the head"

    def _verbatim_problems(self) -> Iterator[str]:
        if self.backend != "llmcompressor":
            yield "'modifiers' are llm-compressor's: backend 'llmcompressor'"
        strange = sorted(set(self.modifiers or ()) - VERBATIM_MODIFIERS)
        if strange:
            known = ", ".join(sorted(VERBATIM_MODIFIERS))
            yield f"'modifiers' has {', '.join(map(repr, strange))}; it may have {known}"
        short = {"scheme", "method", "group_size", "ignore", "lm_head", "kv_cache", "iterations"}
        both = sorted(short & self.model_fields_set)
        # All of them, each at its default, are a manifest's way to say that none is set.
        is_manifests = len(both) == len(short) and all(
            getattr(self, key) == Recipe.model_fields[key].default for key in both
        )
        if both and not is_manifests:
            yield f"'modifiers' replace these keys: leave out {', '.join(both)}"

    def _missing_calibration(self) -> Iterator[str]:
        if self.calibration is not None or self.modifiers is not None:
            return
        if self.method in CALIBRATED_METHODS:
            yield f"method {self.method!r} needs a 'calibration' section"
        elif self.scheme in CALIBRATED_SCHEMES:
            yield f"scheme {self.scheme!r} needs a 'calibration' section"
        elif self.kv_cache != "keep":
            yield "a quantized 'kv_cache' needs a 'calibration' section"

    @property
    def is_identity(self) -> bool:
        """True for the control recipe, which quantizes nothing."""
        return self.backend == "none"

    @property
    def needs_calibration(self) -> bool:
        """True when samples are needed; a data-free recipe works on the files alone."""
        return self.calibration is not None

    @property
    def reads_traffic(self) -> bool:
        """True when the samples are responses of a traffic, and no texts of their own."""
        return self.calibration is not None and self.calibration.source == "traffic"

    @property
    def seed(self) -> int | None:
        """The seed of the choice of samples, and of the library; None without calibration."""
        return self.calibration.seed if self.calibration else None

    @property
    def moves_scales(self) -> bool:
        """True when layers may trade scale with their neighbours (AWQ, SmoothQuant)."""
        verbatim = " ".join(self.modifiers or ()).lower()
        return self.method in RESCALING_METHODS or any(
            word in verbatim for word in ("awq", "smoothquant", "equalization", "quip", "spinquant")
        )

    @property
    def head_levers(self) -> tuple[HeadLever, ...]:
        """What this recipe's `lm_head` could be set to, its other keys unchanged."""
        is_fixed = self.method in {"awq", "autoround"} or self.modifiers is not None
        if self.backend != "llmcompressor" or self.scheme == "none" or is_fixed:
            return ("keep",)
        return ("keep", "8-bit", "4-bit")


class Sweep(BaseModel):
    """Recipes that are compared under one name; a YAML file in `recipes/sweeps`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    recipes: tuple[str, ...] = Field(min_length=2)


def recipes_dir() -> Path:
    """Return the directory of the bundled recipes: in the wheel, or at the top of a source tree."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def bundled_recipe_names() -> list[str]:
    """Return the names of the bundled recipes, sorted."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def bundled_sweep_names() -> list[str]:
    """Return the names of the bundled sweeps, sorted."""
    return sorted(path.stem for path in (recipes_dir() / "sweeps").glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by name, or any recipe by its path."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = bundled_path(name_or_path)
    if path.parent == recipes_dir() / "sweeps":
        names = ", ".join(load_sweep(path.stem).recipes)
        raise RecipeError(
            f"{path.stem!r} is a sweep over the recipes {names}, not a recipe: "
            f"`quantdraft sweep --recipes {path.stem} …`, or apply one of them."
        )
    return _read(path, name_or_path, Recipe)


def load_sweep(name: str) -> Sweep:
    """Read a bundled sweep by name."""
    return _read(bundled_path(name), name, Sweep)


def bundled_path(name: str) -> Path:
    """Return the file of a bundled recipe or sweep; RecipeError lists the names."""
    for path in (recipes_dir() / f"{name}.yaml", recipes_dir() / "sweeps" / f"{name}.yaml"):
        if path.is_file():
            return path
    names = [*bundled_recipe_names(), *bundled_sweep_names()]
    raise RecipeError(
        f"no recipe {name!r}.{nearest(name, names)} Bundled: {', '.join(names)}. "
        "Or give a path to a .yaml file."
    )


_Read = TypeVar("_Read", Recipe, Sweep)


def _read(path: Path, shown: str, kind: type[_Read]) -> _Read:
    try:
        recipe = kind.model_validate(read_yaml_mapping(path, "recipe", RecipeError, shown))
    except ValidationError as error:
        raise RecipeError(f"{shown}: {all_problems(error, kind)}") from error
    if recipe.name != path.stem:
        raise RecipeError(f"{shown}: name {recipe.name!r} differs from the file's, {path.stem!r}.")
    if isinstance(recipe, Recipe):
        _require_changed(recipe, shown)
    return recipe


def _require_changed(recipe: Recipe, shown: str) -> None:
    """Refuse `changes` that the fields do not have: they record, and change nothing."""
    plain = recipe.model_dump(mode="json")
    for key, value in recipe.changes.items():
        if key in {"name", "summary"}:  # a later change adds to them
            continue
        found: Any = plain
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            raise RecipeError(
                f"{shown}: 'changes' is what `--set` records, and changes nothing: it says "
                f"{key} {value!r}, and the recipe has {found!r}. Change the field itself."
            )
