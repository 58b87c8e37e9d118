"""The verdict's two speed checks at every timed point of batch and context.

Acceptance does not depend on the batch: the record's rounds, with each point's own step times.
Alarms, the other checks and a serving engine's own speed are left to the verdict.
"""

from __future__ import annotations

import numpy as np

from quantdraft.judge.acceptance import Replayed
from quantdraft.judge.comparison.speeds import best_k, speed_point
from quantdraft.judge.conversations import Units, units_of
from quantdraft.judge.statistics.bootstrap import DEFAULT, Bootstrap
from quantdraft.record import Arm, Evaluation, GridPoint, Latency


def units_in(evaluation: Evaluation) -> Units | None:
    """Return the conversation of each of the record's prompts; None where each stands alone."""
    return units_of([prompt.conversation for prompt in evaluation.prompts])


def num_units(evaluation: Evaluation) -> int:
    """Return how many prompts or conversations intervals resample."""
    units = units_in(evaluation)
    return len(evaluation.prompts) if units is None else max(units) + 1


def replayed_of(evaluation: Evaluation, arm: Arm) -> Replayed:
    """Return one arm's rounds as they are resampled: a row for each conversation.

    A prompt of no conversation is a row of its own, as `replay_rounds` found it. The record
    keeps a prompt's accepted tokens as one sum: they all stand at the first position.
    """
    prompts = evaluation.prompts
    shape = len(prompts), len(evaluation.num_speculative_tokens)
    num_drafts = np.array([prompt.of(arm).num_drafts for prompt in prompts])
    accepted = np.array([prompt.of(arm).num_accepted for prompt in prompts])
    num_drafts, accepted = num_drafts.reshape(shape), accepted.reshape(shape)
    of_prompts = Replayed(
        prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
        ks=evaluation.num_speculative_tokens,
        num_tokens=np.array([prompt.num_tokens for prompt in prompts], dtype=np.int64),
        num_drafts=num_drafts.T,
        num_accepted_per_pos=tuple(accepted.T[:, :, None]),
    )
    return of_prompts.of_conversations(units_in(evaluation))


def grid_points(evaluation: Evaluation, bootstrap: Bootstrap = DEFAULT) -> tuple[GridPoint, ...]:
    """Return every timed point, the operating point's included, by batch and context."""
    if not evaluation.prompts or not evaluation.latency.arms or evaluation.served is not None:
        return ()
    found = {(p.batch_size, p.context_length): p for p in (*evaluation.grid, evaluation.latency)}
    arms = replayed_of(evaluation, "baseline"), replayed_of(evaluation, "candidate")
    return tuple(_grid_point(found[place], *arms, bootstrap) for place in sorted(found))


def _grid_point(
    latency: Latency, baseline: Replayed, candidate: Replayed, bootstrap: Bootstrap
) -> GridPoint:
    place = latency.batch_size, latency.context_length
    points = tuple(
        speed_point(baseline, candidate, latency, baseline_k=k, candidate_k=k, bootstrap=bootstrap)
        for k in baseline.ks
    )
    best = best_k(points)
    if best["baseline"] is None or best["candidate"] is None:
        missing = [arm for arm in ("candidate", "baseline", "target") if arm in latency.undefined]
        why = latency.undefined[missing[0]] if missing else "not every step was timed"
        return GridPoint(*place, None, why)
    point = speed_point(
        baseline,
        candidate,
        latency,
        baseline_k=best["baseline"],
        candidate_k=best["candidate"],
        bootstrap=bootstrap,
    )
    return GridPoint(*place, point, "")


def stops_paying_at(points: tuple[GridPoint, ...], limit: float = 1.0) -> dict[int, int | None]:
    """Return by context the smallest batch at which the best draft surely does not pay.

    None where no measured batch is. Sure: the whole interval of the better arm is at `limit`, the
    policy's speedup over the target alone, or below.
    """
    found: dict[int, int | None] = {}
    for point in points:
        found.setdefault(point.context_length, None)
        best = point.better_speedup
        if best is not None and best.high <= limit and found[point.context_length] is None:
            found[point.context_length] = point.batch_size
    return found
