"""Measure how often intervals cover, a null draft gets a go, and how many prompts that takes.

python -m tests.campaigns.null_calibration [--runs 1000] [--seed 0] [--output reports/campaigns]

Simulated runs whose truth is known (`simulated`) go through the project's own comparison and
verdict. Four questions:

- coverage: in how many runs does a 95 % interval hold the truth?
- null: two equal drafts, timed with noise; how often is the verdict "go"? And how often where the
  true speedup is the policy's limit itself?
- power: a true speedup above the limit; how often is it a go, by number of prompts?
- settling: where the verdict is open, it names a number of prompts. At which number is the doubt
  really settled in half of the runs, and how far off is what was named?

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.judge.comparison.speeds import speed_point
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.statistics.settling import what_would_settle
from quantdraft.judge.verdict.alarms import measured_alarms
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.decision import decide
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import AcceptanceComparison, Interval, SpeedPoint
from tests.campaigns.simulated import K, World, drawn, make_world, with_speedup

POLICY = Policy()
LIMIT = POLICY.min_speedup_over_baseline
BLOCKS = 100
NUM_PROMPTS = (8, 16, 32, 64, 128, 256)
TRUE_SPEEDUPS = (1.04, 1.06, 1.10)
EQUAL, WORSE = (0.03, 0.03), (0.02, 0.06)  # flips of baseline and candidate


@dataclass(frozen=True, slots=True)
class Judged:
    """One simulated run."""

    acceptance: AcceptanceComparison
    speed: SpeedPoint
    decision: str


def main() -> None:
    """Print the tables, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    found = calibrate(options.runs, np.random.default_rng(options.seed))
    found |= {"runs": options.runs, "seed": options.seed, "limit": LIMIT}
    text = as_markdown(found)
    print(text)
    if options.output is not None:
        write(found, text, options.output)
    seconds = round(time.perf_counter() - started)
    print(json.dumps(summary(found) | {"seconds": seconds}))


