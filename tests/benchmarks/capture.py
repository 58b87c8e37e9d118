"""Tokens per second of `capture`: the native engine against transformers' modules, in turns.

    python -m tests.benchmarks.capture --target DIR --prompts FILE

Both answer the same prompts at the same batch size; their texts are compared. `ratio` is the median
of the ratios of neighbouring runs. Loading is not counted. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.devices import pick_dtype
from quantdraft.checkpoints.tensors.loading import load_model, load_tokenizer
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import decoding_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.measure.answerers import PREFILL_ROWS
from quantdraft.measure.continuous_batch import generate_in_turns
from quantdraft.measure.generation import GeneratedTokens, generate
from quantdraft.traffic.prompts import encode_prompt, read_prompts
from quantdraft.traffic.traffic import Sampling


class Bench:
    """One target on both engines, and the prompts it answers."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.device = given, torch.device(given.device)
        dtype = pick_dtype(given.dtype, self.device)
        tokenizer = load_tokenizer(given.target)
        prompts = read_prompts(given.prompts)
        number = min(given.num_prompts, len(prompts))
        self.prompts = [encode_prompt(prompts[place], tokenizer) for place in range(number)]
        self.library = load_model(given.target, dtype, self.device)
        source = stored_weights(open_checkpoint(given.target))
        self.native = load_native(source, dtype, self.device, (given.batch_size, *PREFILL_ROWS))

    def by_library(self) -> list[GeneratedTokens]:
        """Answer batch after batch by transformers' modules."""
        size, found = self.given.batch_size, []
        for start in range(0, len(self.prompts), size):
            some = self.prompts[start : start + size]
            found += generate(
                self.library, some, Sampling(), self.given.max_new_tokens, range(len(some))
            )
        return found

    def by_native(self) -> list[GeneratedTokens]:
        """Answer all prompts on the native engine."""
        return generate_in_turns(
            self.native,
            self.prompts,
            Sampling(),
            self.given.max_new_tokens,
            range(len(self.prompts)),
            batch_size=self.given.batch_size,
            mode=decoding_mode(self.native, self.device),
        )

    def run(self) -> dict[str, Any]:
        """Return both rates, their ratio, and how many texts are equal."""
        ratios, rates, texts = [], [], []
        for number in range(self.given.rounds):
            order = (self.by_library, self.by_native)
            timed = {each: _timed(each) for each in (order if number % 2 == 0 else order[::-1])}
            rates.append([_num_tokens(timed[each][0]) / timed[each][1] for each in order])
            ratios.append(rates[-1][1] / rates[-1][0])
            texts.append([timed[each][0] for each in order])
            print(f"round {number}: {rates[-1][0]:.1f} and {rates[-1][1]:.1f} tokens/s", flush=True)
        library, native = texts[-1]
        pairs = zip(library, native, strict=True)
        return {
            "benchmark": "capture",
            "ratio": round(median(ratios), 2),
            "tokens_per_s": [round(median(each), 1) for each in zip(*rates, strict=True)],
            "engines": ["transformers", self.native.runtime],
            "kernels": self.native.kernels,
            "batch_size": self.given.batch_size,
            "num_prompts": len(self.prompts),
            "equal_texts": sum(ours.token_ids == theirs.token_ids for ours, theirs in pairs),
        }


def _timed(answer: Any) -> tuple[list[GeneratedTokens], float]:
    started = time.perf_counter()
    found: list[GeneratedTokens] = answer()
    return found, time.perf_counter() - started


def _num_tokens(answers: list[GeneratedTokens]) -> int:
    return sum(len(answer.token_ids) for answer in answers)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, default=pair_dir() / "target")
    parser.add_argument("--prompts", type=Path, default=pair_dir() / "prompts.jsonl")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    print(json.dumps(Bench(parser.parse_args()).run()))


if __name__ == "__main__":
    main()
