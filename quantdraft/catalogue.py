"""The bundled recipes and what this machine can do with each: make it, compute in it, serve it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quantdraft.kernels import KERNELS
from quantdraft.quantizers.packages import install_command, missing_packages
from quantdraft.recipe import Recipe, bundled_recipe_names, load_recipe
from quantdraft.schemes import weight_format
from quantdraft.serving.support import Support, support


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
        return self.recipe.model_dump(mode="json") | {
            "can_apply_here": not self.missing_packages,
            "missing_packages": list(self.missing_packages),
            "install": self.install,
            "kernels": {device: list(names) for device, names in self.kernels.items()},
            "can_compute_here": self.device_problem is None,
            "device_problem": self.device_problem,
            "engines": {engine: asdict(each) for engine, each in self.engines.items()},
        }

    def lines(self, width: int) -> list[str]:
        """What the terminal shows: what it is, then where it goes."""
        needs = "calibrated" if self.recipe.needs_calibration else "data-free"
        first = f"{self.recipe.name:<{width}}  {needs:<10}  {self.recipe.summary}"
        facts = [f"kernels: {', '.join(self.kernels) or 'none'}", f"engines: {self._engines()}"]
        if self.recipe.requires is not None:
            capability = self.recipe.requires.compute_capability
            facts.append(f"GPU: compute capability {capability}")
        if self.install is not None:
            facts.append(f"not here: needs {', '.join(self.missing_packages)}: {self.install}")
        lines = [first, " " * (width + 2) + "; ".join(facts)]
        return [*lines, " " * (width + 2) + self.recipe.notes] if self.recipe.notes else lines

    def _engines(self) -> str:
        marks = {"yes": "", "part": " (in part)"}
        known = [name + marks[s.level] for name, s in self.engines.items() if s.level in marks]
        return ", ".join(known) or "none known"


def catalogue() -> tuple[Entry, ...]:
    """Every bundled recipe, by name."""
    device, capability = _device()
    return tuple(_entry(load_recipe(name), device, capability) for name in bundled_recipe_names())


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
