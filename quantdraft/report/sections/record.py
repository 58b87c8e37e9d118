"""The byte ledger and the provenance: nested records, each number in the unit its key names."""

from __future__ import annotations

from typing import Any

from quantdraft.record import ARMS, Evaluation
from quantdraft.record.wording import UNDEFINED, count, num_bytes, significant, times, title_of
from quantdraft.report.blocks import Block, Paragraph, Section, Table
from quantdraft.report.charts.bars import BytesPart, ledger_chart

# Keys of the ledger whose values are sentences already.
SENTENCES = ("sentence", "head_advice")
WORDS = {
    "num_speculative_tokens": "k",
    "cost_ratio": "c, draft step over target step",
    "ceiling": "Ceiling of a draft step",
    "largest_speedup": "Largest speedup over the baseline",
    "min_speedup": "Speedup asked for",
    "windowed_kv_bytes_per_context_token": "KV bytes per context token, sliding window",
    "window": "Sliding window, tokens",
    "state_bytes": "Recurrent states",
    "weight_bytes": "All weights",
    "step_bytes": "Whole step",
}
# Keys of one draft that are no part of a step, but sums of parts.
SUMS = ("step_bytes", "weight_bytes")
KV = "kv_bytes_per_context_token"
WINDOWED_KV, WINDOW = "windowed_kv_bytes_per_context_token", "window"  # of layers that see less


def ledger_section(evaluation: Evaluation) -> Section:
    """Return the bytes read per draft step, by part, before and after, and their ceiling."""
    ledger = evaluation.ledger
    if not ledger:
        return Section("Byte ledger", (Paragraph(f"Bytes per draft step: {UNDEFINED}."),))
    blocks: list[Block] = [Paragraph(str(ledger[key])) for key in SENTENCES if ledger.get(key)]
    parts = [
        part
        for name in ARMS
        if isinstance(ledger.get(name), dict)
        for part in _parts(name, ledger[name], ledger.get("context_length") or 0)
    ]
    if parts:
        blocks.append(ledger_chart(parts, times(ledger.get("ceiling"))))
    tables = (parts_table(ledger), _sums_table(ledger), _options_table(ledger))
    return Section("Byte ledger", (*blocks, *(table for table in tables if table)))


def _parts(draft: str, sizes: dict[str, Any], context_length: int) -> list[BytesPart]:
    found = {key: value for key, value in sizes.items() if key not in SUMS}
    if KV in found:
        window, windowed = found.pop(WINDOW, 0), found.pop(WINDOWED_KV, 0)
        seen = min(context_length, window)
        found["KV_bytes"] = context_length * found.pop(KV) + seen * windowed
    return [
        BytesPart(draft, key_words(key), size, at)
        for at, (key, size) in enumerate(found.items())
        if size > 0
    ]


def parts_table(ledger: dict[str, Any]) -> Table | None:
    """Return a row for every part: bytes of the baseline, of the candidate, and their ratio."""
    before, after = ledger.get("baseline"), ledger.get("candidate")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return None
    names = list(dict.fromkeys((*before, *after)))
    return Table(
        columns=("Read per draft step", "Baseline", "Candidate", "Baseline / candidate"),
        rows=tuple(_part_row(name, before.get(name), after.get(name)) for name in names),
        numeric=frozenset({1, 2, 3}),
    )


def _part_row(name: str, before: Any, after: Any) -> tuple[str, ...]:
    both_numbers = isinstance(before, int | float) and isinstance(after, int | float)
    ratio = times(before / after) if both_numbers and after else "—"
    return key_words(name), shown_value(name, before), shown_value(name, after), ratio


def _sums_table(ledger: dict[str, Any]) -> Table | None:
    plain = {
        key: value
        for key, value in ledger.items()
        if not isinstance(value, dict | list) and key not in SENTENCES
    }
    rows = tuple((key_words(key), shown_value(key, value)) for key, value in plain.items())
    return Table(("Bound", "Value"), rows, frozenset({1})) if rows else None


def _options_table(ledger: dict[str, Any]) -> Table | None:
    options = ledger.get("head_options")
    if not options:
        return None
    columns = tuple(options[0])
    rows = tuple(tuple(shown_value(key, option.get(key)) for key in columns) for option in options)
    numeric = frozenset(at for at, key in enumerate(columns) if "bytes" in key)
    return Table(tuple(key_words(key) for key in columns), rows, numeric)


def provenance_section(evaluation: Evaluation) -> Section:
    """Return what it takes to run this again."""
    plain = {"created": evaluation.created, **evaluation.provenance}
    rows = tuple(leaves(plain))
    return Section("Provenance", (Table(("Key", "Value"), rows),), is_detail=True)


def shown_value(key: str, value: Any) -> str:
    """Return one value, in the unit its key names; None is undefined."""
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return _number(key, value)


def _number(key: str, value: float) -> str:
    if "bytes" in key:
        return num_bytes(value)
    if "ceiling" in key or "speedup" in key:
        return times(value)
    return count(value) if isinstance(value, int) else significant(value)


def key_words(key: str) -> str:
    """Return a key as a row's title; the unit is in the value."""
    if key in WORDS:
        return WORDS[key]
    words = title_of(key.removesuffix("_bytes").replace("kv_bytes", "KV"))
    return words.replace("Mlp", "MLP")


def leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Return every leaf of a nested record with its dotted path."""
    if isinstance(value, dict):
        inner = (leaves(v, f"{path}.{k}" if path else str(k)) for k, v in value.items())
        return [leaf for found in inner for leaf in found]
    if isinstance(value, list | tuple):
        return [(path, ", ".join(str(item) for item in value) or "none")]
    return [(path, "none" if value is None else str(value))]
