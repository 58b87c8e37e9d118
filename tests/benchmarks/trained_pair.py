"""Train a pair worth the name on this machine, then do the whole job on it; docs/gpu.md.

python -m tests.benchmarks.trained_pair --work-dir runs/pair --output DIR [--minutes 9]

A target of 319M parameters and a draft of 42M, of this Python's own library as text: a tokenizer,
the target, its responses, the draft that learns from them; then each recipe's draft, the target's
greedy text and text at temperature 0.8, an evaluation for each recipe and text, and the live loop's
speed over all prompts beside what the speed equation predicts.

A call ends by its own clock, with exit code 3 while steps are missing; the same command goes on.
What it goes on from is in the work directory (some GB, so it is no output). DIR holds what is
found: pair.json, and a record for each evaluation. `--dry-run` does the same with tiny sizes on any
device: it proves that the command runs, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantdraft.common.files import write_json, write_text
from quantdraft.common.resume import read_kept
from quantdraft.errors import UndefinedMetricError
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import CaptureSettings
from quantdraft.record import RECORD_FILE, read_evaluation
from quantdraft.record.choices import Mode
from quantdraft.record.provenance import environment
from quantdraft.traffic.traffic import Sampling, read_traffic
from quantdraft.workflows.evaluate import evaluate
from tests.benchmarks.gpu_parts import TO_BE_CONTINUED, device_of, run_plainly
from tests.benchmarks.pair_live import lines, live_speed, rows
from tests.benchmarks.rounded_draft import quantize
from tests.evaluation_settings import evaluation_settings
from tests.tools.reference.corpus import read_corpus
from tests.tools.reference.lessons import Size
from tests.tools.reference.publish import excerpts, publish_models
from tests.tools.reference.train import TrainingRun, train_tokenizer, write_responses

TEMPERATURES = {"greedy": Sampling(), "0.8": Sampling(0.8)}
RECIPES = ("fp8", "int8", "int4", "int4-head8")
ALONE = "target"
MANY_TOKENS = 10**12  # the budget of a training is its time


@dataclass(frozen=True)
class Plan:
    """The sizes of the pair, its training and its job."""

    size: Size
    target_s: float
    draft_s: float
    sequences_per_step: int
    num_responses: int
    num_prompts: int
    num_tokens: int
    latency_s: float
    margin_s: float  # a step whose like was not timed yet begins only with so much time left
    corpus: Path | None = None  # None: this Python's library


FULL = Plan(
    Size(16384, 1024, 3072, 24, 16, 8, draft_layers=(0, 23)),
    target_s=900.0,
    draft_s=300.0,
    sequences_per_step=48,
    num_responses=1024,
    num_prompts=200,
    num_tokens=256,
    latency_s=8.0,
    margin_s=90.0,
)
DRY = Plan(
    Size(512, 128, 256, 2, 2, 1, draft_layers=(0,)),
    target_s=4.0,
    draft_s=2.0,
    sequences_per_step=2,
    num_responses=4,
    num_prompts=3,
    num_tokens=12,
    latency_s=0.2,
    margin_s=0.0,
    corpus=Path(sysconfig.get_paths()["stdlib"]) / "asyncio",
)


def main() -> int:
    """Go on with the steps while there is time, and write what is found; return the exit code."""
    options = parsed()
    job = Job(options, device_of(options.device, options.dry_run))
    is_done = job.do_steps()
    found = job.findings()
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "pair.json", found)
    print("\n".join(lines(found["speedups"])))
    return 0 if is_done else TO_BE_CONTINUED


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--target-minutes", type=float, help="of the target's training, 15")
    parser.add_argument("--draft-minutes", type=float, help="of the draft's training, 5")
    parser.add_argument("--prompts", type=int, help="200")
    parser.add_argument("--tokens", type=int, help="of a response, 256")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("-k", nargs="+", type=int, default=[2, 4], metavar="K")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan, with what the command line changes of it."""
    given = {
        "target_s": None if options.target_minutes is None else 60 * options.target_minutes,
        "draft_s": None if options.draft_minutes is None else 60 * options.draft_minutes,
        "num_prompts": options.prompts,
        "num_tokens": options.tokens,
    }
    known = {name: value for name, value in given.items() if value is not None}
    plan = DRY if options.dry_run else FULL
    return replace(plan, **known)


