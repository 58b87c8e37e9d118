"""traffic: what a log, a capture, a file of prompts or a trace of lengths holds; and its parts."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantdraft.record.wording import count, counted
from quantdraft.report.blocks import Table
from quantdraft.report.views import tables
from quantdraft.report.views.screen import here
from quantdraft.traffic.contents import QUANTILES, TRAITS, Contents, Lengths
from quantdraft.traffic.counting import read_contents
from quantdraft.traffic.responses import ReadSettings
from quantdraft.traffic.split import Split

LABEL = 14  # columns of what a line is about
NAMES_SHOWN = 8
BAR = 24  # columns of the longest bar
UNSAID = {"tools": "without", "decoding": "plain"}  # what the others are, if not "not said"
KINDS = {
    "traffic": "prompts with answers: `evaluate --traffic` reads it",
    "prompts": "prompts without answers: `capture --prompts` lets the target answer them",
    "lengths": "lengths without text: at these contexts steps are timed; nothing can be replayed",
}


def describe_traffic(
    paths: Sequence[Path], model: str | None = None, settings: ReadSettings | None = None
) -> list[Contents]:
    """Read files of any known format, and return what each holds.

    model: a target or a draft, by whose tokenizer tokens are counted; None: token ids alone are
    tokens, and of texts the characters are counted
    Raises TrafficError for a file that holds nothing.
    """
    tokenizer = None
    if model is not None:
        from quantdraft.checkpoints.tensors.loading import load_tokenizer, resolve_model

        tokenizer = load_tokenizer(resolve_model(model))
    return [read_contents(path, tokenizer, settings) for path in paths]


def traffic_lines(contents: Contents, has_tokenizer: bool = False) -> list[str]:
    """Return the text for the terminal: one screen."""
    screen = here()
    lines = [str(contents.path)]
    for label, text in _facts(contents):
        lines.append(screen.listed(text, f"  {label:<{LABEL}}"))
    lines += ["", *_length_lines(contents)]
    for label, text in _next(contents, has_tokenizer):
        lines.append(screen.listed(text, f"  {label:<{LABEL}}"))
    return lines


def split_lines(split: Split) -> list[str]:
    """Return what was written, for the terminal."""
    lines = [
        f"Written: {shlex.quote(str(each.path))}: {each.num_lines:,} lines, "
        f"{counted(each.part.num_conversations, 'conversation')} of {each.part.num_in_file:,}"
        for each in split.files
    ]
    if split.num_left_out:
        lines.append(f"         {split.num_left_out:,} lines are in none: they cannot be read")
    return lines


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield what the file is, what was left out of it, and what its items are."""
    reading = contents.reading
    notes = "".join(f"; {note}" for note in reading.notes)
    lines = f"{reading.num_used:,} of {reading.num_lines:,} lines"
    yield "read as", f"{reading.title}: {lines}{notes}"
    for each in reading.left_out:
        yield "left out", each.sentence
    for warning in reading.warnings:
        yield "uncertain", warning
    if captured := _captured(contents.header):
        yield "captured", captured
    yield "holds", KINDS[contents.kind]
    noun = {"traffic": "response", "prompts": "prompt", "lengths": "request"}[contents.kind]
    found = f"{count(contents.num_items)} {noun}{'' if contents.num_items == 1 else 's'}"
    num_conversations = len(contents.conversations)
    if num_conversations < contents.num_items:
        largest = max(contents.conversations.values())
        found += f" of {counted(num_conversations, 'conversation')}, {largest} of the largest"
    if contents.num_repeats:
        found += f"; {contents.num_repeats:,} repeat another and count once"
    yield "", found
    for name in ("domain", *TRAITS):
        counts = contents.counts.get(name, Counter[str]())
        if set(counts) - {"default"}:
            yield name, _most(counts, contents.num_items, UNSAID.get(name, "not said"))


