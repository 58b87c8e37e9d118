"""What to do to a draft: a recipe, read from YAML and checked against a schema."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quantdraft.errors import RecipeError

# bits per weight, and the weight's scale: bytes, and weights that share one (None: a whole row)
Scheme = Literal["none", "FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W8A16", "W4A16"]
HeadLever = Literal["keep", "8-bit", "4-bit"]


class Calibration(BaseModel):
    """Which samples a calibrated method sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["traffic"] = "traffic"
    num_samples: int = Field(default=256, ge=1)
    max_seq_length: int = Field(default=2048, ge=16)
    seed: int = 0


class Recipe(BaseModel):
    """One way to quantize a draft; a YAML file whose name is the recipe's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    summary: str
    backend: Literal["none", "llmcompressor"]
    scheme: Scheme
    method: Literal["none", "rtn", "gptq"] = "rtn"
    group_size: int | None = None  # W4A16 only: weights that share a scale
    ignore: tuple[str, ...] = ("lm_head",)
    lm_head: HeadLever = "keep"
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        if (self.scheme == "none") != (self.backend == "none"):
            raise ValueError("scheme 'none' goes with backend 'none', and with no other")
        if self.method == "gptq" and self.calibration is None:
            raise ValueError("method 'gptq' needs a 'calibration' section")
        return self

    @property
    def is_identity(self) -> bool:
        """True for the control recipe, which quantizes nothing."""
        return self.scheme == "none"

    @property
    def needs_calibration(self) -> bool:
        """True when samples are needed; a data-free recipe works on the files alone."""
        return self.calibration is not None


def recipes_dir() -> Path:
    """Where the bundled recipes lie: inside the wheel, or at the top of a source tree."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def bundled_recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by name, or any recipe by its path."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = recipes_dir() / f"{name_or_path}.yaml"
        if not path.is_file():
            names = ", ".join(bundled_recipe_names())
            raise RecipeError(
                f"no recipe {name_or_path!r}. Bundled: {names}. Or give a path to a .yaml file."
            )
    return _read(path, name_or_path)


def _read(path: Path, shown: str) -> Recipe:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file '{shown}'.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{shown}: cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(plain, dict):
        raise RecipeError(
            f"{shown}: a recipe is a mapping of keys to values, not {type(plain).__name__}."
        )
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(_all_problems(shown, error)) from error
    if recipe.name != path.stem:
        raise RecipeError(f"{shown}: name {recipe.name!r} differs from the file's, {path.stem!r}.")
    return recipe


def _all_problems(shown: str, error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        problems.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
    return f"{shown}: " + "; ".join(problems)
