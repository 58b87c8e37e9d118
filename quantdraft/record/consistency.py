"""What must hold between the fields of a record, checked where one is read.

The types say what each number may be alone. Here: lengths of lists that belong together, ends in
their order, counts that add up, and the free dictionaries as far as pages read them. A record in
which one of these does not hold was changed after it was written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from quantdraft.record.acceptance import (
    AcceptanceComparison,
    AcceptanceCounts,
    Disagreement,
    PromptReplay,
    Slice,
)
from quantdraft.record.analysis import FATES, Analysis
from quantdraft.record.evaluation import Bench, Evaluation
from quantdraft.record.free_form import LEDGER, PROVENANCE
from quantdraft.record.served import Served, ServedRequest
from quantdraft.record.terms import ARMS, SLACK, Interval
from quantdraft.record.timing import ArmLatency, Latency, LiveCheck, SpeedPoint, StepSamples
from quantdraft.record.verdict import RATE, RATE_LOSS, Check, Verdict

Problem = tuple[str, str]  # a field, dotted below the value that was asked; what is wrong with it
TOLERANCE = 1e-4  # of what is stored beside what it is made of, relative


def first_problem(record: Evaluation | Bench) -> Problem | None:
    """Return the first field that contradicts another, with what is wrong; None: all is well."""
    return next(_problems(record, ""), None)


def _problems(value: Any, path: str) -> Iterator[Problem]:
    """Yield the problems of a value and of everything in it, the innermost first."""
    for name, inner in _inner(value):
        yield from _problems(inner, f"{path}.{name}" if path else name)
    for check in _CHECKS.get(type(value), ()):
        for name, wrong in check(value):
            yield ".".join(part for part in (path, name) if part), wrong


def _inner(value: Any) -> Iterable[tuple[str, Any]]:
    """Return the parts of a value that may be wrong in themselves, by name."""
    if is_dataclass(value) and not isinstance(value, type):
        return [(name, getattr(value, name)) for name in _names(type(value))]
    if isinstance(value, dict):
        return [(str(key), inner) for key, inner in value.items()]
    if isinstance(value, tuple) and value and not isinstance(value[0], str | int | float):
        return [(str(at), inner) for at, inner in enumerate(value)]
    return ()


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.name not in ("ledger", "provenance"))


def _interval(ends: Interval) -> Iterator[Problem]:
    if ends.low > ends.high:
        yield "low", f"{ends.low:g} lies above the high end, {ends.high:g}"


def _counts(counts: AcceptanceCounts) -> Iterator[Problem]:
    k, per_pos = counts.num_speculative_tokens, counts.num_accepted_tokens_per_pos
    yield from _long("num_accepted_tokens_per_pos", per_pos, k, "k")
    if not _falls((counts.num_drafts, *per_pos)):
        yield "num_accepted_tokens_per_pos", "more are kept at a position than came to it"
    if not _at_most(counts.num_drafts, counts.num_tokens):
        yield "num_drafts", f"{counts.num_drafts:g} rounds gave {counts.num_tokens} tokens"
    if not _at_most(counts.num_tokens, (k + 1) * counts.num_drafts):
        rounds = f"{counts.num_drafts:g} rounds of k = {k}"
        yield "num_tokens", f"{counts.num_tokens} tokens cannot come from {rounds}"


def _slice(part: Slice) -> Iterator[Problem]:
    for arm in ARMS:
        found = part.of(arm)
        for what, values in (("asked", found.asked), ("kept", found.kept)):
            if part.prompts or values:
                yield from _long(f"{arm}_{what}", values, len(part.prompts), "of the prompts")
        if any(not _at_most(k, a) for k, a in zip(found.kept, found.asked, strict=False)):
            yield f"{arm}_kept", "more tokens were kept than asked for"
    if part.prompts and len(part.prompts) > part.num_prompts:
        yield "prompts", f"it lists {len(part.prompts)} of {part.num_prompts} prompts"
    if part.conditional_acceptance_loss is not None:
        yield from _within("conditional_acceptance_loss", part.conditional_acceptance_loss, -1, 1)


def _comparison(at: AcceptanceComparison) -> Iterator[Problem]:
    k = at.num_speculative_tokens
    for arm in ARMS:
        counts, rate, length = at.of(arm)
        if counts.num_speculative_tokens != k:
            yield f"{arm}.num_speculative_tokens", f"{counts.num_speculative_tokens} is not k = {k}"
        yield from _within(f"{arm}_rate", rate, 0, 1)
        yield from _within(f"{arm}_length", length, 1, k + 1)
        if counts.num_drafts:
            yield from _is(f"{arm}_rate.value", rate.value, counts.acceptance_rate)
            yield from _is(f"{arm}_length.value", length.value, counts.mean_acceptance_length)
    if at.baseline.num_tokens != at.candidate.num_tokens:
        other = f"{at.baseline.num_tokens} of the baseline"
        yield "candidate.num_tokens", f"{at.candidate.num_tokens} are not the {other}"
    yield from _within("acceptance_rate_loss", at.acceptance_rate_loss, -1, 1)
    lost = at.baseline_rate.value - at.candidate_rate.value
    yield from _is("acceptance_rate_loss.value", at.acceptance_rate_loss.value, lost)
    ratio = at.candidate_length.value / at.baseline_length.value
    yield from _is("length_ratio.value", at.length_ratio.value, ratio)
    if at.acceptance_loss_per_pos:
        yield from _long("acceptance_loss_per_pos", at.acceptance_loss_per_pos, k, "k")
    for place, loss in enumerate(at.acceptance_loss_per_pos):
        yield from _within(f"acceptance_loss_per_pos.{place}", loss, -1, 1)


def _disagreement(each: Disagreement) -> Iterator[Problem]:
    for arm in ARMS:
        yield from _long(f"{arm}_keep", each.keep(arm), len(each.tokens), "of the tokens")


def _samples(step: StepSamples) -> Iterator[Problem]:
    if step.blocks:
        yield from _long("blocks", step.blocks, len(step.samples_ms), "of the samples")
    if len(set(step.blocks)) < len(step.blocks):
        yield "blocks", "a block stands there twice"


def _arm_latency(arm: ArmLatency) -> Iterator[Problem]:
    step, head = arm.step_bytes, arm.head_bytes
    if step is not None and head is not None and head > step:
        yield "head_bytes", f"{head:,} are more than the step's {step:,}"
    yield from _above_0("step_speedup", arm.step_speedup)


def _latency(latency: Latency) -> Iterator[Problem]:
    for name, arm in latency.arms.items():
        if arm.name != name:
            yield f"arms.{name}.name", f"it is {arm.name!r}"
        for width, step in arm.steps.items():
            highest = max(step.blocks, default=len(step.samples_ms) - 1)
            if latency.loads and highest >= len(latency.loads):
                where = f"arms.{name}.steps.{width}.blocks"
                yield where, f"there is no block {highest}: loads has {len(latency.loads)}"
                return
        if arm.steps and not latency.loads:
            yield from _same_blocks(f"arms.{name}", arm, latency)


def _same_blocks(path: str, arm: ArmLatency, latency: Latency) -> Iterator[Problem]:
    """Yield steps that have not as many samples as another, where all are of one load."""
    steps = {f"steps.{width}": step for width, step in arm.steps.items()}
    if arm.head_step is not None:
        steps["head_step"] = arm.head_step
    number = len(next(s for a in latency.arms.values() for s in a.steps.values()).samples_ms)
    for name, step in steps.items():
        if len(step.samples_ms) != number:
            wrong = f"{len(step.samples_ms)} samples, where another step has {number}"
            yield f"{path}.{name}.samples_ms", f"{wrong}: all were timed in the same blocks"


def _timed(made: Evaluation) -> Iterator[Problem]:
    """Yield numbers of the speed equation whose steps were not timed, or came to another number."""
    if made.served is not None:
        return
    point, arms = made.operating_point, made.latency.arms
    asked: list[tuple[str, float | None, str, int]] = [
        ("autoregressive_step_ms", point.autoregressive_step_ms, "target", 1)
    ]
    for arm in ARMS:
        own = point.of(arm)
        asked.append((f"{arm}_draft_step_ms", own.draft_step_ms, arm, 1))
        width = own.num_speculative_tokens + 1
        asked.append((f"{arm}_verify_step_ms", own.verify_step_ms, "target", width))
    common: set[int] | None = None
    for name, value, timed, width in asked:
        if value is None:
            continue
        step = arms[timed].steps.get(width) if timed in arms else None
        if step is None or step.median_ms is None:
            yield f"operating_point.{name}", f"latency.arms.{timed} has no step of {width} tokens"
            return
        yield from _is(f"operating_point.{name}", value, step.median_ms, "the samples")
        blocks = set(step.blocks or range(len(step.samples_ms)))
        common = blocks if common is None else common & blocks
    if common == set():
        yield "latency.arms", "its steps have no block in common"


def _request(request: ServedRequest) -> Iterator[Problem]:
    if request.num_first_tokens > request.num_tokens:
        yield "num_first_tokens", f"more than the {request.num_tokens} tokens of the answer"
    if request.first_token_seconds > request.seconds:
        yield "first_token_seconds", f"later than the end, at {request.seconds:g} s"
    if not _falls((request.num_drafts, *request.num_accepted_tokens_per_pos)):
        yield "num_accepted_tokens_per_pos", "more are kept at a position than came to it"
    if (request.num_drafts_low is None) != (request.num_drafts_high is None):
        yield "num_drafts_low", "one of the two ends is missing"
    _, low, high = request.replayed_rounds
    if low > high:
        yield "num_drafts_low", f"{low:g} lies above num_drafts_high, {high:g}"


def _served(served: Served) -> Iterator[Problem]:
    known = {"autoregressive", *ARMS, "control"}
    for name, arm in served.arms.items():
        if name not in known or arm.name != name:
            yield f"arms.{name}.name", f"it is {arm.name!r}; arms are {', '.join(sorted(known))}"
        if not arm.requests:
            yield f"arms.{name}.requests", "it is empty: an arm that was not served is undefined"
        lengths = {len(r.num_accepted_tokens_per_pos) for r in arm.replayed}
        if len(lengths) > 1 or max(lengths, default=0) > served.num_speculative_tokens:
            k = served.num_speculative_tokens
            yield f"arms.{name}.requests", f"lists of {sorted(lengths)} positions at k = {k}"


def _live(check: LiveCheck) -> Iterator[Problem]:
    number = len(check.prompt_ids)
    if check.arm not in ARMS:
        yield "arm", f"it is {check.arm!r}; arms are {', '.join(ARMS)}"
    for name in ("num_drafts_live", "num_drafts_replayed"):
        yield from _long(name, getattr(check, name), number, "of the prompts")
    for name in ("num_drafts_low", "num_drafts_high"):
        if check.num_drafts_low or check.num_drafts_high:
            yield from _long(name, getattr(check, name), number, "of the prompts")
    for name in ("num_identical_texts", "num_near_ties", "num_divergent", "num_own_texts"):
        if number and getattr(check, name) > number:
            yield name, f"{getattr(check, name)} texts, of {number} prompts"


def _point(point: SpeedPoint) -> Iterator[Problem]:
    for name in (
        "speedup_over_baseline",
        "speedup_over_autoregressive",
        "baseline_speedup_over_autoregressive",
        "control_speedup",
        "target_control_speedup",
    ):
        yield from _above_0(name, getattr(point, name))
    saving = point.draft_latency_saving
    if saving is not None and saving.value >= 1:
        yield "draft_latency_saving.value", f"{saving.value:g} would be a step of no time"


def _check(check: Check) -> Iterator[Problem]:
    if (check.limit is None) != (check.comparison is None):
        yield "comparison", "a limit and how it is compared go together"
    is_share = check.name in (RATE, RATE_LOSS)
    if check.limit is not None and not 0 <= check.limit <= (1 if is_share else 1e6):
        yield "limit", f"{check.limit:g} is no {'share' if is_share else 'ratio'}"
    if check.observed is not None and is_share:
        yield from _within("observed", check.observed, -1, 1)


def _verdict(verdict: Verdict) -> Iterator[Problem]:
    deciding = [check.result for check in verdict.checks if check.kind == "decides"]
    if verdict.decision == "go" and (verdict.alarms or set(deciding) - {"pass"}):
        yield "decision", "a go has no alarm and passes every check that decides"
    if verdict.decision == "no-go" and not verdict.alarms and set(deciding) <= {"pass"}:
        yield "decision", "a no-go has an alarm, or a check that decides and has not passed"


def _analysis(analysis: Analysis) -> Iterator[Problem]:
    for name in ("baseline_alpha", "candidate_alpha"):
        if (alpha := getattr(analysis, name)) is not None:
            yield from _within(name, alpha, 0, 1)
    for place, fates in enumerate(analysis.fates):
        for arm in ARMS:
            marks = getattr(fates, arm)
            if set(marks) - set(FATES):
                yield f"fates.{place}.{arm}", f"marks are {' '.join(FATES)}"


def _evaluation(made: Evaluation) -> Iterator[Problem]:
    ks = made.num_speculative_tokens
    if not ks or list(ks) != sorted(set(ks)):
        yield "num_speculative_tokens", "it lists each k once, the lowest first, and one at least"
        return
    if not made.prompts or not any(prompt.num_tokens for prompt in made.prompts):
        yield "prompts", "no prompt has a token"
    for prompt_at, prompt in enumerate(made.prompts):
        yield from _prompt(f"prompts.{prompt_at}", prompt, ks)
    yield from _of_every_k(made)
    yield from _totals(made)
    slices = {name: getattr(made, name) for name in ("by_position", "by_context", "by_domain")}
    slices |= {f"by_trait.{name}": parts for name, parts in made.by_trait.items()}
    for name, parts in slices.items():
        for place, part in enumerate(parts):
            if max(part.prompts, default=-1) >= len(made.prompts):
                yield f"{name}.{place}.prompts", f"there are {len(made.prompts)} prompts"
    if made.analysis is not None:
        yield from _fates(made.analysis, made.disagreements)
        names = [f"{p.batch_size}, {p.context_length}" for p in made.analysis.grid]
        if len(set(names)) < len(names):
            yield "analysis.grid", "a batch and context stands there twice"
    yield from _served_k(made)
    yield from _timed(made)
    for name, known in (("ledger", LEDGER), ("provenance", PROVENANCE)):
        yield from known.problems(getattr(made, name), name)


def _prompt(path: str, prompt: PromptReplay, ks: Sequence[int]) -> Iterator[Problem]:
    for arm in ARMS:
        rounds, accepted = prompt.of(arm)
        yield from _long(f"{path}.{arm}_num_drafts", rounds, len(ks), "of the k")
        yield from _long(f"{path}.{arm}_num_accepted", accepted, len(ks), "of the k")
        for k, drafts, kept in zip(ks, rounds, accepted, strict=False):
            if not _at_most(drafts, prompt.num_tokens) or not (drafts or not prompt.num_tokens):
                wrong = f"{drafts:g} rounds at k = {k} gave {prompt.num_tokens} tokens"
                yield f"{path}.{arm}_num_drafts", wrong
            if not _at_most(kept, prompt.num_tokens):
                wrong = f"{kept:g} tokens were kept at k = {k}, of {prompt.num_tokens}"
                yield f"{path}.{arm}_num_accepted", wrong


def _of_every_k(made: Evaluation) -> Iterator[Problem]:
    """Yield what is not there once for every k, and k that were not replayed."""
    ks = made.num_speculative_tokens
    if [at.num_speculative_tokens for at in made.acceptance] != list(ks):
        yield "acceptance", f"it has an entry for each k of {list(ks)}, in this order"
    for place, point in enumerate(made.equal_k):
        pair = point.baseline_num_speculative_tokens, point.candidate_num_speculative_tokens
        if pair[0] != pair[1] or pair[0] not in ks:
            yield f"equal_k.{place}", f"k = {pair[0]} and {pair[1]}: both are one of {list(ks)}"
    both = [point.candidate_num_speculative_tokens for point in made.equal_k]
    if len(set(both)) < len(both):
        yield "equal_k", "a k stands there twice"
    for arm in ARMS:
        if arm not in made.best_k:
            yield f"best_k.{arm}", "it is missing"
        elif made.best_k[arm] is not None and made.best_k[arm] not in ks:
            yield f"best_k.{arm}", f"{made.best_k[arm]} is none of {list(ks)}"
        k = made.operating_point.of(arm).num_speculative_tokens
        if k not in ks:
            name = f"operating_point.{arm}_num_speculative_tokens"
            yield name, f"{k} is none of {list(ks)}"
    if made.known_slices_k not in ks:
        yield "slices_k", f"{made.known_slices_k} is none of {list(ks)}"


def _totals(made: Evaluation) -> Iterator[Problem]:
    """Yield counts over all prompts that are far from the sums of the prompts' own.

    Twice as many or half are let pass: the earliest records count other prompts in both places.
    """
    num_tokens = sum(prompt.num_tokens for prompt in made.prompts)
    for place, at in enumerate(made.acceptance):
        for arm in ARMS:
            counts = at.of(arm).counts
            rounds = sum(prompt.of(arm).num_drafts[place] for prompt in made.prompts)
            where = f"acceptance.{place}.{arm}"
            if not _is_near(counts.num_tokens, num_tokens):
                yield f"{where}.num_tokens", f"{counts.num_tokens}; the prompts have {num_tokens}"
            if not _is_near(counts.num_drafts, rounds):
                yield f"{where}.num_drafts", f"{counts.num_drafts:g}; the prompts have {rounds:g}"


def _fates(analysis: Analysis, read: Sequence[Disagreement]) -> Iterator[Problem]:
    yield from _long("analysis.fates", analysis.fates, len(read), "of the disagreements")
    for place, (fates, each) in enumerate(zip(analysis.fates, read, strict=False)):
        for arm in ARMS:
            name = f"analysis.fates.{place}.{arm}"
            yield from _long(name, getattr(fates, arm), len(each.tokens), "of the tokens")


def _served_k(made: Evaluation) -> Iterator[Problem]:
    if made.served is None:
        return
    k = made.served.num_speculative_tokens
    if k not in made.num_speculative_tokens:
        yield "served.num_speculative_tokens", f"{k} is none of {list(made.num_speculative_tokens)}"


def _bench(made: Bench) -> Iterator[Problem]:
    if not made.points:
        yield "points", "it is empty: nothing was timed"
    places = [(point.batch_size, point.context_length) for point in made.points]
    if len(set(places)) < len(places):
        yield "points", "a batch and context stands there twice"
    yield from PROVENANCE.problems(made.provenance, "provenance")


def _long(name: str, values: Sequence[Any], number: int, of: str) -> Iterator[Problem]:
    if len(values) != number:
        yield (
            name,
            f"it has {len(values)} entries, {of} there are {number}"
            if of != "k"
            else (f"it has {len(values)} entries at k = {number}"),
        )


def _falls(values: Sequence[float]) -> bool:
    return all(_at_most(after, before) for before, after in itertools.pairwise(values))


def _at_most(value: float, limit: float) -> bool:
    return value <= limit + SLACK * max(1.0, abs(limit))


def _is_near(value: float, other: float) -> bool:
    return other / 2 <= value <= other * 2


def _within(name: str, ends: Interval, low: float, high: float) -> Iterator[Problem]:
    for end in ("value", "low", "high"):
        value = getattr(ends, end)
        if not low - SLACK <= value <= high + SLACK:
            yield f"{name}.{end}", f"{value:g} lies outside {low:g} to {high:g}"


def _above_0(name: str, ends: Interval | None) -> Iterator[Problem]:
    for end in ("value", "low") if ends is not None else ():
        if getattr(ends, end) <= 0:
            yield f"{name}.{end}", f"{getattr(ends, end):g} is no ratio of times"


def _is(name: str, value: float, made_of: float, by: str = "the counts") -> Iterator[Problem]:
    if not math.isclose(value, made_of, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield name, f"{value:g}; by {by} it is {made_of:g}"


_CHECKS: dict[type[Any], tuple[Callable[[Any], Iterator[Problem]], ...]] = {
    Interval: (_interval,),
    AcceptanceCounts: (_counts,),
    Slice: (_slice,),
    AcceptanceComparison: (_comparison,),
    Disagreement: (_disagreement,),
    StepSamples: (_samples,),
    ArmLatency: (_arm_latency,),
    Latency: (_latency,),
    ServedRequest: (_request,),
    Served: (_served,),
    LiveCheck: (_live,),
    SpeedPoint: (_point,),
    Check: (_check,),
    Verdict: (_verdict,),
    Analysis: (_analysis,),
    Evaluation: (_evaluation,),
    Bench: (_bench,),
}
