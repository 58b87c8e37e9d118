"""Diagnoses of records whose answer is known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantdraft.judge.advice.acceptance import alpha_of
from quantdraft.judge.advice.all import diagnoses, explained, explaining
from quantdraft.judge.advice.commands import next_command
from quantdraft.judge.advice.limits import side, state_if
from quantdraft.judge.comparison.slices import Term, contrast
from quantdraft.judge.statistics.bootstrap import Bootstrap
from quantdraft.judge.verdict.policy import Policy
from quantdraft.record import (
    ArmLatency,
    Decision,
    Diagnosis,
    Evaluation,
    Interval,
    Latency,
    PromptReplay,
    Slice,
    StepSamples,
)
from tests.example_evaluation import acceptance, evaluation, rounds, unmeasured
from tests.pages import render_terminal

NUM_PROMPTS = 20


def codes(found: Evaluation, state: str = "found") -> list[str]:
    return [line.code for line in diagnoses(found) if line.state == state]


def only(found: Evaluation, code: str) -> Diagnosis:
    return next(line for line in diagnoses(found) if line.code == code)


def with_alpha(alpha: float, half_width: float, baseline: float | None = None) -> Evaluation:
    """The example at k = 4 with lengths of independent acceptance at these rates."""

    def ends(middle: float) -> Interval:
        values = (middle, middle - half_width, middle + half_width)
        return Interval(*(rounds(value, 4).mean_acceptance_length for value in values))

    made = evaluation()
    at_4 = replace(
        acceptance(4),
        candidate_length=ends(alpha),
        baseline_length=ends(alpha if baseline is None else baseline),
    )
    rows = tuple(at_4 if r.num_speculative_tokens == 4 else r for r in made.acceptance)
    return replace(made, acceptance=rows)


def part(name: str, kept: float, baseline: float = 0.7, num_prompts: int = NUM_PROMPTS) -> Slice:
    """Every prompt was asked 50 times and kept the same share: the interval has no width."""
    asked = (50.0,) * num_prompts
    return Slice(
        name=name,
        num_prompts=num_prompts,
        num_tokens=50 * num_prompts,
        baseline_conditional_acceptance=baseline,
        candidate_conditional_acceptance=kept,
        prompts=tuple(range(num_prompts)),
        baseline_asked=asked,
        baseline_kept=tuple(50 * baseline for _ in asked),
        candidate_asked=asked,
        candidate_kept=tuple(50 * kept for _ in asked),
    )


def uneven(name: str, kept: float, spread: float, seed: int) -> Slice:
    """The same mean, but prompts differ by much."""
    shares = np.random.default_rng(seed).normal(kept, spread, NUM_PROMPTS).clip(0, 1)
    return replace(part(name, kept), candidate_kept=tuple((50 * shares).tolist()))


def test_alpha_does_not_depend_on_k() -> None:
    for k in (1, 4, 8, 16):
        length = rounds(0.8, k).mean_acceptance_length
        assert alpha_of(Interval(length, length, length), k).value == pytest.approx(0.8)


def test_a_limit_that_the_interval_touches_is_in_doubt() -> None:
    assert side(Interval(0.4, 0.3, 0.5), 0.5) == "across"
    assert state_if(Interval(0.4, 0.3, 0.49), 0.5, "below") == "found"
    assert state_if(Interval(0.6, 0.51, 0.7), 0.5, "below") is None
    assert state_if(Interval(0.5, 0.45, 0.55), 0.5, "below") == "cannot tell"


def test_acceptance_bands_fire_where_the_interval_supports_them() -> None:
    assert not {"diverged", "wrong-draft"} & set(codes(with_alpha(0.75, 0.02)))
    assert "wrong-draft" in codes(with_alpha(0.60, 0.02))
    assert "diverged" not in codes(with_alpha(0.60, 0.02))
    below = codes(with_alpha(0.40, 0.02))
    assert "diverged" in below
    assert "wrong-draft" not in below  # said once
    doubtful = with_alpha(0.64, 0.03)
    assert "wrong-draft" in codes(doubtful, "cannot tell")
    assert "prompts would tell" in only(doubtful, "wrong-draft").action


def test_a_low_acceptance_blames_the_recipe_only_where_the_baseline_is_above() -> None:
    assert "quantdraft select" in (only(with_alpha(0.60, 0.02), "wrong-draft").command or "")
    recipe = only(with_alpha(0.60, 0.02, baseline=0.75), "wrong-draft")
    assert "it is the recipe" in recipe.action
    assert "quantdraft check" in (only(with_alpha(0.40, 0.02), "diverged").command or "")


def with_speedup(made: Evaluation, ends: Interval) -> Evaluation:
    return replace(
        made, operating_point=replace(made.operating_point, speedup_over_autoregressive=ends)
    )


def test_high_acceptance_without_a_speedup_means_a_dear_draft() -> None:
    slow, doubtful = Interval(0.95, 0.93, 0.97), Interval(1.0, 0.97, 1.03)
    high, low = with_alpha(0.95, 0.01), with_alpha(0.85, 0.01)
    assert "draft-too-dear" in codes(with_speedup(high, slow))
    assert "draft-too-dear" in codes(with_speedup(high, doubtful), "cannot tell")
    assert "draft-too-dear" not in codes(with_speedup(low, slow))
    assert "draft-too-wrong" in codes(with_speedup(low, slow))
    assert "draft-too-dear" not in codes(high)  # it is twice as fast as the target


def thirds(first: float, last: float, before: tuple[float, float] = (0.7, 0.7)) -> Evaluation:
    parts = (part("first third", first, before[0]), part("last third", last, before[1]))
    return replace(evaluation(), by_position=parts)


def test_early_and_late_rejections() -> None:
    early, late = thirds(0.6, 0.7), thirds(0.7, 0.6)
    assert "early-rejections" in codes(early)
    assert "late-rejections" in codes(late)
    assert not {"early-rejections", "late-rejections"} & {
        d.code for d in diagnoses(thirds(0.7, 0.72))
    }
    observed = only(early, "early-rejections").observed
    assert observed is not None
    assert observed.value == pytest.approx(0.1)


def test_the_recipe_is_blamed_only_for_what_the_baseline_does_not_show() -> None:
    recipe = only(thirds(0.6, 0.7), "early-rejections")
    assert "it is the recipe's, which adds +10.0 points" in recipe.seen
    assert "the baseline's do not" in recipe.finding
    assert "--recipe int8" in (recipe.command or "")
    pair = only(thirds(0.6, 0.7, before=(0.6, 0.7)), "early-rejections")
    assert "the pair's or the traffic's, not the recipe's" in pair.seen
    assert "recipe" not in pair.finding
    assert "quantdraft check" in (pair.command or "")
    both = only(thirds(0.6, 0.7, before=(0.65, 0.7)), "early-rejections")
    assert "the pair's or the traffic's; the recipe adds +5.0 points" in both.seen
    less = only(thirds(0.6, 0.7, before=(0.5, 0.7)), "early-rejections")
    assert "not the recipe's" in less.seen  # the baseline shows more of it
    noisy = (uneven("first third", 0.6, 0.1, 1), part("last third", 0.7, baseline=0.729))
    doubtful = replace(noisy[0], baseline_kept=noisy[0].candidate_kept)
    unknown = only(replace(evaluation(), by_position=(doubtful, noisy[1])), "early-rejections")
    assert unknown.finding.startswith("rejections fall early")


@pytest.mark.parametrize(("k", "words"), [(1, "its 1 step takes"), (4, "its 4 steps take")])
def test_one_step_is_no_steps(k: int, words: str) -> None:
    slow = with_speedup(with_alpha(0.95, 0.01), Interval(0.95, 0.93, 0.97))
    point = replace(slow.operating_point, candidate_num_speculative_tokens=k)
    lines = diagnoses(replace(slow, operating_point=point))
    seen = " ".join(line.seen for line in lines)
    assert words in seen
    assert "1 steps" not in seen


def test_a_report_has_one_limit_for_a_dear_draft_and_says_it_once() -> None:
    made = with_speedup(with_alpha(0.88, 0.005), Interval(0.95, 0.93, 0.97))
    explained_ = explained(made, Policy())
    text = " ".join(render_terminal(explained_).split())
    assert "85 %" not in text
    assert "α under 90 % without a speedup over 1.000×" in text
    assert "too dear" not in text


def test_drafting_over_half_of_a_round_is_too_dear_whatever_is_accepted() -> None:
    made = with_speedup(with_alpha(0.75, 0.01), Interval(0.95, 0.93, 0.97))
    point = replace(made.operating_point, candidate_draft_step_ms=3.0)
    found = only(replace(made, operating_point=point), "draft-too-dear")
    assert "drafting over 50 % of a round" in found.limit
    assert "its 4 steps take 67 % of a round" in found.seen  # 12 / (12 + 5.868)


def slower(needed: float, saving: Interval) -> Evaluation:
    made = evaluation()
    point = replace(
        made.operating_point,
        speedup_over_baseline=Interval(0.97, 0.96, 0.98),
        break_even_length=needed,
        draft_latency_saving=saving,
    )
    verdict = replace(made.verdict, decision="no-go")
    return replace(made, operating_point=point, verdict=verdict)


def test_a_slower_candidate_is_told_what_it_would_have_to_emit() -> None:
    found = only(slower(3.1, Interval(0.1, 0.08, 0.12)), "slower-than-baseline")
    assert "it must emit 3.10 tokens a round at k = 4" in found.limit
    assert "a milder recipe" in found.action
    longer = only(slower(5.5, Interval(-0.4, -0.5, -0.3)), "slower-than-baseline")
    assert "5 is the most there is, so no acceptance is enough" in longer.limit
    assert "takes 1.40 times as long" in longer.action


def test_a_verdict_names_the_diagnoses_it_rests_on_and_a_go_rests_on_none() -> None:
    made = explained(slower(3.1, Interval(0.1, 0.08, 0.12)), Policy())
    assert made.verdict.rests_on == ("slower-than-baseline",)
    assert made.verdict.advice == tuple(line.sentence for line in explaining(made))
    assert explained(evaluation(), Policy()).verdict.rests_on == ()
    first = render_terminal(made).partition("Check  ")[0]
    assert "The candidate is slower than the baseline draft" in " ".join(first.split())


def test_without_timings_k_by_acceptance_is_a_rule_of_thumb() -> None:
    line = only(unmeasured(), "k-unknown")
    assert line.state == "cannot tell"
    assert "a rule of thumb for this α is k = 3 or 4" in line.limit  # α = 73.1 %
    assert "speed was not measured" in line.seen


def test_an_interval_across_the_limit_cannot_tell_early_from_late() -> None:
    parts = (uneven("first third", 0.66, 0.2, 1), uneven("last third", 0.72, 0.2, 2))
    thirds_ = [
        line
        for line in diagnoses(replace(evaluation(), by_position=parts))
        if "rejections" in line.code
    ]
    assert [line.state for line in thirds_] == ["cannot tell"]


def test_a_record_without_counts_says_so_instead_of_guessing() -> None:
    line = only(evaluation(), "early-rejections")
    assert line.state == "cannot tell"
    assert "does not say what each prompt kept" in line.seen
    assert line.observed is None


def test_acceptance_that_falls_with_context() -> None:
    contexts = (part("128-255 tokens", 0.8), part("1024-2047 tokens", 0.6))
    falling = replace(evaluation(), by_context=contexts)
    assert "context-falls" in codes(falling)
    assert "context-falls" not in codes(replace(evaluation(), by_context=contexts[::-1]))
    few = (contexts[0], part("1024-2047 tokens", 0.6, num_prompts=3))
    assert "context-falls" not in {d.code for d in diagnoses(replace(evaluation(), by_context=few))}


def test_the_weakest_domain_is_named_with_its_difference() -> None:
    domains = (part("code", 0.8), part("prose", 0.6))
    line = only(replace(evaluation(), by_domain=domains), "weak-domain")
    assert line.state == "found"
    assert "'prose'" in line.finding
    assert line.observed is not None
    assert line.observed.value == pytest.approx(0.2)


def arm(name: str, **steps: float) -> ArmLatency:
    samples = {int(m[1:]): StepSamples((ms,) * 21) for m, ms in steps.items()}
    return ArmLatency(name, "float32", ("k",), 1, samples)


def timed(batch_size: int, draft_ms: float, target_ms: float, per_token_ms: float) -> Latency:
    widths = {f"m{m}": target_ms + per_token_ms * (m - 1) for m in range(1, 8)}
    arms = {name: arm(name, m1=draft_ms) for name in ("baseline", "candidate", "control")}
    return Latency("native", "cpu", 2, batch_size, 512, {**arms, "target": arm("target", **widths)})


def with_curve(alpha: float, latency: Latency, *grid: Latency) -> Evaluation:
    """Equal prompts of that independent acceptance, and steps without noise."""
    from quantdraft.judge.comparison.points import replayed_of
    from quantdraft.judge.comparison.speeds import best_k, speed_point

    made = evaluation()
    ks = made.num_speculative_tokens
    counts = [rounds(alpha, k) for k in ks]
    num_drafts = tuple(126 / each.mean_acceptance_length for each in counts)
    accepted = tuple(126 - drafts for drafts in num_drafts)
    prompts = tuple(
        PromptReplay(f"p{at}", "code", 100, 126, num_drafts, num_drafts, accepted, accepted)
        for at in range(NUM_PROMPTS)
    )
    made = replace(made, prompts=prompts, latency=latency, grid=grid)
    arms = replayed_of(made, "baseline"), replayed_of(made, "candidate")
    points = tuple(speed_point(*arms, latency, baseline_k=k, candidate_k=k) for k in ks)
    return replace(made, equal_k=points, best_k=best_k(points))


def test_k_is_judged_by_the_measured_curve() -> None:
    """c = 0.5 and alpha = 0.6: k = 1 is best (1.6 / 1.5), and k = 4 takes 1.387 times as long."""
    dear = with_curve(0.6, timed(1, 5.0, 10.0, 0.0))
    line = only(dear, "k-too-high")
    length = (1 - 0.6**5) / 0.4
    assert dear.best_k["candidate"] == 1
    assert line.observed is not None
    assert line.observed.value == pytest.approx((3.0 / length) / (1.5 / 1.6))
    assert line.action == "serve with k = 1"


def test_a_best_k_at_the_end_of_the_range_is_not_known_to_be_the_best() -> None:
    cheap = with_curve(0.95, timed(1, 0.1, 10.0, 0.0))
    assert cheap.best_k["candidate"] == 6
    assert "k-too-low" in codes(cheap)  # k = 4, the usual one
    assert any("highest of them, 6" in line.seen for line in diagnoses(cheap))


def test_speculation_is_skipped_from_the_batch_at_which_it_stops_paying() -> None:
    """At batch 32 each further token costs half a step: k = 1 takes 1.55 steps for 1.6 tokens."""
    pays, costs = timed(1, 0.5, 10.0, 0.0), timed(32, 0.5, 10.0, 8.0)
    line = only(with_curve(0.6, pays, pays, costs), "skip-speculation")
    assert line.state == "found"
    assert "batch 32" in line.finding
    assert "from batch 32 on" in line.action
    assert line.observed is not None
    assert line.observed.value == pytest.approx(1.6 / 1.85)  # k = 1: (0.5 + 18) / 10


def test_one_timed_batch_cannot_tell_of_others() -> None:
    pays = timed(1, 0.5, 10.0, 0.0)
    alone = with_curve(0.6, pays)
    assert "batch-unknown" in codes(alone, "cannot tell")
    assert "skip-speculation" not in {line.code for line in diagnoses(alone)}


def test_nothing_is_said_of_speed_where_none_was_measured() -> None:
    speedless = {line.code for line in diagnoses(unmeasured())}
    assert not speedless & {"k-too-high", "k-too-low", "draft-too-dear"}


def test_what_was_found_comes_before_what_cannot_be_told() -> None:
    states = [line.state for line in diagnoses(with_alpha(0.60, 0.02))]
    assert states == sorted(states, reverse=True)  # "found" after "cannot tell" in the alphabet


def test_every_line_has_number_limit_source_and_next_step() -> None:
    for line in diagnoses(with_alpha(0.60, 0.02)):
        assert line.seen
        assert line.limit
        assert line.source
        assert line.action
        assert line.sentence.count("\n") == 0


def test_a_terminal_shows_diagnoses_in_its_width() -> None:
    shown = render_terminal(with_alpha(0.60, 0.02))
    part_ = shown.split("── Diagnosis ")[1].split("\n── ")[0]
    assert "This is probably the wrong draft" in part_
    assert "60.0 %" in part_
    assert max(map(len, part_.splitlines()[1:])) <= 100


def test_a_contrast_covers_the_truth_as_often_as_it_says() -> None:
    """Simulated prompts: 95 % intervals cover in 400 runs within four standard errors of 95 %."""
    rng = np.random.default_rng(0)
    hits, num_runs = 0, 400
    for run in range(num_runs):
        level = rng.beta(14, 6, 24)
        kept = [rng.binomial(40, np.clip(level + shift, 0, 1)) for shift in (0.0, -0.05)]
        parts = [
            replace(
                part(name, 0.5, num_prompts=24),
                candidate_asked=(40.0,) * 24,
                candidate_kept=tuple(map(float, values)),
            )
            for name, values in zip(("one", "other"), kept, strict=True)
        ]
        terms = [Term(1.0, parts[0], "candidate"), Term(-1.0, parts[1], "candidate")]
        ends = contrast(terms, Bootstrap(num_resamples=500, seed=run))
        assert ends is not None
        hits += ends.low <= 0.05 <= ends.high
    error = (0.95 * 0.05 / num_runs) ** 0.5
    assert abs(hits / num_runs - 0.95) < 4 * error


def test_the_next_command_follows_the_verdict() -> None:
    """A go is exported; else the diagnosis has a command, or a milder recipe or more data helps."""
    go = evaluation()
    assert next_command(go, "runs/int8").split()[:2] == ["quantdraft", "export"]
    assert "--engine vllm --target " in next_command(go, "runs/int8")
    assert "--run runs/int8 -o " in next_command(go, "runs/int8")

    def other(decision: Decision, to_settle: str | None = None) -> str:
        verdict = replace(go.verdict, decision=decision, to_settle=to_settle)
        return next_command(replace(go, verdict=verdict, analysis=None), "runs/int8")

    assert other("no-go").startswith("quantdraft apply --recipe int8 --draft ")
    assert other("inconclusive", "about 130 prompts (now 32)").startswith("quantdraft capture ")
    untimed = replace(
        go,
        latency=replace(go.latency, arms={}),
        verdict=replace(go.verdict, decision="inconclusive"),
    )
    timed_next = next_command(untimed, "runs/int8")  # whatever the diagnosis says of the acceptance
    assert timed_next.startswith("quantdraft evaluate ")
    assert timed_next.endswith(" -o runs/int8-timed")
    again = other("inconclusive", "longer timing")
    assert again.startswith("quantdraft evaluate ")
    assert again.endswith("--latency-seconds 60 -o runs/int8-again")
