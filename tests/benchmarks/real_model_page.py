"""The page of a real model's recipes: acceptance, by task, step times, and vLLM's counters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantdraft.record import RECORD_FILE, Evaluation, Interval, read_evaluation
from quantdraft.record.wording import UNDEFINED, length, metric, valued
from quantdraft.report import write_document
from quantdraft.report.blocks import Document, Paragraph, Section, Table

COUNTERS = "counters.json"
K = 4
STEP = "Draft step, times faster"


def runs_of(output: Path) -> list[Evaluation]:
    """The records, those that keep most first."""
    found = [read_evaluation(path) for path in sorted(output.glob(f"*/{RECORD_FILE}"))]
    return sorted(found, key=_kept, reverse=True)


def counters_of(output: Path) -> dict[str, Any]:
    """What vLLM counted; empty where it was not asked."""
    path = output / COUNTERS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def draw_page(output: Path) -> None:
    """Write the page from the records and counters beside it."""
    write_document(document(runs_of(output), counters_of(output)), output)


def document(runs: Sequence[Evaluation], counted: dict[str, Any]) -> Document:
    """What every recipe costs the model, by task, and vLLM's count of the same rounds."""
    replayed = runs[0].prompts
    num_tokens = sum(prompt.num_tokens for prompt in replayed)
    model = runs[0].provenance["target"]["name"]
    intro = (
        f"{model} as its own draft: 4-bit blocks of a GGUF file, dequantized, in bfloat16. "
        f"{len(replayed)} prompts of Spec-Bench, {num_tokens:,} tokens that the model "
        "answered greedily. Of the float draft's proposals all are accepted but those behind the "
        "end of a response; what a recipe loses is what its rounding costs a real model of this "
        "size. Target and draft are one model, so speculation itself cannot pay here."
    )
    sections = (
        Section("What a recipe costs", (Paragraph(intro), _costs(runs))),
        Section("By task", (_tasks(runs),)),
        Section("vLLM's counters", _counters(counted)),
    )
    return Document(
        "What quantizing costs a real model",
        f"{model} on Spec-Bench",
        None,
        (),
        sections,
    )


def _kept(run: Evaluation) -> float:
    at = run.acceptance_at(K)
    return 0.0 if at is None else at.candidate_rate.value


def _step_speedup(run: Evaluation) -> Interval | None:
    candidate = run.latency.arms.get("candidate")
    return None if candidate is None else candidate.step_speedup


def _costs(runs: Sequence[Evaluation]) -> Table:
    is_timed = any(_step_speedup(run) is not None for run in runs)
    rows = []
    for run in runs:
        at = run.acceptance_at(K)
        assert at is not None
        cells = {
            "Recipe": run.name,
            "Acceptance": valued(at.candidate_rate, "rate"),
            "Loss": valued(at.acceptance_rate_loss, "loss"),
            "Tokens a round": length(at.candidate_length.value),
        }
        rows.append(cells | ({STEP: valued(_step_speedup(run), "speedup")} if is_timed else {}))
    caption = f"k = {K}, greedy; 95 % intervals resample prompts."
    if not is_timed:
        caption += f" Step times are {UNDEFINED}: they were not measured (--no-latency)."
    return Table.of(rows, range(1, len(rows[0])), caption=caption)


def _tasks(runs: Sequence[Evaluation]) -> Table:
    rows = []
    for run in runs:
        lost = {part.name: part.conditional_acceptance_loss for part in run.by_domain}
        cells = {
            name: UNDEFINED if x is None else metric(x.value, "loss") for name, x in lost.items()
        }
        rows.append({"Recipe": run.name} | cells)
    names = range(1, len(rows[0]))
    caption = (
        "Of the tokens that the draft was asked for, how much less of them is kept, in points."
    )
    return Table.of(rows, names, caption=caption)


def _counters(counted: dict[str, Any]) -> tuple[Paragraph | Table, ...]:
    if not counted:
        return (Paragraph(f"Rounds in vLLM are {UNDEFINED}: they were not counted."),)
    rows = []
    for name, engine in counted["rounds_engine"].items():
        replay = counted["rounds_replay"][name]
        is_equal = [round(x) for x in replay] == list(engine)
        expected = "equal" if counted["is_exact"][name] else "near-ties may differ"
        rows.append(
            {
                "Draft": name,
                "Float type": counted["dtype"][name],
                "Rounds counted": f"{sum(engine):,}",
                "Rounds replayed": f"{round(sum(replay)):,}",
                "Expected": expected,
                "Prompt by prompt": "equal" if is_equal else "not equal",
            }
        )
    said = f"vLLM {counted['version']} on {counted['device']}, k = {K}, one request at a time."
    refused = [f"{name}: {why.rstrip('.')}." for name, why in counted["undefined"].items()]
    return (Paragraph(" ".join((said, *refused))), Table.of(rows, (2, 3)))
