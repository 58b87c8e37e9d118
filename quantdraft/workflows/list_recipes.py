"""The bundled recipes and what this machine can do with each: make it, compute in it, serve it."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantdraft.engines.kernels import KERNELS
from quantdraft.engines.support import Support, support
from quantdraft.quantize.backends.packages import install_command, missing_packages
from quantdraft.quantize.recipe import (
    Recipe,
    bundled_path,
    bundled_recipe_names,
    bundled_sweep_names,
    load_recipe,
    load_sweep,
)
from quantdraft.quantize.recipe_formats import weight_format

LEGEND = (
    "`quantdraft apply` makes a draft by a recipe. Its speed is measured with a kernel of the "
    "native engine that computes in the format. `quantdraft recipes show NAME` says more of each "
    "engine."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe, what it needs, where it computes and what loads it."""

    recipe: Recipe
    missing_packages: tuple[str, ...]  # of its back end, not installed here
    install: str | None  # the command that brings them
    kernels: dict[str, tuple[str, ...]]  # device type -> kernels that compute in the format
    device_problem: str | None  # why this machine's device cannot compute in it, or None
    engines: dict[str, Support]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the recipe's own keys among them."""
        return {"kind": "recipe", **self.recipe.model_dump(mode="json")} | {
            "can_apply_here": not self.missing_packages,
            "missing_packages": list(self.missing_packages),
            "install": self.install,
            "kernels": {device: list(names) for device, names in self.kernels.items()},
            "can_compute_here": self.device_problem is None,
            "device_problem": self.device_problem,
            "engines": {engine: asdict(each) for engine, each in self.engines.items()},
        }

    def sentences(self) -> list[str]:
        """What the terminal shows of it: what it is, can be made and timed here, who loads it."""
        return [
            self.recipe.summary,
            f"{self._making()} {self._timing()}",
            self._loading(),
            *([self.recipe.notes] if self.recipe.notes else []),
        ]

    def engine_sentences(self) -> list[str]:
        """A line for each engine: whether it loads the result, and what to know about it."""
        width = max(len(name) for name in self.engines)
        told = {"yes": "loads it", "part": "in part", "no": "does not load it"}
        return [
            f"{name:<{width}}  {told.get(each.level, 'not known')}"
            + (f": {each.note}" if each.note else "")
            for name, each in self.engines.items()
        ]

    def _making(self) -> str:
        if self.install is not None:
            missing = ", ".join(self.missing_packages)
            return f"It cannot be made here: {missing} is missing ({self.install})."
        data = "from calibration data" if self.recipe.needs_calibration else "without data"
        return f"It can be made here, {data}."

    def _timing(self) -> str:
        needed = self.recipe.requires
        gpu = "cuda" if needed is None else f"cuda from capability {needed.compute_capability}"
        devices = [gpu if device == "cuda" else device for device in self.kernels]
        if self.device_problem is None:
            return f"Its speed can be measured here (kernels: {', '.join(devices)})."
        if not devices:
            where = "" if needed is None else f" ({gpu})"
            return f"Its speed can be measured by a serving engine alone{where}."
        return f"Its speed cannot be measured here; it can on {', '.join(devices)}."

    def _loading(self) -> str:
        by_level: dict[str, list[str]] = {}
        for name, each in self.engines.items():
            by_level.setdefault(each.level, []).append(name)
        told = {
            "yes": "Engines that load it as a draft",
            "part": "In part",
            "unknown": "Not known",
        }
        parts = [
            f"{words}: {', '.join(by_level[level])}."
            for level, words in told.items()
            if level in by_level
        ]
        return " ".join(parts) or "No engine loads it as a draft."


