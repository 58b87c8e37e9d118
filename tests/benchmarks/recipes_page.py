"""Write the table of recipes as Markdown for the record and as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantdraft.record import Interval
from quantdraft.record.wording import UNDEFINED, percent
from quantdraft.report.blocks import Bullets, Document, Paragraph, Section, Table
from tests.benchmarks.recipe_rows import CONTEXT, ENGINES, K, Made, Row, Tried

MARKS = {"loads": "yes", "refuses": "no", "not tried": "–"}
INTRO = (
    "Every recipe of `quantdraft recipes`, applied to the embedded draft and tried in every engine "
    "that is at hand. Each apply runs in a process of its own; its seconds include the import of "
    "its back end and its own proof (CPU s: the time its threads computed, which a busy machine "
    "changes less), its peak is the process's largest resident set."
)
MEANING = (
    f"Step MB: bytes that one draft step reads, by the ledger, over an empty cache and over "
    f"{CONTEXT} tokens.",
    "Logits error: relative distance of the reloaded checkpoint's logits from the full-precision "
    "draft's (each position's mean removed) on a fixed probe; what quantizing costs.",
    "Reload error: the same logits against those of the stored integers and scales, dequantized "
    "here; what loading wrongly would show.",
    f"Acceptance: accepted over proposed tokens at k = {K}, greedy, by replay; the loss is the "
    "full-precision draft's less this one's on the same tokens, in points, positive = worse. 95 % "
    "intervals resample prompts.",
    "Engines: yes where it loaded the checkpoint and computed with it; no where it refused, with "
    "its own words below; – where it was not tried, with the reason below.",
)


def document(rows: Sequence[Row], environment: dict[str, Any], command: str) -> Document:
    """All rows, with what was counted, what was refused, and where that was not foreseen."""
    sections = (
        Section("Recipes", (table_of(rows), Bullets(MEANING))),
        Section("The engines' rounds against replay's", (_counters_intro(), counters_of(rows))),
        Section("What each engine computed with", (details_of(rows),)),
        Section("Refused, and not tried", (refusals_of(rows),)),
        Section("Otherwise than `quantdraft recipes` says", (surprises_of(rows),)),
        Section("Environment", (_environment(environment, command),)),
    )
    return Document("Recipes on the embedded pair", INTRO, None, (), sections)


def table_of(rows: Sequence[Row]) -> Table:
    """One line a recipe; a recipe without a checkpoint says so and has no number."""
    columns = (
        *(
            "recipe",
            "apply s",
            "CPU s",
            "peak MB",
            "(before)",
            "disk MB",
            "step MB",
            f"at {CONTEXT}",
        ),
        *("logits error", "reload error", "acceptance", "loss, points", "kernels"),
        *("native", "transformers", "vLLM", "llama.cpp"),
    )
    cells = tuple(
        (row.name, *numbers(row.made), _devices(row), *(_mark(row, name) for name in ENGINES))
        for row in rows
    )
    return Table(columns, cells, frozenset(range(1, 10)))


def numbers(made: Made | None) -> tuple[str, ...]:
    """The measured cells of a line."""
    if made is None:
        return (UNDEFINED,) * 11
    sizes = (made.disk_bytes, made.step_bytes, made.context_step_bytes)
    return (
        _seconds(made.apply_seconds),
        _seconds(made.cpu_seconds),
        _megabytes(made.peak_bytes, 0),
        "–" if made.start_bytes is None else _megabytes(made.start_bytes, 0),
        *(_megabytes(size, 2) for size in sizes),
        _error(made.logit_error),
        _error(made.reload_error),
        _rate(made.rate),
        _points(made.loss),
    )


def counters_of(rows: Sequence[Row]) -> Table:
    """One line a recipe that vLLM served: rounds over all prompts, and where they part."""
    cells = []
    for row in rows:
        found = row.counted
        if found is None:
            continue
        pairs = list(zip(found.engine, found.replay, strict=True))
        differences = ", ".join(f"{engine - round(replay):+d}" for engine, replay in pairs)
        same = sum(found.is_same_text)
        cells.append(
            (
                row.name,
                found.dtype,
                str(sum(found.engine)),
                str(round(sum(found.replay))),
                differences.replace("+0", "0"),
                "equal" if found.is_exact else "near-ties may differ",
                f"{same} of {len(found.is_same_text)}",
            )
        )
    columns = (
        *("recipe", "float type", "rounds counted", "rounds replayed", "difference, by prompt"),
        *("expected", "texts of the target alone"),
    )
    return Table(columns, tuple(cells), frozenset({2, 3}))


def details_of(rows: Sequence[Row]) -> Table:
    """Kernels of the registry by device, and what each engine said it used."""
    columns = ("recipe", "CPU kernels", "CUDA kernels", *ENGINES)
    cells = tuple(
        (
            row.name,
            *(", ".join(row.kernels.get(device, ())) or "none" for device in ("cpu", "cuda")),
            *(_detail(row.engine(name)) for name in ENGINES),
        )
        for row in rows
    )
    caption = "CUDA kernels are those that quantdraft has; they did not run here."
    return Table(columns, cells, caption=caption)


def refusals_of(rows: Sequence[Row]) -> Table:
    """Every recipe that could not be made, and every engine's own reason; equal ones together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.problem:
            found.setdefault(("apply", "no checkpoint", row.problem), []).append(row.name)
            continue
        for tried in (row.engine(name) for name in ENGINES):
            if tried.level != "loads":
                key = (tried.engine, tried.level, tried.detail)
                found.setdefault(key, []).append(row.name)
    cells = sorted((*key, ", ".join(names)) for key, names in found.items())
    return Table(("where", "what", "reason", "recipes"), tuple(cells))


def surprises_of(rows: Sequence[Row]) -> Bullets:
    """Where an engine here and the table of known support part."""
    found = [text for row in rows for text in row.surprises()]
    return Bullets(tuple(found) or ("nowhere",))


def _counters_intro() -> Paragraph:
    return Paragraph(
        f"Greedy, k = {K}, one request at a time. Rounds are counted on the text that the engine "
        "emitted; replay is one pass of the same checkpoint in transformers, float32. Where vLLM "
        "computes in float32 and rounds no activations, the two must be equal. llama.cpp rounds "
        "activations and counts last rounds in its own way, which is taken into account."
    )


def _environment(environment: dict[str, Any], command: str) -> Bullets:
    versions = environment.get("versions", {})
    facts = [f"{name}: {environment[name]}" for name in environment if name != "versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Bullets((f"Command: {command}", f"Versions: {shown}", *facts))


def _devices(row: Row) -> str:
    return ", ".join(device.upper() for device in row.kernels) or "none"


def _mark(row: Row, engine: str) -> str:
    return MARKS[row.engine(engine).level]


def _detail(tried: Tried) -> str:
    if tried.level != "loads":
        return MARKS[tried.level]
    distance = tried.logit_distance
    return tried.detail if distance is None else f"{tried.detail} ({_error(distance)})"


def _rate(interval: Interval) -> str:
    ends = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    return f"{percent(interval.value)} ({ends})"


def _points(interval: Interval) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(
        *(100 * value for value in (interval.value, interval.low, interval.high))
    )


def _megabytes(num_bytes: int, digits: int) -> str:
    return f"{num_bytes / 1e6:,.{digits}f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}"


def _error(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"
