"""Run the README's `evaluate` line in new processes and compare the answers.

python -m tests.campaigns.repeats [--runs 20] [--latency-seconds 5] [--work-dir runs/repeats]
    [--output reports/campaigns]

Half of the runs are quiet, half have a second process beside them that reads memory at random
times. Every run is `quantdraft evaluate` on one checkpoint and one traffic; nothing but the machine
differs. Asked:

- verdicts: is one question answered both go and no-go?
- coverage: in how many runs does an interval hold the mean of all runs, over the baseline and over
  the target alone?
- A/A: the control is the baseline loaded again, and so is the target's: how often would a check
  call a copy faster by the 2 % that a go asks for?
- power: the same intervals around a true 5 %: how often would it be a go?

Finished runs are kept, so a killed campaign goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import Evaluation, Interval, read_evaluation

LIMIT = Policy().min_speedup_over_baseline
TRUE_GAIN = 1.05
SETTINGS = ("quiet", "disturbed")
BUFFER_BYTES = 256 << 20
SPEEDS = {
    "baseline": "speedup_over_baseline",
    "autoregressive": "speedup_over_autoregressive",
}


def main() -> None:
    """Run what is not there yet, print the table, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--latency-seconds", type=float, default=5.0)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/repeats"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--disturb", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.disturb:
        disturb()
        return
    candidate, traffic = prepare(options.work_dir)
    found: dict[str, list[Evaluation]] = {}
    for setting in SETTINGS:
        with disturbed() if setting == "disturbed" else contextlib.nullcontext():
            found[setting] = [
                one_run(options, candidate, traffic, options.work_dir / f"{setting}-{number}")
                for number in range(options.runs)
            ]
    text = as_markdown(found, options)
    print(text)
    if options.output is not None:
        write(found, text, options)
    print(json.dumps(summary(found)))


def prepare(work_dir: Path) -> tuple[Path, Path]:
    """The README's traffic and checkpoint, made once."""
    target, draft = pair_dir() / "target", pair_dir() / "draft"
    traffic, candidate = work_dir / "traffic.jsonl", work_dir / "D-int4"
    if not traffic.exists():
        prompts = str(pair_dir() / "prompts.jsonl")
        command("capture", "--target", target, "--prompts", prompts, "--limit", 32, "-o", traffic)
    if not candidate.exists():
        command("apply", "--recipe", "int4", "--draft", draft, "-o", candidate)
    return candidate, traffic


def one_run(
    options: argparse.Namespace, candidate: Path, traffic: Path, output: Path
) -> Evaluation:
    """The record of one run in a process of its own."""
    record = output / "evaluation.json"
    if not record.exists():
        started = time.perf_counter()
        command(
            *("evaluate", candidate, "--target", pair_dir() / "target", "--traffic", traffic),
            *("-k", "1-8", "--latency-seconds", options.latency_seconds, "-o", output),
        )
        seconds = time.perf_counter() - started
        verdict = read_evaluation(record).verdict
        print(f"{output.name}: {seconds:.0f} s: {verdict.summary}", file=sys.stderr, flush=True)
    return read_evaluation(record)


def command(*arguments: object) -> None:
    """One quantdraft command; what it prints is dropped unless it fails."""
    line = [sys.executable, "-c", "from quantdraft.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed: {done.stderr[-2000:]}")


