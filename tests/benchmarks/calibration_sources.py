"""Compare calibration data: the target's responses, random tokens, random text, and none.

python -m tests.benchmarks.calibration_sources [--seeds 5] [--num-tokens 256] [--work-dir D]
    [--output reports/calibration]

`int4-gptq` of the embedded draft, calibrated on each source with several seeds, against `int4`
(rounding to nearest, no data). A seed chooses half of the calibration prompts, or draws random
samples anew. All are replayed on the same held-out prompts, greedy, k = 4, which no calibration
saw. A source's rounds are the mean over its seeds, so that a pair's interval is of the prompts; the
seeds' own spread stands beside it. The captured traffic is kept in the work directory and used
again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.common.files import write_json, write_text
from quantdraft.judge.acceptance import Replayed, replay_rounds
from quantdraft.judge.comparison.lengths import compare_acceptance
from quantdraft.measure.capture import capture
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import Calibration, Recipe, load_recipe
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic

K = 4
CALIBRATION_TOKENS = 128
SAMPLE_TOKENS = 240  # what prompt and response come to: no source sees more than the others
NUM_SAMPLES = 32  # of 64, so that seeds differ
ARMS = {
    "bf16": "the draft as it is",
    "rtn": "`int4`: rounding to nearest, no data",
    "traffic": "`int4-gptq` on the target's own responses",
    "random-tokens": "`int4-gptq` on token ids drawn evenly from the vocabulary",
    "random-text": "`int4-gptq` on words of random letters, tokenized",
}
SOURCES = ("traffic", "random-tokens", "random-text")


def captured(prompts: str, num_tokens: int, work_dir: Path) -> Path:
    """The target's greedy responses to one of the pair's prompt files, made once."""
    path = work_dir / f"{prompts}-{num_tokens}.jsonl"
    if not path.exists():
        capture(
            CaptureSettings(
                str(pair_dir() / "target"),
                pair_dir() / f"{prompts}.jsonl",
                path,
                sampling=Sampling(),
                max_new_tokens=num_tokens,
                batch_size=16,
            )
        )
    return path


def gptq(source: str, seed: int) -> Recipe:
    """`int4-gptq` with a seeded choice of NUM_SAMPLES samples."""
    settings = Calibration(
        source="file" if source == "random-text" else "traffic",
        num_samples=NUM_SAMPLES,
        max_seq_length=SAMPLE_TOKENS,
        seed=seed,
    )
    return load_recipe("int4-gptq").model_copy(update={"calibration": settings})


def samples_of(source: str, seed: int, traffic: Path, work_dir: Path) -> Path:
    """The file to calibrate on: the traffic, or random samples drawn with the seed."""
    if source == "traffic":
        return traffic
    vocab_size = int(open_checkpoint(pair_dir() / "draft").text_config["vocab_size"])
    rng, path = random.Random(seed), work_dir / f"{source}-{seed}.jsonl"
    is_text = source == "random-text"
    lines = [random_text(rng) if is_text else random_ids(rng, vocab_size) for _ in range(64)]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def random_ids(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """A log's line of token ids without sense; one is the prompt."""
    ids = [rng.randrange(vocab_size) for _ in range(SAMPLE_TOKENS)]
    return {"prompt_token_ids": ids[:1], "response_token_ids": ids[1:]}


def random_text(rng: random.Random) -> dict[str, Any]:
    """Words of 2 to 9 random letters, a token each or more; what is too long will be cut."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(SAMPLE_TOKENS))
    return {"text": " ".join(words)}


@dataclass(frozen=True, slots=True)
class Run:
    """One draft on the held-out prompts: its rounds at K, and which tokens it predicts."""

    rounds: Replayed
    is_predicted: NDArray[np.bool_]  # (tokens,)

    @property
    def rate(self) -> float:
        """Accepted / proposed draft tokens."""
        return self.rounds.counts(K).acceptance_rate


def replayed(checkpoint: Path, traffic: Traffic) -> Run:
    """One teacher-forced pass over the held-out prompts."""
    model = load_model(checkpoint, torch.float32, torch.device("cpu"))
    ids = [response.prompt_id for response in traffic.responses]
    keep = acceptance_probabilities(model, traffic, "greedy")
    return Run(replay_rounds(ids, keep, [K]), np.concatenate(keep) > 0)


def mean_over_seeds(runs: Sequence[Run]) -> Replayed:
    """Each prompt's expected rounds when the seed is any of these."""
    return replace(
        runs[0].rounds,
        num_drafts=np.mean([run.rounds.num_drafts for run in runs], axis=0),
        num_accepted_per_pos=tuple(
            np.mean([run.rounds.num_accepted_per_pos for run in runs], axis=0)  # one k
        ),
    )


def measure(
    seeds: int, held_out: Traffic, calibration: Path, work_dir: Path
) -> tuple[dict[str, list[Run]], dict[str, int]]:
    """Every arm's runs, one a seed (`bf16` and `rtn` have none and one run), and tokens seen."""
    draft = pair_dir() / "draft"
    apply(load_recipe("int4"), str(draft), work_dir / "rtn", device="cpu", force=True)
    runs = {"bf16": [replayed(draft, held_out)], "rtn": [replayed(work_dir / "rtn", held_out)]}
    num_tokens = dict.fromkeys(runs, 0)
    for source in SOURCES:
        runs[source] = []
        for seed in range(seeds):
            path, output = samples_of(source, seed, calibration, work_dir), work_dir / source
            made = apply(
                gptq(source, seed),
                str(draft),
                output,
                calibration=path,
                device="cpu",
                force=True,
            )
            assert made.manifest is not None
            num_tokens[source] = made.manifest["calibration"]["num_tokens"]
            runs[source].append(replayed(output, held_out))
            print(f"{source} seed {seed}: {runs[source][-1].rate:.4f}", flush=True)
    return runs, num_tokens


