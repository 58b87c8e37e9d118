"""The packages that a backend needs, and the extra that installs them. Nothing is imported."""

from __future__ import annotations

import importlib
import importlib.util

from quantdraft.errors import MissingPackageError
from quantdraft.quantize.recipe import Recipe

# backend -> packages, by the name they are imported under. The extra bears the backend's name.
PACKAGES: dict[str, tuple[str, ...]] = {
    "none": (),
    "llmcompressor": ("llmcompressor",),
    "bitsandbytes": ("bitsandbytes",),
    "gptqmodel": ("gptqmodel", "optimum"),
}


def missing_packages(backend: str) -> tuple[str, ...]:
    """Return the packages of a backend that are not installed."""
    return tuple(name for name in PACKAGES[backend] if importlib.util.find_spec(name) is None)


def install_command(backend: str) -> str:
    """Return what brings a backend's packages."""
    return f"pip install 'quantdraft[{backend}]'"


def require_packages(recipe: Recipe) -> None:
    """Import what the recipe's backend needs.

    Raises MissingPackageError that names recipe, package and the command that gets it.
    """
    for name in PACKAGES[recipe.backend]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(
                f"recipe {recipe.name!r} needs the package {name!r}: "
                f"{install_command(recipe.backend)}"
            ) from error
