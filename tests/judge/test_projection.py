"""A projection is the speed equation with the bytes' ratio in the place of a measured one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantdraft.judge.speedup import project_speed
from tests.example_evaluation import evaluation as example_evaluation


def test_a_projection_is_the_speed_equation_with_fewer_bytes():
    evaluation = example_evaluation()
    k = evaluation.operating_point.candidate_num_speculative_tokens
    acceptance = next(a for a in evaluation.acceptance if a.num_speculative_tokens == k)
    step, verify = 2.0, 10.0
    point = replace(
        evaluation.operating_point,
        baseline_draft_step_ms=step,
        candidate_verify_step_ms=verify,
        candidate_draft_step_ms=None,
    )
    projected = project_speed(point, acceptance, ceiling=4.0)
    assert projected is not None
    assert projected.candidate_draft_step_ms == 0.5
    lengths = acceptance.candidate_length.value / acceptance.baseline_length.value
    expected = (k * step + verify) / (k * 0.5 + verify) * lengths
    assert projected.speedup_over_baseline == pytest.approx(expected)


def test_nothing_is_projected_where_speed_was_measured_or_the_baseline_was_not():
    evaluation = example_evaluation()
    point, acceptance = evaluation.operating_point, evaluation.acceptance[0]
    assert project_speed(replace(point, candidate_draft_step_ms=1.0), acceptance, 2.0) is None
    bare = replace(point, baseline_draft_step_ms=None, candidate_draft_step_ms=None)
    assert project_speed(bare, acceptance, 2.0) is None
