"""A weight that traded scale with its neighbours is recognised; one with wrong scales is not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from quantdraft.quantize.proof.weights import (  # noqa: E402
    MAX_OFFSET,
    measure_deviation,
    rescale_to,
    scale_misfit,
)


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
    assert distance(moved, rescale_to(own, moved)) < 1e-3  # of 1e-2 that INT8 may cost


def test_factors_of_groups_are_not_explained_away():
    """Scales multiplied at random by [0, 2] cost 0.58; a rank of one explains little of it."""
    own = weight()
    groups = 2 * torch.rand(64, 12, generator=torch.Generator().manual_seed(2))
    wrong = own * groups.repeat_interleave(8, 1)
    assert distance(wrong, rescale_to(own, wrong)) > 0.4


def test_an_unchanged_weight_stays_itself():
    assert distance(weight(), rescale_to(weight(), weight())) < 1e-6


def test_errors_of_rounding_cancel_and_a_shifted_zero_point_does_not():
    own, step = weight(), 0.36
    rounded = (own / step).round() * step
    assert measure_deviation(rounded, own).offset < 5 / (64 * 96) ** 0.5  # five standard errors
    assert measure_deviation(rounded + step, own).offset > 0.9 > MAX_OFFSET
    assert measure_deviation(own, own) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_misfit_of_rounding_is_its_error_squared_and_of_wrong_scales_the_error_itself():
    groups = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    step = groups.abs().amax(1, keepdim=True) / 7.5
    rounded = (groups / step).round() * step
    honest = measure_deviation(rounded, groups, 128)
    # The best factor is 1 - e^2 with a standard deviation of e / sqrt(128).
    assert honest.misfit == pytest.approx(
        (honest.error**4 + honest.error**2 / 128) ** 0.5, rel=0.25
    )
    assert honest.misfit < honest.misfit_limit / 2
    swapped = measure_deviation(rounded / step * step.roll(1, 0), groups, 128)
    assert swapped.error < 0.5  # rounding could cost as much
    assert swapped.misfit > 1.5 * swapped.misfit_limit


def test_a_run_of_zeros_has_no_factor():
    assert scale_misfit(torch.zeros(2, 8), torch.ones(2, 8)) == 0.0


def test_a_layer_of_zeros_is_an_exact_copy_of_itself():
    """As of blocks that are added to a model, whose last matrix begins at 0."""
    zeros = torch.zeros(64, 96)
    assert measure_deviation(zeros, zeros) == (0.0, 0.0, 0.0)
    assert measure_deviation(weight(), zeros)[0] == float("inf")
