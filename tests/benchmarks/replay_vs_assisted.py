"""Compare replay with transformers' assisted generation: equal counts, and their cost.

python -m tests.benchmarks.replay_vs_assisted [--num-prompts 20] [--num-tokens 128] [--max-k 8]

One recipe's draft, all k of 1..8, greedy, float32, the embedded pair. Assisted generation runs once
for each k; replay is one pass of the draft for all. In one process, same threads, models loaded
beforehand on both sides. The last line is one JSON object with `ratio`.

Counting convention. Assisted generation has no separate prefill: its first round drafts the first
response token, and every round is one forward of the target. Its draft proposes at most as many
tokens as may still be emitted less one, so that a target forward that emits the last token alone
still happens. Replay with `first_token_from_prefill=False` counts the same rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure.capture import capture
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.quantize.apply import apply
from quantdraft.quantize.recipe import load_recipe
from quantdraft.traffic.traffic import Sampling, Traffic

CPU = torch.device("cpu")


class CountedForwards:
    """Counts the forward passes of a model while the block runs."""

    def __init__(self, model: Any) -> None:
        self.model, self.num_forwards = model, 0

    def __enter__(self) -> CountedForwards:
        self.hook = self.model.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _count(self, *_: object) -> None:
        self.num_forwards += 1


def assisted(
    target: Any, draft: Any, traffic: Traffic, k: int
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Texts and target forwards of every prompt: k fixed, no confidence threshold."""
    draft.generation_config.num_assistant_tokens = k
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    texts, forwards = [], []
    for response in traffic.responses:
        prompt = torch.tensor([response.prompt_token_ids])
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=len(response.response_token_ids),
            eos_token_id=target.generation_config.eos_token_id,
            pad_token_id=target.generation_config.pad_token_id,
        )
        with CountedForwards(target) as counted, torch.inference_mode():
            ids = target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                assistant_model=draft,
            )
        texts.append(tuple(ids[0, prompt.shape[1] :].tolist()))
        forwards.append(counted.num_forwards)
    return texts, forwards


def compare(traffic: Traffic, target: Any, draft: Any, ks: list[int]) -> dict[str, Any]:
    """Counts of both, k by k, and the time each took for all k."""
    started = time.perf_counter()
    keep = acceptance_probabilities(draft, traffic, "greedy")
    ids = [response.prompt_id for response in traffic.responses]
    replayed = replay_rounds(ids, keep, ks, first_token_from_prefill=False)
    replay_s = time.perf_counter() - started

    rows, assisted_s = [], 0.0
    for k in ks:
        started = time.perf_counter()
        texts, forwards = assisted(target, draft, traffic, k)
        assisted_s += time.perf_counter() - started
        wanted = [response.response_token_ids for response in traffic.responses]
        rounds = replayed.num_drafts[replayed.row(k)].round().astype(int).tolist()
        rows.append(
            {
                "k": k,
                "same_text": sum(a == b for a, b in zip(texts, wanted, strict=True)),
                "same_rounds": sum(a == b for a, b in zip(forwards, rounds, strict=True)),
                "num_prompts": len(wanted),
                "rounds_assisted": sum(forwards),
                "rounds_replayed": sum(rounds),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {
        "ratio": assisted_s / replay_s,
        "assisted_s": assisted_s,
        "replay_s": replay_s,
        "is_equal": all(r["same_text"] == r["same_rounds"] == r["num_prompts"] for r in rows),
    }


def main() -> None:
    """Run it on the embedded pair and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--max-k", type=int, default=8)
    parser.add_argument("--recipe", default="int4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        traffic = capture(
            CaptureSettings(
                str(pair_dir() / "target"),
                pair_dir() / "prompts.jsonl",
                directory / "traffic.jsonl",
                sampling=Sampling(),
                max_new_tokens=options.num_tokens,
                limit=options.num_prompts,
            )
        )
        apply(load_recipe(options.recipe), str(pair_dir() / "draft"), directory / "candidate")
        target = load_model(pair_dir() / "target", torch.float32, CPU)
        draft = load_model(directory / "candidate", torch.float32, CPU)
        figures = compare(traffic, target, draft, list(range(1, options.max_k + 1)))
    print(json.dumps({"recipe": options.recipe, **figures}))


if __name__ == "__main__":
    main()