def judged(runs: dict[str, list[Run]], num_tokens: dict[str, int]) -> dict[str, Any]:
    """Rates of every arm, and of every pair the difference with its interval and seed noise."""
    rates = {name: [run.rate for run in of] for name, of in runs.items()}
    pooled = {name: mean_over_seeds(of) for name, of in runs.items()}
    own = runs["bf16"][0].is_predicted
    return {
        "arms": {
            name: {
                "num_calibration_tokens": num_tokens[name],  # of its last seed
                "rate": pooled[name].counts(K).acceptance_rate,
                "rate_of_seed": rates[name],
                # tokens that the draft as it is predicts and this one does not, or the reverse
                "changed_share": float(
                    np.mean([np.mean(r.is_predicted != own) for r in runs[name]])
                ),
                "seed_deviation": statistics.stdev(rates[name]) if len(rates[name]) > 1 else None,
            }
            for name in runs
        },
        "pairs": [pair(a, b, pooled, rates) for a, b in combinations(runs, 2)],
    }


def pair(
    first: str, second: str, pooled: dict[str, Replayed], rates: dict[str, list[float]]
) -> dict[str, Any]:
    """Acceptance rate of the second minus the first's: positive means that the second is better."""
    loss = compare_acceptance(pooled[second], pooled[first], K).acceptance_rate_loss
    noise = math.sqrt(sum(_squared_error(rates[name]) for name in (first, second)))
    return {
        "first": first,
        "second": second,
        "gain": asdict(loss),
        "seed_error": noise,  # standard error of the difference of the seeds' means
        "is_beyond_prompts": loss.low > 0 or loss.high < 0,
        "is_beyond_seeds": abs(loss.value) > 2 * noise,
    }


def _squared_error(rates: list[float]) -> float:
    return statistics.variance(rates) / len(rates) if len(rates) > 1 else 0.0


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"| {name} | {ARMS[name]} | {arm['rate']:.4f} | {arm['changed_share']:.2%} | "
        + (
            ", ".join(f"{rate:.4f}" for rate in arm["rate_of_seed"])
            if arm["seed_deviation"]
            else ""
        )
        + f" | {'' if arm['seed_deviation'] is None else format(arm['seed_deviation'], '.4f')} |"
        for name, arm in result["arms"].items()
    ]
    pairs = [
        f"| {each['second']} over {each['first']} | {each['gain']['value']:+.4f} | "
        f"{each['gain']['low']:+.4f} to {each['gain']['high']:+.4f} | {each['seed_error']:.4f} | "
        f"{_said(each)} |"
        for each in result["pairs"]
    ]
    return "\n".join(
        [
            "# INT4 calibrated on what?",
            "",
            f"The embedded pair, greedy, k = {K}, {result['num_prompts']} held-out prompts, "
            f"{result['num_tokens']} tokens in rounds. Each calibrated arm: {result['num_seeds']} "
            f"seeds, {NUM_SAMPLES} samples a seed of at most {SAMPLE_TOKENS} tokens.",
            "",
            "| arm | what it is | acceptance rate | predictions changed | seeds | deviation |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "*Predictions changed*: tokens of the text that the draft as it is predicts and this "
            "one does not, or the reverse; what rounding did, whichever way it went. *Deviation*: "
            "standard deviation of the seeds' rates.",
            "",
            "Differences of acceptance rates, paired by prompt, 95 % intervals over prompts; the "
            "standard error over seeds stands apart. A difference counts when its interval leaves "
            "zero out and it is more than twice the seeds' error.",
            "",
            "| pair | difference | interval | seeds' error | |",
            "|---|---|---|---|---|",
            *pairs,
            "",
            f"Made by `{result['command']}`.",
            "",
        ]
    )


def _said(each: dict[str, Any]) -> str:
    if not (each["is_beyond_prompts"] and each["is_beyond_seeds"]):
        return "not told apart"
    return "better" if each["gain"]["value"] > 0 else "worse"


def main() -> None:
    """Measure, print a line per run, write the report, print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work_dir = options.work_dir or Path(name)
        work_dir.mkdir(parents=True, exist_ok=True)
        calibration = captured("calibration", CALIBRATION_TOKENS, work_dir)
        held_out = read_traffic(captured("prompts", options.num_tokens, work_dir))
        runs, num_tokens = measure(options.seeds, held_out, calibration, work_dir)
    result = {
        "command": "python -m tests.benchmarks.calibration_sources " + shlex.join(sys.argv[1:]),
        "num_speculative_tokens": K,
        "num_prompts": len(held_out.responses),
        "num_tokens": int(runs["bf16"][0].rounds.num_tokens.sum()),
        "num_seeds": options.seeds,
        **judged(runs, num_tokens),
    }
    if options.output:
        write_json(options.output / "calibration.json", result)
        write_text(options.output / "report.md", page(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