@contextlib.contextmanager
def disturbed() -> Iterator[None]:
    """A second process that reads memory at random times."""
    line = [sys.executable, "-m", "tests.campaigns.repeats", "--disturb"]
    process = subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def disturb() -> None:
    """Read a buffer larger than caches for up to a second, rest for up to two, until killed."""
    import numpy as np

    buffer, chance = np.ones(BUFFER_BYTES // 8), random.Random(0)
    while True:
        until = time.monotonic() + chance.random()
        while time.monotonic() < until:
            buffer.sum()
        time.sleep(2 * chance.random())


def summary(found: dict[str, list[Evaluation]]) -> dict[str, Any]:
    """The figures that are held to a limit, of all runs together and of each kind."""
    runs = [run for some in found.values() for run in some]
    return figures(runs) | {name: figures(some) for name, some in found.items()}


def figures(runs: Sequence[Evaluation]) -> dict[str, Any]:
    """Verdicts, coverage, A/A and power of some runs."""
    verdicts = Counter(run.verdict.decision for run in runs)
    copies = [
        interval
        for run in runs
        for interval in (
            run.operating_point.control_speedup,
            run.operating_point.target_control_speedup,
        )
        if interval is not None
    ]
    return {
        "runs": len(runs),
        "go": verdicts["go"],
        "no_go": verdicts["no-go"],
        "inconclusive": verdicts["inconclusive"],
        "alarms": dict(Counter(a.code for run in runs for a in run.verdict.alarms)),
        "retried": sum(bool(run.latency.retried) for run in runs),
        **{f"coverage_{name}": coverage(speeds(runs, name)) for name in SPEEDS},
        **{f"mean_{name}": mean(speeds(runs, name)) for name in SPEEDS},
        "half_width_baseline": half_width(speeds(runs, "baseline")),
        "half_width_autoregressive": half_width(speeds(runs, "autoregressive")),
        "false_go": share([copy.low >= LIMIT for copy in copies]),
        "power_5_percent": share([TRUE_GAIN * copy.low >= LIMIT for copy in copies]),
        "copies": len(copies),
    }


def speeds(runs: Sequence[Evaluation], name: str) -> list[Interval]:
    """Every run's interval of one speedup."""
    found = [getattr(run.operating_point, SPEEDS[name]) for run in runs]
    return [interval for interval in found if interval is not None]


def mean(intervals: Sequence[Interval]) -> float | None:
    """The geometric mean of the values."""
    if not intervals:
        return None
    return math.exp(sum(math.log(each.value) for each in intervals) / len(intervals))


def coverage(intervals: Sequence[Interval]) -> float | None:
    """The share of the intervals that hold the mean of all."""
    middle = mean(intervals)
    return share([middle is not None and each.low <= middle <= each.high for each in intervals])


def half_width(intervals: Sequence[Interval]) -> float | None:
    """The middle half-width, relative."""
    widths = sorted((each.high - each.low) / 2 / each.value for each in intervals)
    return widths[len(widths) // 2] if widths else None


def share(held: Sequence[bool]) -> float | None:
    """The share that is True; None of nothing."""
    return sum(held) / len(held) if held else None


def as_markdown(found: dict[str, list[Evaluation]], options: argparse.Namespace) -> str:
    """Tables for people: the figures of each kind, and a row a run."""
    kinds = {name: figures(some) for name, some in found.items()}
    kinds["all"] = figures([run for some in found.values() for run in some])
    names = [name for name in kinds["all"] if name != "alarms"]
    head = ["", *kinds]
    rows = [[name.replace("_", " "), *(_shown(kinds[k][name]) for k in kinds)] for name in names]
    environment = next(iter(found.values()))[0].provenance
    lines = [
        "# One question, asked again and again",
        f"`python -m tests.campaigns.repeats --runs {options.runs} --latency-seconds "
        f"{options.latency_seconds:g}`: the README's evaluate line (int4 on the embedded pair), "
        "each run a process of its own, on the same checkpoint and traffic. Disturbed: beside a "
        "process that reads memory at random times. "
        f"Processor: {environment.get('cpu') or environment.get('device')}, "
        f"{found['quiet'][0].latency.num_threads} threads.",
        table(head, rows),
        "`coverage`: the share of the runs whose 95 % interval holds the mean of all runs of the "
        "column. `false go`: of the copies (the baseline and the target, loaded again), those "
        f"that a check would call faster by {100 * (LIMIT - 1):.0f} %. `power 5 percent`: the same "
        "intervals around a true 5 %, how often it would be a go.",
        "## Every run",
        table(
            [
                "run",
                "verdict",
                "k",
                "over the baseline",
                "over the target alone",
                "control",
                "loads",
            ],
            [
                _row(f"{name} {n + 1}", run)
                for name, some in found.items()
                for n, run in enumerate(some)
            ],
        ),
    ]
    return "\n\n".join(lines) + "\n"


def _row(name: str, run: Evaluation) -> list[str]:
    point = run.operating_point
    return [
        name,
        run.verdict.decision,
        str(point.candidate_num_speculative_tokens),
        _interval(point.speedup_over_baseline),
        _interval(point.speedup_over_autoregressive),
        _interval(point.control_speedup),
        str(run.latency.num_loads),
    ]


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def write(found: dict[str, list[Evaluation]], text: str, options: argparse.Namespace) -> None:
    """repeats.json and .md."""
    from quantdraft.common.files import write_json, write_text

    rows = {
        name: [
            {
                "decision": run.verdict.decision,
                "alarms": [alarm.code for alarm in run.verdict.alarms],
                "k": run.operating_point.candidate_num_speculative_tokens,
                **{
                    each: _ends(getattr(run.operating_point, field))
                    for each, field in SPEEDS.items()
                },
                "control": _ends(run.operating_point.control_speedup),
                "target_control": _ends(run.operating_point.target_control_speedup),
                "loads": run.latency.num_loads,
                "load_average": run.latency.load_average,
            }
            for run in some
        ]
        for name, some in found.items()
    }
    write_json(options.output / "repeats.json", summary(found) | {"every_run": rows})
    write_text(options.output / "repeats.md", text)


def _ends(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.value, found.low, found.high]


if __name__ == "__main__":
    main()
