"""Compare the live loop with transformers' assisted generation in tokens per second.

python -m tests.benchmarks.live_loop [--num-prompts 8] [--num-tokens 128] [-k 4] [--repeats 3]

The embedded pair, greedy, batch 1, the same k, the same text; both run every prompt in turns, in
one process with the same threads. Prefill is inside both times. All models compute in float32 on
both sides. The last line is one JSON object with `ratio`: tokens per second of the live loop over
assisted generation's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import NativeModel, load_native
from quantdraft.engines.native.session import Session, live_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.measure.capture import capture
from quantdraft.measure.settings import CaptureSettings
from quantdraft.measure.speculation import speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.traffic.traffic import Response, Sampling, Traffic
from tests.benchmarks.replay_vs_assisted import assisted

CPU = torch.device("cpu")


def captured(num_prompts: int, num_tokens: int) -> Traffic:
    """The target's greedy text, which both sides have to reproduce."""
    with tempfile.TemporaryDirectory() as directory:
        return capture(
            CaptureSettings(
                str(pair_dir() / "target"),
                pair_dir() / "prompts.jsonl",
                Path(directory) / "traffic.jsonl",
                sampling=Sampling(),
                max_new_tokens=num_tokens,
                limit=num_prompts,
            )
        )


def live(pair: tuple[NativeModel, NativeModel], response: Response, k: int) -> tuple[int, ...]:
    """One prompt through the live loop of the native engine."""
    num_slots = len(response.prompt_token_ids) + len(response.response_token_ids) + k + 1
    target, draft = (Session(native, 1, num_slots, live_mode(CPU)) for native in pair)
    batch = speculate(
        target,
        draft,
        [response.prompt_token_ids],
        RoundPlan(k, "greedy", Sampling()),
        max_new_tokens=[len(response.response_token_ids)],
        eos_token_ids=frozenset(pair[0].end_token_ids),
        seeds=[0],
    )
    return batch.runs[0].token_ids


def loaded(name: str, rows: tuple[int, ...]) -> NativeModel:
    """One model of the embedded pair on the native engine."""
    return load_native(stored_weights(open_checkpoint(pair_dir() / name)), torch.float32, CPU, rows)


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Seconds and result of one call."""
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def main() -> None:
    """Print a line per repeat, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    traffic = captured(options.num_prompts, options.num_tokens)
    # Kernels are chosen for the rows each model meets: a verification, and one or two tokens.
    natives = (
        loaded("target", (1, options.k + 1)),
        loaded("draft", (1, 2)),
    )
    plain = [load_model(pair_dir() / name, torch.float32, CPU) for name in ("target", "draft")]
    ratios, num_tokens = [], sum(len(r.response_token_ids) for r in traffic.responses)
    for repeat in range(options.repeats + 1):
        seconds = {"live": 0.0, "assisted": 0.0}
        for response in traffic.responses:
            one = Traffic((response,), traffic.sampling)
            spent, text = timed(live, natives, response, options.k)
            seconds["live"] += spent
            spent, (texts, _) = timed(assisted, *plain, one, options.k)
            seconds["assisted"] += spent
            assert text == texts[0] == response.response_token_ids, "the texts differ"
        if repeat == 0:
            continue  # warm-up
        ratios.append(seconds["assisted"] / seconds["live"])
        speeds = {name: num_tokens / spent for name, spent in seconds.items()}
        print(
            f"repeat {repeat}: live {speeds['live']:.0f} tokens/s, "
            f"assisted {speeds['assisted']:.0f} tokens/s, ratio {ratios[-1]:.2f}"
        )
    print(
        json.dumps(
            {
                "ratio": median(ratios),
                "ratios": ratios,
                "num_speculative_tokens": options.k,
                "num_prompts": len(traffic.responses),
                "num_tokens": num_tokens,
                "live_tokens_per_s": speeds["live"],
                "assisted_tokens_per_s": speeds["assisted"],
                "num_threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
