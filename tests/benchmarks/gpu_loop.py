"""The live loop in each of the device's modes against the same loop run eagerly: the same text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.native.model import NativeModel, load_native
from quantdraft.engines.native.session import Session, tried_modes
from quantdraft.engines.native.weight_sources import RandomWeights
from quantdraft.measure.latency.faults import arm_fault
from quantdraft.measure.near_ties import text_status
from quantdraft.measure.speculation import LiveBatch, next_logits, speculate
from quantdraft.measure.verification import RoundPlan
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record.choices import Mode
from quantdraft.traffic.traffic import Sampling

PROMPTS = (tuple(range(1, 20)), tuple(range(5, 12)))
K, NUM_TOKENS, NUM_SLOTS = 4, 32, 96
RECIPES = ("int4", "int8", "fp8")


def live_loop(shape: Checkpoint, device: torch.device) -> dict[str, Any]:
    """What each recipe's draft writes in each mode, and how the texts compare.

    Random weights: many tokens are near-ties, which two modes may decide differently.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    target = load_native(RandomWeights(shape, None), dtype, device)
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        try:
            draft = load_native(RandomWeights(shape, load_recipe(recipe)), dtype, device)
            found[recipe] = in_all_modes(target, draft, device)
        except Exception as error:  # a recipe that cannot run leaves the others
            found[recipe] = {"undefined": arm_fault(recipe, error, device)}
    return found


def in_all_modes(target: NativeModel, draft: NativeModel, device: torch.device) -> dict[str, Any]:
    """Seconds and rounds by mode, and what every prompt's text is against the eager loop's."""
    eager = decode_timed(sessions(target, draft, "eager"), decode)
    found: dict[str, Any] = {}
    for mode in dict.fromkeys(("eager", *tried_modes(target, device))):
        pair = sessions(target, draft, mode)
        started = time.perf_counter()
        decode(*pair)  # compilers and recordings take their time here
        first_s = time.perf_counter() - started
        batch = decode_timed(pair, decode)
        texts = zip(PROMPTS, eager.runs, batch.runs, strict=True)
        found[mode] = {
            "first_seconds": first_s,
            "decode_seconds": batch.decode_seconds,
            "num_drafts": [run.num_drafts for run in batch.runs],
            "texts": [status(target, p, a.token_ids, b.token_ids) for p, a, b in texts],
        }
    statuses = {status for by_mode in found.values() for status in by_mode["texts"]}
    return found | {"is_same_text": statuses <= {"identical", "near-tie"}}


def sessions(target: NativeModel, draft: NativeModel, mode: Mode) -> tuple[Session, Session]:
    """Both models' sessions for all prompts in one batch; what they record they keep."""
    verifier, proposer = (Session(m, len(PROMPTS), NUM_SLOTS, mode) for m in (target, draft))
    return verifier, proposer


def decode(verifier: Session, proposer: Session) -> LiveBatch:
    """Decode all prompts in one batch."""
    return speculate(
        verifier,
        proposer,
        PROMPTS,
        RoundPlan(K, "greedy", Sampling()),
        max_new_tokens=[NUM_TOKENS] * len(PROMPTS),
        eos_token_ids=frozenset(),
        seeds=[0] * len(PROMPTS),
    )


def decode_timed(pair: Sequence[Session], decode: Callable[..., LiveBatch]) -> LiveBatch:
    """Decode until nothing was recorded on the way: then the seconds are those of the rounds.

    Each time more of what the text needs is recorded, and a text is the same each time.
    """
    while True:
        before = [session.num_recordings for session in pair]
        batch = decode(*pair)
        if [session.num_recordings for session in pair] == before:
            return batch


def status(
    target: NativeModel, prompt: Sequence[int], wanted: Sequence[int], found: Sequence[int]
) -> str:
    """What one text is against the other: identical, near-tie or divergent."""

    def logits_before(at: int) -> Tensor:
        prefix = [*prompt, *wanted[:at]]
        return next_logits(Session(target, 1, len(prefix)), prefix)

    return text_status(wanted, found, logits_before, target.compute_dtype)
