"""docs/claims.md holds the numbers that the formulas give, and no others."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantdraft.cli import main
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import alpha_from_length, closed_form_length
from quantdraft.workflows.plan.curve import plan_curve
from quantdraft.workflows.plan.plan import PlanSettings, plan

PAGE = (Path(__file__).parent.parent / "docs" / "claims.md").read_text(encoding="utf-8")
KS = tuple(range(1, 17))
COSTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for line in (PAGE + "\n" + README).splitlines() if line.startswith("quantdraft plan ")
]


def best(alpha: float, cost: float) -> str:
    return f"{plan_curve(alpha, cost, KS).best.leviathan:.2f}×"


def allowed_loss(alpha: float, cost: float, faster: float) -> float:
    """Points of α at which a draft so much faster is only as fast as before, at the old best k."""
    at = plan_curve(alpha, cost, KS).best
    k, length = at.num_speculative_tokens, at.mean_acceptance_length
    needed = speedup.break_even_length(k * cost + 1, k * cost / faster + 1, length)
    return 100 * (alpha - alpha_from_length(needed, k))


@pytest.mark.parametrize("cost", COSTS)
def test_the_best_k_of_every_row(cost: float) -> None:
    ks = [
        plan_curve(alpha, cost, KS).best.num_speculative_tokens for alpha in (0.6, 0.75, 0.85, 0.95)
    ]
    assert f"| {cost:g} | " + " | ".join(map(str, ks)) + " |" in PAGE


@pytest.mark.parametrize("cost", COSTS[1:-1])
def test_what_a_faster_draft_may_lose(cost: float) -> None:
    losses = [f"{allowed_loss(alpha, cost, 1.5):.1f}" for alpha in (0.6, 0.75, 0.85)]
    assert f"| {cost:g} | " + " | ".join(losses) + " |" in PAGE


def test_the_papers_table() -> None:
    for alpha, k in ((0.6, 2), (0.7, 3), (0.8, 2), (0.8, 5), (0.9, 2), (0.9, 10)):
        arithmetic, speed = speedup.operations_factor(alpha, k), speedup.leviathan(alpha, k, 0.0)
        assert f"| {alpha} | {k} | {arithmetic:.2f}× | {speed:.2f}× |" in PAGE


def test_the_numbers_in_the_sentences() -> None:
    assert f"α = 0.65 still gives {best(0.65, 0.05)} at c = 0.05 and {best(0.65, 0.2)}" in PAGE
    assert f"α = 0.50 still gives {best(0.5, 0.05)} at c = 0.05" in PAGE
    assert speedup.leviathan(0.9, 1, 0.9) == pytest.approx(1.0)
    factor = speedup.operations_factor(0.75, 4, 0.1)
    assert f"computes {factor:.2f}× as much: {1 / factor:.2f}× the speed" in PAGE
    assert f"gives {best(0.75, 1 / 10)}, a 30 times smaller one {best(0.75, 1 / 30)}" in PAGE
    assert f"worth {best(0.65, 0.05)} → {best(0.7, 0.05)} at c = 0.05" in PAGE
    assert f"10 points {best(0.75, 0.05)}" in PAGE
    thumb, theorem = speedup.rule_of_thumb(0.75, 16, 0.05), speedup.leviathan(0.75, 16, 0.05)
    assert f"promises {thumb:.2f}× at k = 16, where the theorem gives {theorem:.2f}×" in PAGE
    for k in (4, 8):
        assert f"{(closed_form_length(0.8, k) - 1) / k:.2f} for k = {k}" in PAGE


def test_a_draft_three_times_smaller_may_lose_so_much() -> None:
    wanted = plan_curve(0.75, 1 / 10, KS).best.leviathan
    assert plan_curve(0.634, 1 / 30, KS).best.leviathan < wanted
    assert plan_curve(0.635, 1 / 30, KS).best.leviathan > wanted


def test_what_the_bytes_of_llama_1b_allow() -> None:
    made = plan(PlanSettings(0.75, target_config="llama-3.1-8b", draft_config="llama-3.2-1b"))
    assert made.prediction is not None
    saved = {
        row.recipe: 1 - 1 / row.ceiling
        for row in made.prediction.recipes
        if row.ceiling is not None
    }
    assert f"{100 * saved['int4']:.0f} % (INT4)" in PAGE
    assert f"{100 * saved['fp8']:.0f} % (FP8, INT8)" in PAGE
    assert saved["int8"] == pytest.approx(saved["fp8"], abs=0.005)


def test_published_figures() -> None:
    kimi, bytes_fell, lost = 5.70 / 3.29, 0.19, 100 * (0.5166 - 0.5084)
    assert (
        f"{kimi:.2f} times faster, and the bytes fell by 19 %: {1 / (1 - bytes_fell):.2f}" in PAGE
    )
    assert f"{lost:.1f} points (W4A16 DSpark for GLM-5.2" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_every_plan_command_of_the_documentation_runs(command: str) -> None:
    result = CliRunner().invoke(main, shlex.split(command, comments=True)[1:])
    assert result.exit_code == 0
    assert "rediction" in result.output


def test_the_documentation_shows_plan_commands() -> None:
    assert len(COMMANDS) >= 2
