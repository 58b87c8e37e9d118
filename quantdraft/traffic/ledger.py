"""What was read of a log: its format, the lines that were left out and why, and what to know of it.

It stands on the terminal, in the record and on the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from quantdraft.traffic.formats.exchange import Exchange, Format, UnusableLineError
from quantdraft.traffic.formats.known import Reader

PLACES_SHOWN = 3
REASONS_SHOWN = 8
LARGEST_PARAMETER = 1e9


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many lines one reason cost, and the first of them."""

    reason: str
    count: int
    places: tuple[str, ...]  # "line 7"; at most PLACES_SHOWN

    @property
    def sentence(self) -> str:
        """`line 7, line 9 and 12 more: it holds an image`."""
        more = self.count - len(self.places)
        if not self.places:
            return f"{self.count:,}: {self.reason}"
        return f"{', '.join(self.places)}{f' and {more:,} more' if more else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file was read as."""

    formats: dict[str, int]  # title -> lines that were used
    num_lines: int
    num_used: int
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()  # "61 with tools"
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name of the format, or of several with their lines."""
        found = sorted(self.formats.items(), key=lambda each: -each[1])
        if len(found) == 1:
            return found[0][0]
        return " and ".join(f"{name} ({count:,} lines)" for name, count in found)

    @property
    def sentence(self) -> str:
        """`read as OpenAI chat: 9 of 12 lines; 2 with tools; 3 left out: it holds an image`."""
        parts = [f"read as {self.title}: {self.num_used:,} of {self.num_lines:,} lines"]
        return "; ".join([*parts, *self.notes, *left_out_words(self.left_out)])

    def without(self, count: int, reason: str) -> Reading:
        """Return it with something more that was left out, after the file was read."""
        return replace(self, left_out=(*self.left_out, LeftOut(reason, count, ())))

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values, for the record of a run."""
        return {
            "formats": dict(self.formats),
            "num_lines": self.num_lines,
            "num_used": self.num_used,
            "left_out": [
                {"reason": each.reason, "count": each.count, "places": list(each.places)}
                for each in self.left_out
            ],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


@dataclass(slots=True)
class Tally:
    """Counts while a file is read."""

    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    num_lines: int = 0
    num_used: int = 0
    skipped: list[str] = field(default_factory=list)  # "line 7: why"
    models: Counter[str] = field(default_factory=Counter)
    samplings: Counter[tuple[tuple[str, float], ...]] = field(default_factory=Counter)
    tells_thinking: int = 0  # lines whose template arguments say whether thinking was on
    num_chats: int = 0

    def read(
        self, logs: Reader, place: str, entry: Mapping[str, Any]
    ) -> Iterator[tuple[Format, list[Exchange]]]:
        """Yield the lines of one object that can be read, with their formats; count all of them."""
        for kind, part in logs.parts(entry):
            self.num_lines += 1
            try:
                exchanges = logs.read(kind, part)
            except UnusableLineError as reason:
                self.leave_out(place, reason)
                continue
            assert kind is not None  # it was read
            yield kind, exchanges

    def leave_out(self, place: str, reason: object) -> None:
        """Count something that is left out."""
        self.skipped.append(f"{place}: {reason}")

    def leave_out_line(self, place: str, reason: object) -> None:
        """Count a line that cannot be parsed."""
        self.num_lines += 1
        self.leave_out(place, reason)

    def use(self, title: str, exchange: Exchange) -> None:
        """Count a line that is used."""
        self.num_used += 1
        self.formats[title] += 1
        self.notes["with tools"] += exchange.uses_tools
        self.notes["with further turns that are not asked"] += exchange.num_more_turns > 0
        if decoding := exchange.traits.get("decoding"):
            self.notes[f"decoded with {decoding}"] += 1
        if exchange.model:
            self.models[exchange.model] += 1
        self.samplings[sampling_of(exchange)] += 1
        self.num_chats += exchange.messages is not None
        self.tells_thinking += "enable_thinking" in exchange.template_kwargs

    def reading(self, warnings: Iterable[str] = ()) -> Reading:
        """Return what was counted."""
        notes = [f"{count:,} {name}" for name, count in self.notes.items() if count]
        models = [f"{name} ({count:,})" for name, count in self.models.most_common(4)]
        if len(self.models) > 1:
            more = ", …" if len(self.models) > len(models) else ""
            notes.append(f"{len(self.models)} models: {', '.join(models)}{more}")
        return Reading(
            formats=dict(self.formats),
            num_lines=self.num_lines,
            num_used=self.num_used,
            left_out=left_out_of(self.skipped),
            notes=tuple(notes),
            warnings=tuple(warnings),
        )


def left_out_words(left_out: Sequence[LeftOut]) -> list[str]:
    """Return `27 left out: it holds an image` for each of the first reasons, and the rest."""
    shown = left_out[:REASONS_SHOWN]
    rest = sum(each.count for each in left_out[REASONS_SHOWN:])
    words = [f"{each.count:,} left out: {each.reason}" for each in shown]
    return [*words, *([f"{rest:,} left out for other reasons"] if rest else [])]


def sampling_of(exchange: Exchange) -> tuple[tuple[str, float], ...]:
    """Return what a line says of temperature, top-p and top-k; () where it says nothing."""
    found = ((name, exchange.parameters.get(name)) for name in ("temperature", "top_p", "top_k"))
    return tuple((name, float(value)) for name, value in found if _is_amount(value))


def _is_amount(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number of a size that a sampling parameter may have."""
    return type(value) in (int, float) and abs(value) < LARGEST_PARAMETER


def left_out_of(skipped: Iterable[str]) -> tuple[LeftOut, ...]:
    """Return the reasons of `line 7: why`, the most frequent first."""
    places: dict[str, list[str]] = {}
    counts = Counter[str]()
    for each in skipped:
        place, _, reason = each.partition(": ")
        counts[reason] += 1
        first = places.setdefault(reason, [])
        if len(first) < PLACES_SHOWN:
            first.append(place)
    return tuple(
        LeftOut(reason, count, tuple(places[reason])) for reason, count in counts.most_common()
    )
