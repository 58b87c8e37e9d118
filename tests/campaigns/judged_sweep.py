"""Describe `sweep` for the fault campaign: two candidates, three replays, one comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.campaigns.judging import (
    Command,
    batches,
    checkpoint,
    complaints_of_checkpoint,
    complaints_of_run,
    evaluation,
    num_batches,
)

RECIPES = ("int8", "int4")


def sweep_command(work_dir: Path) -> Command:
    """Data-free recipes on the tiny draft; nothing is timed, so all of it is equal to the byte."""
    return Command(
        "sweep",
        f"sweep -d {work_dir}/draft -r {','.join(RECIPES)} -t {work_dir}/target "
        f"--traffic {work_dir}/traffic.jsonl -o {work_dir}/out/sweep -k 1,2,4 --no-latency "
        "--live-prompts 2 --threads 1",
        "sweep",
        complaints_of_sweep,
        lambda path: kept_of_sweep(path, work_dir / "traffic.jsonl"),
        swept,
        num_units=len(RECIPES) + (1 + len(RECIPES)) * num_batches(work_dir),
        is_finished=lambda path: (path / "comparison" / "report.html").exists(),
    )


def complaints_of_sweep(path: Path) -> list[str]:
    """Every JSON file can be read; candidates are whole; a run's record stands for a whole run."""
    complaints = complaints_of_run(path)
    for candidate in visible(path / "candidates"):
        complaints += complaints_of_checkpoint(candidate)
    for run in visible(path / "runs"):
        complaints += complaints_of_run(run)
    return complaints


def kept_of_sweep(path: Path, traffic: Path) -> dict[str, Any]:
    """Candidates, records with the times in them, finished stages, replayed batches."""
    kept: dict[str, Any] = {}
    for candidate in visible(path / "candidates"):
        kept[f"candidate {candidate.name}"] = checkpoint(candidate)
    for shared in visible(path / "shared"):
        kept |= batches(shared, "baseline", traffic)
    for run in visible(path / "runs"):
        for file in [*run.glob("evaluation.json"), *(run / "stages").glob("*.json")]:
            kept[f"{file.stem} of {run.name}"] = file.read_text()
        own = batches(run, "candidate", traffic)
        kept |= {f"{name} of {run.name}": values for name, values in own.items()}
    return kept


def swept(path: Path) -> Any:
    """The record to the byte, the candidates to the byte, the evaluations without their times."""
    candidates = {each.name: checkpoint(each) for each in visible(path / "candidates")}
    runs = {each.name: evaluation(each) for each in visible(path / "runs")}
    return {"record": (path / "sweep.json").read_text(), "candidates": candidates, "runs": runs}


def visible(directory: Path) -> list[Path]:
    """Directories in it whose names are not hidden."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
