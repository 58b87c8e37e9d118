"""A weight that traded scale with its neighbours is recognised; one with wrong scales is not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quantdraft.fidelity import MAX_OFFSET, deviation, rescaled  # noqa: E402


def weight() -> torch.Tensor:
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(0))


def factors(*shape: int) -> torch.Tensor:
    return 0.2 + 3 * torch.rand(shape, generator=torch.Generator().manual_seed(1))


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def test_factors_of_rows_and_columns_are_found():
    own = weight()
    moved = own * factors(64, 1) * factors(1, 96)
    assert distance(moved, own) > 0.5
    assert distance(moved, rescaled(own, moved)) < 1e-3  # of 1e-2 that INT8 may cost


def test_factors_of_groups_are_not_explained_away():
    """Scales multiplied at random by [0, 2] cost 0.58; a rank of one explains little of it."""
    own = weight()
    groups = 2 * torch.rand(64, 12, generator=torch.Generator().manual_seed(2))
    wrong = own * groups.repeat_interleave(8, 1)
    assert distance(wrong, rescaled(own, wrong)) > 0.4


def test_an_unchanged_weight_stays_itself():
    assert distance(weight(), rescaled(weight(), weight())) < 1e-6


def test_errors_of_rounding_cancel_and_a_shifted_zero_point_does_not():
    own, step = weight(), 0.36
    rounded = (own / step).round() * step
    assert deviation(rounded, own).offset < 5 / (64 * 96) ** 0.5  # five standard errors
    assert deviation(rounded + step, own).offset > 0.9 > MAX_OFFSET
    assert deviation(own, own) == (0.0, 0.0)
