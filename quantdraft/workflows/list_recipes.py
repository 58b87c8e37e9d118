"""The bundled recipes, and whether this machine can apply, time and serve each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from quantdraft.engines.kernels import KERNELS
from quantdraft.engines.registry import support_tables
from quantdraft.engines.support import Support
from quantdraft.quantize.backends.packages import install_command, missing_packages
from quantdraft.quantize.recipe import (
    Recipe,
    bundled_path,
    bundled_recipe_names,
    bundled_sweep_names,
    load_sweep,
)
from quantdraft.quantize.recipe_changes import load_all_changed, load_changed
from quantdraft.quantize.recipe_formats import weight_format
from quantdraft.report.views.screen import Screen, here

LEGEND = (
    "`quantdraft apply` makes a draft by a recipe. Its speed is measured with a kernel of the "
    "native engine that computes in the format. `quantdraft recipes show NAME` says more of each "
    "engine."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One recipe: what it needs, on which devices it computes, and which engines load it."""

    recipe: Recipe
    missing_packages: tuple[str, ...]  # of its back end, not installed here
    install: str | None  # the command that brings them
    kernels: dict[str, tuple[str, ...]]  # device type -> kernels that compute in the format
    device_problem: str | None  # why this machine's device cannot compute in it, or None
    engines: dict[str, Support]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the recipe's own keys among them."""
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
        """Return what it is, what can be done with it here, and which engines load it."""
        return [
            self.recipe.summary,
            f"{self._apply_words()} {self._timing_words()}",
            self._engine_words(),
            *([self.recipe.notes] if self.recipe.notes else []),
        ]

    def engine_sentences(self) -> list[str]:
        """Return a line for each engine: whether it loads the result, and what to know about it."""
        width = max(len(name) for name in self.engines)
        words = {"yes": "loads it", "part": "in part", "no": "does not load it"}
        return [
            f"{name:<{width}}  {words.get(each.level, 'not known')}"
            + (f": {each.note}" if each.note else "")
            for name, each in self.engines.items()
        ]

    def _apply_words(self) -> str:
        if self.install is not None:
            missing = ", ".join(self.missing_packages)
            return f"It cannot be applied here: {missing} is missing ({self.install})."
        data = "from calibration data" if self.recipe.needs_calibration else "without data"
        return f"It can be applied here, {data}."

    def _timing_words(self) -> str:
        needed = self.recipe.requires
        gpu = "cuda" if needed is None else f"cuda from capability {needed.compute_capability}"
        devices = [gpu if device == "cuda" else device for device in self.kernels]
        if self.device_problem is None:
            return f"Its speed can be measured here (kernels: {', '.join(devices)})."
        if not devices:
            where = "" if needed is None else f" ({gpu})"
            return f"Its speed can be measured by a serving engine alone{where}."
        return f"Its speed cannot be measured here; it can on {', '.join(devices)}."

    def _engine_words(self) -> str:
        by_level: dict[str, list[str]] = {}
        for name, each in self.engines.items():
            by_level.setdefault(each.level, []).append(name)
        words = {
            "yes": "Engines that load it as a draft",
            "part": "In part",
            "unknown": "Not known",
        }
        parts = [
            f"{title}: {', '.join(by_level[level])}."
            for level, title in words.items()
            if level in by_level
        ]
        return " ".join(parts) or "No engine loads it as a draft."


def listing(screen: Screen | None = None, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Return every bundled recipe and sweep as lines.

    screen: None: what stdout is now. changes: fields of recipes, for those that have them
    """
    screen = screen or here()
    found = {entry.recipe.name: entry.sentences() for entry in catalogue(changes)}
    for name in bundled_sweep_names():
        sweep = load_sweep(name)
        how = f"a sweep over {', '.join(sweep.recipes)}: quantdraft sweep --recipes {name}"
        found[name] = [sweep.summary, how]
    width = 2 + max(map(len, found))
    lines = []
    for name, (first, *rest) in found.items():
        lines.append(screen.wrapped(first, f"{name:<{width}}"))
        lines += [screen.wrapped(each, " " * width) for each in rest]
    return [*lines, screen.wrapped(LEGEND)]


def catalogue(changes: Mapping[str, Any] | None = None) -> tuple[Entry, ...]:
    """Return every bundled recipe, by name; with changes, those that can take them, changed."""
    recipes, unchanged = load_all_changed(bundled_recipe_names(), changes)
    return tuple(entry_of(recipe) for recipe in recipes if recipe.name not in unchanged)


def entry_of(recipe: Recipe) -> Entry:
    """Return what this machine can do with a recipe; the format of a verbatim one is not known."""
    device, capability = _device()
    missing, kernels = missing_packages(recipe.backend), _kernels(recipe)
    return Entry(
        recipe=recipe,
        missing_packages=missing,
        install=install_command(recipe.backend) if missing else None,
        kernels=kernels,
        device_problem=_device_problem(recipe, kernels, device, capability),
        engines={name: each.of_recipe(recipe) for name, each in support_tables().items()},
    )


def recipes_json(name: str | None = None, changes: Mapping[str, Any] | None = None) -> str:
    """Return every recipe and sweep as a JSON list, or the one of that name or path."""
    if name in bundled_sweep_names():
        return json.dumps(_plain_sweep(name), indent=1)
    if name is not None:
        recipe = load_changed(name, changes)
        plain = recipe.model_dump(mode="json") if recipe.modifiers else entry_of(recipe).as_dict()
        return json.dumps(plain, indent=1)
    sweeps = [_plain_sweep(each) for each in bundled_sweep_names()]
    return json.dumps([*(entry.as_dict() for entry in catalogue(changes)), *sweeps], indent=1)


def _plain_sweep(name: str) -> dict[str, Any]:
    return {"kind": "sweep", **load_sweep(name).model_dump(mode="json")}


def recipe_text(name: str, changes: Mapping[str, Any] | None = None) -> str:
    """Return the file of a recipe or sweep, with comments on what machine and engines do with it.

    name: a bundled one's, or a path. The text is a valid recipe file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else bundled_path(name)
    if path.stem in bundled_sweep_names() and path == bundled_path(path.stem):
        return path.read_text(encoding="utf-8").rstrip()
    recipe, text = load_changed(name, changes), path.read_text(encoding="utf-8").rstrip()
    if changes and recipe.changes:
        plain = recipe.model_dump(mode="json", exclude_unset=True, exclude={"changes"})
        text = f"# {path.stem}, changed by --set. The file is to be called {recipe.name}.yaml.\n"
        text += yaml.safe_dump(plain, sort_keys=False).rstrip()
    if recipe.modifiers is not None:
        return text
    entry = entry_of(recipe)
    facts = [entry.sentences()[1], *entry.engine_sentences()]
    return "\n".join([text, *(f"# {fact}" for fact in facts)])


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
    """Return the device that would be timed here, and a GPU's compute capability."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    major, minor = torch.cuda.get_device_capability()
    return "cuda", major + minor / 10