def listing(columns: int) -> list[str]:
    """Every bundled recipe and sweep, wrapped to the terminal's width."""
    entries, sweeps = catalogue(), [load_sweep(name) for name in bundled_sweep_names()]
    width = 2 + max(len(entry.recipe.name) for entry in entries)
    lines = []
    for entry in entries:
        lines += _block(entry.recipe.name, entry.sentences(), width, columns)
    for sweep in sweeps:
        how = f"a sweep over {', '.join(sweep.recipes)}: quantdraft sweep --recipes {sweep.name}"
        lines += _block(sweep.name, [sweep.summary, how], width, columns)
    return [*lines, *_wrapped(LEGEND, "", columns)]


def _block(name: str, sentences: list[str], width: int, columns: int) -> list[str]:
    indent = " " * width
    lines = [line for each in sentences for line in _wrapped(each, indent, columns)]
    return [f"{name:<{width}}{lines[0][width:]}", *lines[1:]]


def _wrapped(text: str, indent: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(columns, len(indent) + 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def catalogue() -> tuple[Entry, ...]:
    """Every bundled recipe, by name."""
    return tuple(entry_of(load_recipe(name)) for name in bundled_recipe_names())


def entry_of(recipe: Recipe) -> Entry:
    """What this machine can do with a recipe. A verbatim one's format is not known beforehand."""
    return _entry(recipe, *_device())


def as_json(name: str | None = None) -> str:
    """Every recipe and sweep as a list, or the one of that name or path."""
    if name in bundled_sweep_names():
        return json.dumps(_plain_sweep(name), indent=1)
    if name is not None:
        recipe = load_recipe(name)
        plain = recipe.model_dump(mode="json") if recipe.modifiers else entry_of(recipe).as_dict()
        return json.dumps(plain, indent=1)
    sweeps = [_plain_sweep(each) for each in bundled_sweep_names()]
    return json.dumps([*(entry.as_dict() for entry in catalogue()), *sweeps], indent=1)


def _plain_sweep(name: str) -> dict[str, Any]:
    return {"kind": "sweep", **load_sweep(name).model_dump(mode="json")}


def shown(name: str) -> str:
    """The file of a recipe or sweep, and under a recipe what this machine and engines do with it.

    name: a bundled one's, or a path. What is added is comments: the whole is a recipe file still.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else bundled_path(name)
    if path.stem in bundled_sweep_names() and path == bundled_path(path.stem):
        return path.read_text(encoding="utf-8").rstrip()
    recipe, text = load_recipe(name), path.read_text(encoding="utf-8").rstrip()
    if recipe.modifiers is not None:
        return text
    entry = entry_of(recipe)
    facts = [entry.sentences()[1], *entry.engine_sentences()]
    return "\n".join([text, *(f"# {fact}" for fact in facts)])


def _entry(recipe: Recipe, device: str, capability: float | None) -> Entry:
    missing = missing_packages(recipe.backend)
    kernels = _kernels(recipe)
    return Entry(
        recipe=recipe,
        missing_packages=missing,
        install=install_command(recipe.backend) if missing else None,
        kernels=kernels,
        device_problem=_device_problem(recipe, kernels, device, capability),
        engines=support(recipe),
    )


def _kernels(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    fmt = weight_format(recipe)
    name = "dense" if fmt is None else fmt.name
    if recipe.kv_cache != "keep":
        return {}  # the native engine's cache has the model's own float type
    found = {device: kernels for (device, format_), kernels in KERNELS.items() if format_ == name}
    return {device: tuple(k.__name__ for k in kernels) for device, kernels in found.items()}


def _device_problem(
    recipe: Recipe, kernels: dict[str, tuple[str, ...]], device: str, capability: float | None
) -> str | None:
    if device not in kernels:
        return f"no {device} kernel computes in it"
    needed = recipe.requires.compute_capability if recipe.requires else None
    if needed is not None and capability is not None and capability < needed:
        return f"needs compute capability {needed}, this GPU has {capability}"
    return None


def _device() -> tuple[str, float | None]:
    """The device that would be timed here, and a GPU's compute capability."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    major, minor = torch.cuda.get_device_capability()
    return "cuda", major + minor / 10
