"""Walk every architecture of the installed transformers through the commands, on tiny models.

python -m tests.campaigns.architectures --output DIR [--only a,b] [--again] [--limit 90]

All of its causal language models, and its models of text and images. Each is a child process with a
time limit. A cell of the table is "right" (held against one prompt at a time, in float32, without a
cache, see tests/matrix.py), "refused" (in one line, by `check` already, in the same words), or
a FAULT: a traceback, a wrong number, a refusal that `check` did not say, no end within the limit.

What DIR/architectures.json holds is not walked again, but with --again, or where --only names it.
The last line is one JSON object: architectures, and cells by their outcome.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_json, write_text
from quantdraft.errors import QuantDraftError
from tests.campaigns.tiny_models import save_tiny_pair
from tests.matrix import Bench, outcome

COMMANDS = ("check", "ledger", "capture", "replay", "live loop", "apply int4", "apply fp8")
FAULT = "FAULT"
LIMIT_S = 90.0
NO_END = "died, or no end within"
MAX_STUCK = 2  # commands of an architecture; no further one is tried
Cells = dict[str, str]  # by command


def main() -> None:
    """Walk, write the record after each architecture, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="Model types, by commas; walked in any case.")
    parser.add_argument("--again", action="store_true", help="Walk what the record has, too.")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="Seconds a process.")
    options = parser.parse_args()
    path = options.output / "architectures.json"
    found: dict[str, Cells] = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    only = options.only.split(",") if options.only else []
    import_all()
    for name in only or model_types():
        if name in found and not (options.again or only):
            continue
        found[name] = walk(name, options.limit)
        for command, cell in found[name].items():
            if cell.startswith(FAULT):
                print(f"{name}, {command}: {cell}", flush=True)
        write(found, options.output)
    record = write(found, options.output)
    print(json.dumps(record["counts"]))
    if record["counts"][FAULT]:
        sys.exit(1)


def import_all() -> None:
    """Import what every child needs, once."""
    import compressed_tensors  # noqa: F401
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin  # noqa: F401

    transformers.logging.set_verbosity_error()


@cache
def model_types() -> list[str]:
    """Return the model types of transformers' causal language models, then those with images."""
    from transformers.models.auto import modeling_auto

    return list(
        dict.fromkeys(
            [
                *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            ]
        )
    )


def walk(model_type: str, limit_s: float) -> Cells:
    """Return the cells of an architecture; a command that does not end is left, and the rest go on.

    limit_s: of one process
    """
    cells: Cells = {}
    directory = Path(tempfile.mkdtemp(prefix="architecture."))
    try:
        while left := [each for each in COMMANDS if each not in cells]:
            reached = _walk_in_a_child(model_type, directory, left, limit_s)
            cells |= reached
            if len(reached) < len(left):
                stuck = left[len(reached)]
                cells[stuck] = f"{FAULT}: {NO_END} {limit_s:.0f} s"
            if sum(NO_END in cell for cell in cells.values()) == MAX_STUCK:
                return dict.fromkeys(COMMANDS, f"{FAULT}: not tried") | cells
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return cells


def _walk_in_a_child(
    model_type: str, directory: Path, commands: Sequence[str], limit_s: float
) -> Cells:
    """Return the cells of the commands that ended."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_walk, args=(model_type, directory, commands, theirs))
    child.start()
    theirs.close()
    child.join(limit_s)
    if child.is_alive():
        child.kill()
        child.join()
    cells: Cells = {}
    with suppress(EOFError):
        while ours.poll():
            command, cell = ours.recv()
            cells[command] = cell
    return cells


def _walk(model_type: str, directory: Path, commands: Sequence[str], answers: Connection) -> None:
    """Write the pair where it is not there yet, and answer a cell a command."""
    if not (directory / "draft").is_dir():
        save_tiny_pair(model_type, directory)
    bench = Bench(directory / "target", directory / "draft")
    for command in commands:
        answers.send((command, _cell(command, bench)))


def _cell(command: str, bench: Bench) -> str:
    try:
        found = outcome(command, bench)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{FAULT}: {type(error).__name__}: {first}"[:400]
    words, said = _plain(found, bench), _said_by_check(bench)
    if not words.startswith("refused: ") or command == "check":
        return words
    listed = said == words or words.removeprefix("refused: ") in _reasons(bench)
    return words if listed else f"{FAULT}: `check` does not say: {words}"


def _plain(text: str, bench: Bench) -> str:
    for path in (bench.target_path, bench.draft_path):
        text = text.replace(f"'{path}'", "it")
    return text


def _said_by_check(bench: Bench) -> str:
    try:
        found = bench.preflight
    except QuantDraftError as error:
        return _plain(f"refused: {error}", bench)
    return "right" if found.is_compatible else "not compatible"


def _reasons(bench: Bench) -> list[str]:
    """Return why `check` says that recipes cannot be applied."""
    with suppress(QuantDraftError):
        return [_plain(each.reason or "", bench) for each in bench.preflight.outlooks]
    return []


def write(cells: dict[str, Cells], output: Path) -> dict[str, Any]:
    """Write architectures.json and architectures.md; return the record."""
    import transformers

    ordered = {name: cells[name] for name in model_types() if name in cells}
    kinds = Counter(cell.partition(":")[0] for each in ordered.values() for cell in each.values())
    counts = {"architectures": len(ordered), "cells": sum(kinds.values())}
    counts |= {kind: kinds[kind] for kind in ("right", "refused", FAULT)}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "transformers": transformers.__version__,
        "counts": counts,
        "cells": ordered,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "architectures.json", record)
    write_text(output / "architectures.md", _page(record))
    return record


def _page(record: dict[str, Any]) -> str:
    counts, cells = record["counts"], record["cells"]
    right = sum(set(each.values()) == {"right"} for each in cells.values())
    refused = sum(each["check"].startswith("refused") for each in cells.values())
    lines = [
        "# Architectures",
        "",
        f"`python -m tests.campaigns.architectures --output reports/campaigns`, {record['date']}, "
        f"transformers {record['transformers']}: {counts['architectures']} architectures, of these "
        f"{right} right in every command and {refused} refused by `check`, and in its words by "
        f"every other command that runs a model. Of {counts['cells']} cells {counts['right']} are "
        f"right, {counts['refused']} refused, {counts[FAULT]} faults.",
        "",
        "Tiny models with random weights, in float32. Right: capture gives the texts of one prompt "
        "at a time without a cache; replay",
        "in a batch is replay alone; the live loop writes the target's text in the rounds that "
        "replay counts, and after `apply` the",
        "quantized draft does so too. A refusal is one line, which `check` says first.",
        "",
        f"| model type | {' | '.join(COMMANDS)} |",
        f"|{'---|' * (len(COMMANDS) + 1)}",
    ]
    for name, row in cells.items():
        lines.append(f"| {name} | {' | '.join(row[c].partition(':')[0] for c in COMMANDS)} |")
    lines += ["", "## Refused, and why", ""]
    why: dict[str, list[str]] = {}
    for name, row in cells.items():
        for command in COMMANDS:
            kind, _, words = row[command].partition(": ")
            if kind == "right":
                continue
            where = (
                name
                if kind == "refused" and row["check"] == row[command]
                else (f"{name} ({command})")
            )
            words = words if kind == "refused" else row[command]
            names = why.setdefault(words.replace(f" {name} ", " … "), [])
            if where not in names:
                names.append(where)
    lines += [f"- {', '.join(names)}: {words}" for words, names in why.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
