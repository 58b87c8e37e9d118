"""Which further arguments and environment variables a server of ours is given.

Options are passed on from a list, by their whole names: those that place the work and share out
memory. All others could open the server to others, run code, load another model than the one that
is measured, or change the counters, and so could those that a later version of an engine has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from quantdraft.errors import OptionError, nearest

# Where a server listens, and to whom it answers.
LISTENING = ("host", "port", "uds", "api-key", "api-key-file", "ssl-keyfile", "ssl-certfile")
_NUMBER = re.compile(r"-?\d[\d.,e+-]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class PassedOn:
    """What an engine's servers may be given besides our own arguments."""

    engine: str  # its name, in sentences
    options: frozenset[str]  # with their dashes; words of long ones joined by dashes
    variables: tuple[str, ...]  # what the names of environment variables that it reads begin with

    def require(self, arguments: Iterable[str]) -> None:
        """Raise OptionError for the first argument that is not passed on."""
        before = ""
        for argument in arguments:
            if _is_value(argument):
                self._require_place(argument, before)
            else:
                self._require_option(argument)
            before = argument

    def _require_option(self, argument: str) -> None:
        name = argument.partition("=")[0]
        whole = name.replace("_", "-") if name.startswith("--") else name
        if whole in self.options or (
            whole.startswith("--no-") and f"--{whole[5:]}" in self.options
        ):
            return
        plain = whole.lstrip("-")
        longer = [each for each in sorted(self.options) if plain[1:] and each[2:].startswith(plain)]
        if plain and len(whole) > 2 and any(full.startswith(plain) for full in LISTENING):
            why = (
                "a server of ours listens on the loopback alone, on a free port, without a key. "
                "Start your own, and give --engine-url."
            )
        elif longer:
            why = f"options are given by their whole names: {', '.join(longer[:3])}."
        else:
            hint = nearest(whole, [each for each in self.options if each.startswith("--")], 0.8)
            why = (
                f"it is not one of the options that are passed on to {self.engine}: those place "
                f"the work and share out memory.{hint} Start your own server with it, and give "
                "--engine-url."
            )
        raise OptionError(f"--engine-args {name}: {why}")

    def _require_place(self, value: str, before: str) -> None:
        """Raise OptionError for a value that no option stands before: it could name a model."""
        is_after_option = before.startswith("-") and "=" not in before and not _is_value(before)
        is_in_list = bool(_NUMBER.fullmatch(value)) and _is_value(before)
        if value.startswith("@") or not (is_after_option or is_in_list):
            raise OptionError(
                f"--engine-args {value!r}: it stands after no option that takes it. Write "
                "--engine-args --option=value."
            )

    def recorded_variables(self) -> dict[str, str]:
        """Return the environment's settings of this engine; what could be a secret is hidden."""
        return dict(sorted(self._variables()))

    def _variables(self) -> Iterator[tuple[str, str]]:
        for name, text in os.environ.items():
            if name.startswith(self.variables):
                yield name, HIDDEN if _SECRET.search(name) else text


def _is_value(argument: str) -> bool:
    return bool(argument) and (not argument.startswith("-") or bool(_NUMBER.fullmatch(argument)))


def long_names(text: str) -> frozenset[str]:
    """Return options from their names without dashes, separated by blanks."""
    return frozenset(f"--{name}" for name in text.split())


def short_names(text: str) -> frozenset[str]:
    """Return options of one dash, in the same way."""
    return frozenset(f"-{name}" for name in text.split())
