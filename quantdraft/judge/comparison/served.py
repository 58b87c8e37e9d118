"""Speed as a serving engine delivers it: paired per prompt, with intervals from the prompts.

Every arm answered the same prompts, one request at a time, in turns. What is compared is the time
from a prompt's first token to its last, over the tokens in between: a ratio of sums, in which every
resample of the prompts keeps all arms of a prompt together. Single steps stay unknown.

Two starts of one server differ in speed (loads): each resample draws how far the loads it rests on
are off, and then the prompts. Of one load nobody can tell, and no interval holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from quantdraft.judge import speedup
from quantdraft.judge.acceptance import Floats
from quantdraft.judge.conversations import Units, sum_units, units_of
from quantdraft.judge.statistics.bootstrap import (
    DEFAULT,
    Bootstrap,
    Weights,
    interval_of,
    prompt_weights,
)
from quantdraft.record import MIN_PROMPTS, Interval, Served, ServedArm, SpeedPoint


class LoadSpread(NamedTuple):
    """How far loads of one arm differ, on the logarithm of the time per token."""

    error: float  # one load's standard deviation
    freedom: int  # what it was estimated from; Student's degrees of freedom
    num_loads: int


class Pace(NamedTuple):
    """What one arm took for every prompt, summed over its visits: (prompts,) each."""

    seconds: Floats
    num_tokens: Floats

    @property
    def ms_per_token(self) -> float:
        """Time per token of all prompts together."""
        return float(1e3 * self.seconds.sum() / self.num_tokens.sum())

    def of_conversations(self, units: Units | None) -> Pace:
        """Return the sums of each conversation; units as `conversations.units_of` returns them."""
        if units is None:
            return self
        return Pace(sum_units(self.seconds, units), sum_units(self.num_tokens, units))


def pace_of(arm: ServedArm, prompt_ids: tuple[str, ...]) -> Pace:
    """Return the decoding time and the tokens of each prompt."""
    row = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
    seconds, num_tokens = np.zeros(len(row)), np.zeros(len(row))
    for request in arm.requests:
        if request.prompt_id in row:
            seconds[row[request.prompt_id]] += request.decode_seconds
            num_tokens[row[request.prompt_id]] += request.num_decoded
    return Pace(seconds, num_tokens)


def load_spread(served: Served) -> LoadSpread | None:
    """Return how far loads of one arm differ; None where they do not show it.

    What is left of each load's time per token once the arm's own and that of all arms in that load
    are taken off, pooled over the arms: two loads of one arm alone would say next to nothing.
    """
    prompt_ids = served.common_prompts
    numbers = {arm.loads for arm in served.arms.values()}
    if len(numbers) != 1 or len(served.arms) < 2 or not prompt_ids:
        return None
    (found,) = numbers
    times = [[_load_ms(arm, prompt_ids, load) for load in found] for arm in served.arms.values()]
    freedom = (len(times) - 1) * (len(found) - 1)
    if freedom < 1 or not all(ms for row in times for ms in row):
        return None
    logs = np.log(np.array(times, np.float64))
    rest = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
    return LoadSpread(float(np.sqrt((rest**2).sum() / freedom)), freedom, len(found))


def _load_ms(arm: ServedArm, prompt_ids: tuple[str, ...], load: int) -> float | None:
    """Return the time per token of one load; None unless it answered every prompt."""
    own = ServedArm(arm.name, tuple(r for r in arm.requests if r.load == load))
    answered = pace_of(own, prompt_ids)
    return answered.ms_per_token if (answered.num_tokens > 0).all() else None


def served_speed_undefined(served: Served) -> str | None:
    """Return why the requests give no speedup, or None."""
    for arm in ("candidate", "baseline", "autoregressive"):
        if arm in served.undefined:
            return f"{arm}: {served.undefined[arm]}"
        if arm not in served.arms:
            return f"{arm} was not served"
    num_prompts = len(served.common_prompts)
    if num_prompts < MIN_PROMPTS:
        return (
            f"{num_prompts} served prompts say nothing of the spread; "
            f"at least {MIN_PROMPTS} are needed"
        )
    return None


def served_point(
    served: Served,
    bootstrap: Bootstrap = DEFAULT,
    conversations: Mapping[str, str | None] | None = None,
) -> SpeedPoint:
    """Return the speedups that the engine delivered at its k; step times are None.

    A speedup is None where an arm was not served, or with fewer than MIN_PROMPTS prompts. The
    break-even length is the candidate's own over its speedup: rounds take the time they take.

    conversations: of the prompts by their ids; None: every prompt stands alone
    """
    prompts = served.common_prompts
    units = units_of([(conversations or {}).get(name) for name in prompts])
    paces = {}
    if prompts:
        arms = served.arms.items()
        paces = {name: pace_of(arm, prompts).of_conversations(units) for name, arm in arms}
    spread = load_spread(served)

    def ratio(over: str, under: str) -> Interval | None:
        return _speedup(paces.get(over), paces.get(under), spread, bootstrap)

    over_baseline, k = ratio("baseline", "candidate"), served.num_speculative_tokens
    length = served.arms["candidate"].mean_acceptance_length if "candidate" in paces else None
    pays_from = length / over_baseline.value if length and over_baseline else None
    return SpeedPoint(
        baseline_num_speculative_tokens=k,
        candidate_num_speculative_tokens=k,
        baseline_draft_step_ms=None,
        candidate_draft_step_ms=None,
        baseline_verify_step_ms=None,
        candidate_verify_step_ms=None,
        autoregressive_step_ms=_ms(paces.get("autoregressive")),
        baseline_ms_per_token=_ms(paces.get("baseline")),
        candidate_ms_per_token=_ms(paces.get("candidate")),
        speedup_over_baseline=over_baseline,
        speedup_over_autoregressive=ratio("autoregressive", "candidate"),
        baseline_speedup_over_autoregressive=ratio("autoregressive", "baseline"),
        control_speedup=ratio("baseline", "control"),
        draft_latency_saving=None,
        break_even_length=pays_from,
        break_even_rate=None if pays_from is None else speedup.break_even_rate(pays_from, k),
    )


def _speedup(
    over: Pace | None, under: Pace | None, spread: LoadSpread | None, bootstrap: Bootstrap
) -> Interval | None:
    """Return the time per token of `over` through that of `under`: above 1, `under` is faster."""
    if over is None or under is None or len(over.seconds) < MIN_PROMPTS:
        return None
    weights = prompt_weights(len(over.seconds), bootstrap)
    draws = _time_per_token(over, weights) / _time_per_token(under, weights)
    draws = draws * _load_draws(spread, bootstrap)
    value = over.ms_per_token / under.ms_per_token
    return interval_of(value, draws, len(over.seconds), bootstrap)


def _load_draws(spread: LoadSpread | None, bootstrap: Bootstrap) -> Floats | float:
    """Return factors by which the loads of two arms put their ratio off, (num_resamples,).

    Student's t, for the spread is itself an estimate: drawing two loads again from the two that
    there are covers the truth in half of all cases.
    """
    if spread is None or spread.error == 0:
        return 1.0
    rng = np.random.default_rng([bootstrap.seed, 2])
    off = rng.standard_t(spread.freedom, bootstrap.num_resamples)
    return np.asarray(np.exp(off * spread.error * np.sqrt(2 / spread.num_loads)))


def _time_per_token(arm: Pace, weights: Weights) -> Floats:
    """Return the time per token in every resample, (num_resamples,)."""
    return np.asarray((weights @ arm.seconds) / (weights @ arm.num_tokens))


def _ms(arm: Pace | None) -> float | None:
    return None if arm is None else arm.ms_per_token