def calibrate(runs: int, rng: np.random.Generator) -> dict[str, Any]:
    """All four answers, as plain data."""
    equal, worse = make_world(rng, EQUAL), make_world(rng, WORSE)
    at_limit = with_speedup(worse, LIMIT)
    found: dict[str, Any] = {"coverage": [], "null": [], "power": []}
    for num_prompts in (8, 16, 32, 128):
        judged = many(equal, num_prompts, runs, rng)
        found["coverage"].append(_coverage(equal, judged, num_prompts, "equal drafts"))
        found["null"].append(_go_share(judged, num_prompts, 1.0))
        judged = many(at_limit, num_prompts, runs, rng)
        found["coverage"].append(_coverage(at_limit, judged, num_prompts, "a worse, faster draft"))
        found["null"].append(_go_share(judged, num_prompts, LIMIT))
    for speedup in TRUE_SPEEDUPS:
        world = with_speedup(worse, speedup)
        for num_prompts in NUM_PROMPTS:
            judged = many(world, num_prompts, max(runs // 8, 50), rng)
            found["power"].append(_go_share(judged, num_prompts, speedup))
    some = max(runs // 4, 50)
    found["settling"] = [settling(with_speedup(worse, s), some, rng) for s in (1.03, 1.04)]
    return found


def many(
    world: World, num_prompts: int, runs: int, rng: np.random.Generator, num_blocks: int = BLOCKS
) -> list[Judged]:
    """Independent runs; the seed of the resampling changes now and then, as it costs time."""
    return [judge(world, num_prompts, num_blocks, rng, run // 40) for run in range(runs)]


def judge(
    world: World, num_prompts: int, num_blocks: int, rng: np.random.Generator, seed: int = 0
) -> Judged:
    """One run through comparison and verdict, as `evaluate` does it at one k."""
    baseline, candidate, latency = drawn(world, num_prompts, num_blocks, rng)
    bootstrap = Bootstrap(seed=seed)
    acceptance = compare_acceptance(baseline, candidate, K, bootstrap)
    speed = speed_point(
        baseline, candidate, latency, baseline_k=K, candidate_k=K, bootstrap=bootstrap
    )
    evidence = Evidence(
        candidate_name="candidate",
        baseline_name="full-precision draft",
        is_identity=False,
        acceptance=acceptance,
        speed=speed,
        num_prompts=num_prompts,
        num_timings=num_blocks,
        alarms=measured_alarms(acceptance, speed.control_speedup, (), POLICY),
    )
    return Judged(acceptance, speed, decide(evidence, POLICY).decision)


def _coverage(world: World, judged: list[Judged], num_prompts: int, what: str) -> dict[str, Any]:
    truths: dict[str, tuple[float, list[Interval | None]]] = {
        "loss": (world.loss, [j.acceptance.acceptance_rate_loss for j in judged]),
        "length_ratio": (world.length_ratio, [j.acceptance.length_ratio for j in judged]),
        "over_baseline": (world.speedup, [j.speed.speedup_over_baseline for j in judged]),
        "over_autoregressive": (
            world.over_autoregressive,
            [j.speed.speedup_over_autoregressive for j in judged],
        ),
        "control": (1.0, [j.speed.control_speedup for j in judged]),
    }
    covered = {
        name: float(np.mean([i is not None and i.low <= truth <= i.high for i in intervals]))
        for name, (truth, intervals) in truths.items()
    }
    return {"what": what, "num_prompts": num_prompts, **covered}


def _go_share(judged: list[Judged], num_prompts: int, speedup: float) -> dict[str, Any]:
    decisions = [each.decision for each in judged]
    shares = {name: decisions.count(name) / len(judged) for name in ("go", "no-go", "inconclusive")}
    return {"true_speedup": speedup, "num_prompts": num_prompts, **shares}


def settling(world: World, runs: int, rng: np.random.Generator) -> dict[str, Any]:
    """The number of prompts that is named, against the one at which half of the runs are settled.

    Blocks are many, so that prompts decide. What a run names rests on its own estimate, which is
    as uncertain as the verdict it is about: so the median of all runs is held against the truth,
    and the spread is given beside it. `followed`: of the open runs, how many are settled by new
    runs of the number that each named.
    """
    num_blocks, first = 400, 32
    judged = many(world, first, runs, rng, num_blocks)
    named = np.array([_named(each, first) for each in judged])
    is_open = np.array([_is_open(each) for each in judged])
    settled_at = _half_settled(world, first, max(runs // 2, 50), rng, num_blocks)
    some = named[is_open & (named < 4096)][:60].astype(int)
    again = [judge(world, int(n), num_blocks, rng) for n in some]
    return {
        "true_speedup": world.speedup,
        "num_prompts": first,
        "open": float(is_open.mean()),
        "named_median": float(np.median(named)),
        "named_quartiles": np.quantile(named[np.isfinite(named)], [0.25, 0.75]).tolist(),
        "half_settled_at": settled_at,
        "factor": float(np.median(named)) / settled_at,
        "followed": float(np.mean([not _is_open(each) for each in again])) if again else None,
    }


def _named(judged: Judged, num_prompts: int) -> float:
    """What the verdict's arithmetic says of a run, open or not; infinite where it cannot tell."""
    speed = judged.speed.speedup_over_baseline
    assert speed is not None
    distance = abs(speed.value - LIMIT) / speed.value
    width = (speed.high - speed.low) / 2 / speed.value
    if distance == 0:
        return float("inf")
    if width <= distance:  # settled: the same formula, which then asks for fewer than there are
        return num_prompts * (width / distance) ** 2
    needed = what_would_settle(speed, judged.acceptance.length_ratio, LIMIT, num_prompts, 400)
    return float("inf") if needed is None or needed.num_prompts is None else needed.num_prompts


def _is_open(judged: Judged) -> bool:
    speed = judged.speed.speedup_over_baseline
    assert speed is not None
    return speed.low < LIMIT <= speed.high


def _half_settled(
    world: World, first: int, runs: int, rng: np.random.Generator, num_blocks: int
) -> float:
    """Prompts at which half of the runs are settled, between two doublings by interpolation."""
    num_prompts, before = max(first // 4, 8), 0.0
    while num_prompts <= 4096:
        judged = many(world, num_prompts, runs, rng, num_blocks)
        share = float(np.mean([not _is_open(each) for each in judged]))
        if share >= 0.5:
            step = 1.0 if share == before else (0.5 - before) / (share - before)
            return float(num_prompts / 2 * 2**step)
        num_prompts, before = num_prompts * 2, share
    return float("inf")


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that are held to a limit."""
    names = ("loss", "length_ratio", "over_baseline", "over_autoregressive", "control")
    few = [row[name] for row in found["coverage"] for name in names if row["num_prompts"] < 16]
    shares = [row[name] for row in found["coverage"] for name in names if row["num_prompts"] >= 16]
    null = [row for row in found["null"] if row["true_speedup"] == 1.0]
    at_limit = [row for row in found["null"] if row["true_speedup"] == LIMIT]
    return {
        "coverage_min": min(shares),
        "coverage_max": max(shares),
        "coverage_min_8_prompts": min(few),
        "false_go": max(row["go"] for row in null),
        "false_go_at_limit": max(row["go"] for row in at_limit),
        "settling_factors": [round(row["factor"], 2) for row in found["settling"]],
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The same for people."""
    parts = [
        "# Intervals, null drafts, power",
        f"`python -m tests.campaigns.null_calibration --runs {found['runs']} --seed "
        f"{found['seed']}`: simulated runs of known truth through the project's own comparison and "
        f"verdict. {BLOCKS} timing blocks a run, k = {K}, limit {LIMIT}.",
        "## Coverage of the 95 % intervals",
        _table(found["coverage"]),
        "## Verdicts where there is nothing to be had",
        "A true speedup of 1.00: two equal drafts. Of the limit itself: a go is a matter of the "
        "interval's lower end alone, 2.5 % by construction.",
        _table(found["null"]),
        "## Power: share of goes by number of prompts",
        "![share of goes by number of prompts](null_calibration.svg)",
        _table(found["power"]),
        "## How many more prompts",
        "`named_median`: the number that the verdict's arithmetic names, median of the runs at "
        "`num_prompts`; `half_settled_at`: the number at which half of the runs are settled; "
        "`factor`: their ratio. One run's own number rests on its own estimate and strays more "
        "(quartiles). `followed`: of the open runs that were done again with the number that each "
        "had named, the share that was settled.",
        _table(found["settling"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[[_shown(row[name]) for name in head] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_shown(each) for each in value)
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def power_chart(found: dict[str, Any]) -> dict[str, Any]:
    """A line for each true speedup, the null ones among them."""
    import altair as alt

    from quantdraft.report.charts.style import finish, inline, name_scale

    rows = [
        {"name": f"{row['true_speedup']:.2f}×", "prompts": row["num_prompts"], "go": row["go"]}
        for row in (*found["null"], *found["power"])
    ]
    names = sorted({str(row["name"]) for row in rows})
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("prompts:Q", title="prompts", scale=alt.Scale(type="log", base=2)),
        y=alt.Y("go:Q", title="share of goes", axis=alt.Axis(format="%")),
        color=alt.Color("name:N", scale=name_scale(names), legend=alt.Legend(title="true speedup")),
    )
    drawn: dict[str, Any] = finish(base.mark_line() + base.mark_point(filled=True), height=280)
    return drawn


def write(found: dict[str, Any], text: str, output: Path) -> None:
    """null_calibration.json and .md."""
    from quantdraft.common.files import write_json, write_text
    from quantdraft.report.charts.drawing import svg_file

    write_json(output / "null_calibration.json", summary(found) | found)
    write_text(output / "null_calibration.md", text)
    title = "Share of verdicts that are a go, by number of prompts"
    write_text(output / "null_calibration.svg", svg_file(power_chart(found), title))


if __name__ == "__main__":
    main()
