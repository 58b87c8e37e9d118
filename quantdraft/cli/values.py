"""The values that options take: names with suggestions and completion, models, paths, numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from quantdraft.errors import OptionError, nearest
from quantdraft.record.terms import MAX_K

A_PATH = click.Path(path_type=Path)  # of a file or a directory


class InputFile(click.ParamType[Path]):
    """A file to read; what a pipe gives is read once, see `read_pipe`."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, of a pipe that of a file with what it gives."""
        from quantdraft.cli.pipes import read_pipe

        if ctx is not None and ctx.resilient_parsing:
            return Path(value)
        try:
            return read_pipe(Path(value))
        except OptionError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return files."""
        return [CompletionItem(incomplete, type="file")]


A_FILE = InputFile()
AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)
MAX_DIGITS, MAX_RANGE = 9, 10_000  # more is a slip of the hand, and would fill the memory


class Name(click.ParamType[str]):
    """One of some names. `is_open`: the library knows more, and refuses what it does not know."""

    def __init__(
        self, kind: str, known: Callable[[], Sequence[str]], *, is_open: bool = False
    ) -> None:
        self.name = kind
        self.known = known
        self.is_open = is_open

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return all names where there are no others."""
        return None if self.is_open else f"[{'|'.join(self.known())}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; raise a usage error that suggests the nearest for an unknown one."""
        known = self.known()
        if not self.is_open and value not in known:
            hint = nearest(value, known)
            self.fail(f"no {self.name} {value!r}.{hint} There are: {', '.join(known)}.", param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin with what was typed."""
        return [CompletionItem(each) for each in self.known() if each.startswith(incomplete)]


class Names(Name):
    """Names separated by commas; the last one is completed."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return completions of the last name, each after the names that were typed before it."""
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{each}")
            for each in self.known()
            if each.startswith(last) and each not in taken
        ]


class RecipeName(Name):
    """The name of a bundled recipe, or the path of a recipe file."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return names, or files where no name begins with what was typed."""
        found = super().shell_complete(ctx, param, incomplete)
        return found or [CompletionItem(incomplete, type="file")]


class ModelName(click.ParamType[str]):
    """A model by its directory or Hub id."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return directories."""
        return [CompletionItem(incomplete, type="dir")]


class Positive(click.ParamType[float]):
    """A number above 0: seconds, CPUs, gigabytes."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; raise a usage error for one that is not above 0 and finite."""
        number = click.FLOAT.convert(value, param, ctx)
        if not 0 < number < math.inf:
            self.fail(f"{value} must be above 0.", param, ctx)
        return number


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    from quantdraft.quantize.recipe import bundled_recipe_names

    return bundled_recipe_names()


def recipe_and_sweep_names() -> list[str]:
    """Return the names of the bundled recipes, and of the sweeps that stand for several."""
    from quantdraft.quantize.recipe import bundled_sweep_names

    return [*recipe_names(), *bundled_sweep_names()]


def known_shapes() -> list[str]:
    """Return the names of published models whose shape is known."""
    from quantdraft.checkpoints.shapes import shape_names

    return shape_names()


def gpu_names() -> list[str]:
    """Return the names of the devices that `plan` knows."""
    from quantdraft.workflows.plan.devices import device_names

    return device_names()


def parse_ks(text: str) -> tuple[int, ...]:
    """Read `4`, `1-8` or `2,4,8` as sorted numbers of speculative tokens, each in 1..16."""
    ks = _numbers(text)
    if ks is None:
        raise OptionError(f"-k {text!r} is not a number, a range or a list. Write 4, 1-8 or 2,4,8.")
    if not ks or min(ks) < 1 or max(ks) > MAX_K:
        raise OptionError(f"-k {text!r}: the number of speculative tokens lies in 1..{MAX_K}.")
    return tuple(sorted(ks))


def parse_numbers(text: str, option: str, least: int = 1) -> tuple[int, ...]:
    """Read `4`, `1-8`, `2,4,8` or a mixture as sorted numbers from `least`."""
    numbers = _numbers(text)
    if numbers is None or min(numbers, default=least) < least:
        raise OptionError(
            f"{option} {text!r} is not a list of numbers from {least}. Write {least},8,32 or "
            f"{least}-17."
        )
    if not numbers:
        raise OptionError(f"{option} {text!r} names no number: a range goes upwards.")
    return tuple(sorted(numbers))


def parse_names(text: str | None) -> tuple[str, ...]:
    """Return what stands between the commas, without blanks and empty names."""
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def optional_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Read a list of numbers as `parse_numbers` does; None where the option is absent."""
    return None if text is None else parse_numbers(text, option)


def _numbers(text: str) -> set[int] | None:
    """Return the numbers of a list; None where a part is neither a number nor a range."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(_is_number(end) for end in ends):
            return None
        first, last = int(ends[0]), int(ends[-1])
        numbers |= set(range(first, min(last, first + MAX_RANGE) + 1))
    return numbers


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_DIGITS