class Job:
    """The steps in their order, and which of them are done."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device, self.plan = options, device, plan_of(options)
        self.ends = time.monotonic() + 60 * options.minutes
        self.work: Path = options.work_dir
        self.work.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, float] = read_kept(self.work / "steps.json")
        self.live: dict[str, Any] = read_kept(self.work / "live.json")
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # of training; drafts are timed in bf16

    def steps(self) -> Iterator[tuple[str, Callable[[], bool | None]]]:
        """Every step by name; one that returns False is to be gone on with."""
        yield "tokenizer", self.make_tokenizer
        yield "train:target", partial(self.train, "target", self.plan.target_s)
        yield "responses", self.respond
        yield "train:draft", partial(self.train, "draft", self.plan.draft_s)
        yield "models", self.publish
        for recipe in self.options.recipes:
            yield f"quantize:{recipe}", partial(self.quantize, recipe)
        for name in TEMPERATURES:
            yield f"traffic:{name}", partial(self.capture, name)
        for name in TEMPERATURES:
            for recipe in self.options.recipes:
                yield f"evaluate:{name}:{recipe}", partial(self.evaluate, name, recipe)
            yield f"live:{name}:{ALONE}:0", partial(self.run_live, name, ALONE, 0)
            for arm in ("baseline", *self.options.recipes):
                for k in self.options.k:
                    yield f"live:{name}:{arm}:{k}", partial(self.run_live, name, arm, k)

    def do_steps(self) -> bool:
        """Do what is missing while there is time; True where nothing is missing any more."""
        is_first = True
        for name, act in self.steps():
            if name in self.done:
                continue
            left = self.ends - time.monotonic()
            if not is_first and left < self.expected_s(name):
                print(f"{name} is next; run the command again", flush=True)
                return False
            is_first, started = False, time.monotonic()
            if act() is False:
                print(f"{name} goes on; run the command again", flush=True)
                return False
            self.done[name] = time.monotonic() - started
            write_text(self.work / "steps.json", json.dumps(self.done))
            print(f"{name}: {self.done[name]:.0f} s", flush=True)
        return True

    def expected_s(self, name: str) -> float:
        """The longest step of its kind so far; a training stops by itself."""
        kind = name.partition(":")[0]
        if kind in ("train", "responses"):
            return self.plan.margin_s / 3
        known = [seconds for other, seconds in self.done.items() if other.startswith(kind)]
        return 1.2 * max(known, default=self.plan.margin_s)

    def make_tokenizer(self) -> None:
        """The tokenizer and the text in its tokens."""
        train_tokenizer(self.work, self.plan.size.vocab_size, self.plan.corpus)

    def train(self, name: str, seconds: float) -> bool:
        """One model, for so many seconds in all calls together; False where this call is over."""
        run = TrainingRun(
            name,
            self.work,
            MANY_TOKENS,
            self.device,
            self.plan.size,
            seconds,
            self.plan.sequences_per_step,
        )
        return run.train(self.ends - self.plan.margin_s / 3)

    def respond(self) -> bool:
        """The text that the draft learns from."""
        until = self.ends - self.plan.margin_s / 3
        number = self.plan.num_responses
        return write_responses(self.work, self.device, self.plan.size, until, number)

    def publish(self) -> None:
        """Both models as directories, and prompts of files that no model has seen."""
        publish_models(self.work, self.work / "models", ("target", "draft"), self.plan.size)
        unseen = [source for source in read_corpus(self.plan.corpus) if source.is_held_out]
        chooser = random.Random(0)
        prompts = excerpts(unseen, chooser, self.plan.num_prompts, self.plan.num_prompts)
        text = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
        write_text(self.work / "prompts.jsonl", text)

    def model(self, name: str) -> Path:
        """The directory of one model."""
        return self.work / "models" / ("draft" if name == "baseline" else name)

    def quantize(self, recipe: str) -> None:
        """The draft as a recipe makes it."""
        if not self.model(recipe).exists():
            quantize(recipe, self.model("draft"), self.model(recipe))

    def capture(self, name: str) -> None:
        """The target's text, at one temperature."""
        output = self.work / f"traffic-{name}.jsonl"
        if not output.exists():
            capture(
                CaptureSettings(
                    str(self.model("target")),
                    self.work / "prompts.jsonl",
                    output,
                    sampling=TEMPERATURES[name],
                    max_new_tokens=self.plan.num_tokens,
                    batch_size=16,
                    device=str(self.device),
                )
            )

    def evaluate(self, name: str, recipe: str) -> None:
        """One evaluation, as the command does it."""
        run = self.run_dir(name, recipe)
        if not (run / RECORD_FILE).exists():
            evaluate(
                evaluation_settings(
                    self.model(recipe),
                    baseline=str(self.model("draft")),
                    target=str(self.model("target")),
                    traffic_path=self.work / f"traffic-{name}.jsonl",
                    ks=tuple(self.options.k),
                    latency_seconds=self.plan.latency_s,
                    device=str(self.device),
                    output=run,
                )
            )

    def run_dir(self, name: str, recipe: str) -> Path:
        """The directory of one evaluation."""
        return self.work / "runs" / f"{recipe}-{name}"

    def run_live(self, name: str, arm: str, k: int) -> None:
        """The live loop over all prompts, with one draft at one k."""
        traffic = read_traffic(self.work / f"traffic-{name}.jsonl")
        draft = None if arm == ALONE else self.model(arm)
        try:
            modes = self.modes(name, arm)
            found = live_speed(self.model("target"), draft, traffic, k, self.device, modes)
        except UndefinedMetricError as error:
            found = {"undefined": str(error)}
        self.live[f"{name}:{arm}:{k}"] = found
        write_text(self.work / "live.json", json.dumps(self.live))

    def modes(self, name: str, arm: str) -> dict[str, Mode]:
        """The modes in which the evaluations timed the target and a draft, where they did."""
        found: dict[str, Mode] = {}
        for recipe in self.options.recipes:
            path = self.run_dir(name, recipe) / RECORD_FILE
            arms = read_evaluation(path).latency.arms if path.is_file() else {}
            own = "candidate" if arm == recipe else "baseline" if arm == "baseline" else None
            for role, timed in (("target", "target"), ("draft", own)):
                if timed in arms:
                    found.setdefault(role, arms[timed].mode)
        return found

    def findings(self) -> dict[str, Any]:
        """What all calls so far have found; the records of the evaluations go to the output."""
        speedups = []
        for name in TEMPERATURES:
            records = {}
            for recipe in self.options.recipes:
                path = self.run_dir(name, recipe) / RECORD_FILE
                if path.is_file():
                    records[recipe] = read_evaluation(path)
                    to = self.options.output / path.parent.name
                    to.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to / RECORD_FILE)
            speedups += rows(self.live, records, name, self.options.k)
        return {
            "environment": environment(str(self.device)),
            "is_dry_run": self.options.dry_run,
            "steps_s": self.done,
            "speedups": speedups,
            "live": self.live,
        }


if __name__ == "__main__":
    run_plainly(main)