def _captured(header: dict[str, Any]) -> str:
    """Return by whom, and how, the answers of a capture were made; "" for a log."""
    target, sampling = header.get("target"), header.get("sampling")
    if not isinstance(target, dict):
        return ""
    temperature = sampling.get("temperature", 0) if isinstance(sampling, dict) else None
    how = (
        "" if temperature is None else f", temperature {temperature}" if temperature else ", greedy"
    )
    return f"from {target.get('name', 'a target')}{how}"


def _most(counts: Counter[str], num_items: int, others: str) -> str:
    shown = [f"{name} {count(number)}" for name, number in counts.most_common(NAMES_SHOWN)]
    more = len(counts) - len(shown)
    unsaid = num_items - sum(counts.values())
    said = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return said + (f"; {others} {count(unsaid)}" if unsaid > 0 else "")


def _length_lines(contents: Contents) -> Iterator[str]:
    """Yield the quantiles of the lengths, and how many are how long."""
    found = [(name, each) for name, several in contents.lengths.items() for each in several]
    rows = [
        {
            "length": f"{name} {each.unit}",
            **{title: count(value) for title, value in each.quantiles.items()},
            "in all": count(int(each.values.sum())),
        }
        for name, each in found
    ]
    yield from tables.table(Table.of(rows, range(1, len(QUANTILES) + 2))).splitlines()
    yield ""
    for unit in ("tokens", "characters"):
        drawn = {name: each for name, each in found if each.unit == unit}
        if drawn:
            yield from tables.table(_histogram(unit, drawn)).splitlines()
            yield ""


def _histogram(unit: str, drawn: dict[str, Lengths]) -> Table:
    """Return a row for each doubling of length, with a bar for each kind of length."""
    counts = {name: each.histogram() for name, each in drawn.items()}
    lows = sorted({low for each in counts.values() for low in each})
    bins = [1 << n for n in range(lows[-1].bit_length()) if 1 << n >= max(1, lows[0])]
    most = max(max(each.values()) for each in counts.values())
    rows = []
    for low in [*([0] if 0 in lows else []), *bins]:
        row = {unit: str(low) if low < 2 else f"{low:,}–{2 * low - 1:,}"}
        for name, each in counts.items():
            number = each.get(low, 0)
            bar = "█" * max(1, round(BAR * number / most)) if number else ""
            row |= {f"{name}s": count(number) if number else "", f"{name} bar": bar}
        rows.append(row)
    titles = [unit, *(title for name in counts for title in (f"{name}s", ""))]
    numeric = frozenset({0, *(1 + 2 * at for at in range(len(counts)))})
    return Table(tuple(titles), tuple(tuple(row.values()) for row in rows), numeric)


def _next(contents: Contents, has_tokenizer: bool) -> Iterator[tuple[str, str]]:
    """Yield what the file is good for, as commands."""
    path = shlex.quote(str(contents.path))
    units = {each.unit for several in contents.lengths.values() for each in several}
    if "characters" in units and not has_tokenizer:
        yield "tokens", "--tokenizer TARGET counts them, and tells what it cannot write"
    if contents.load:
        points = ",".join(str(point.context_length) for point in contents.load)
        share = {1: "all", 2: "a part", 3: "a third"}[len(contents.load)]
        yield (
            "to time",
            f"--context-lengths {points} of `bench` and `evaluate`: each is the context of {share} "
            "of the decoded tokens",
        )
    if contents.kind == "traffic":
        yield "next", f"quantdraft evaluate D-int4 --target T --traffic {path}"
        if len(contents.conversations) > 1:
            split = "--split calibration=0.5,evaluation=0.5"
            yield "to split", f"quantdraft traffic {path} {split} -o PARTS"
    elif contents.kind == "prompts":
        yield "next", f"quantdraft capture --target T --prompts {path} -o traffic.jsonl"
    elif contents.load:
        yield "next", f"quantdraft evaluate D-int4 --target T --traffic LOG --trace {path}"


def lines_of_all(found: Sequence[Contents], has_tokenizer: bool) -> Iterator[str]:
    """Yield the lines of several files, with an empty one between two."""
    for number, contents in enumerate(found):
        if number:
            yield ""
        yield from traffic_lines(contents, has_tokenizer)
