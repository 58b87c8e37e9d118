"""plan: the curve of speedup by k, and the byte model where the pair's configs are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from quantdraft.errors import OptionError
from quantdraft.judge.acceptance import alpha_from_rate
from quantdraft.record.terms import ALL_KS, MAX_K
from quantdraft.workflows.plan.curve import Curve, plan_curve
from quantdraft.workflows.plan.devices import load_device
from quantdraft.workflows.plan.pair import read_model, require_full_precision
from quantdraft.workflows.plan.prediction import Prediction, predict


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the user asked for; names and defaults are the command line's."""

    alpha: float | None = None  # acceptance per token asked for
    draft_cost: float | None = None
    acceptance_rate: float | None = None  # or accepted / proposed, as engines print it
    measured_k: int | None = None  # the k at which that was counted; None: the only one of `ks`
    ks: tuple[int, ...] = ALL_KS
    target_config: str | None = None
    draft_config: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipes that have the field
    device: str | None = None
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class CountedRate:
    """Accepted / proposed as an engine counted it, at the k it ran with."""

    acceptance_rate: float
    num_speculative_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The curve, and the prediction for a pair where one was given."""

    curve: Curve
    prediction: Prediction | None
    counted: CountedRate | None = None  # what α was computed from, where it was not given

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `kind` says of every number here what it is."""
        best = self.curve.best
        return {
            "schema_version": 2,
            "kind": "prediction",
            "alpha": self.curve.alpha,
            "counted": None if self.counted is None else asdict(self.counted),
            "draft_cost": self.curve.draft_cost,
            "best_k": best.num_speculative_tokens,
            "best_speedup": best.leviathan,
            "best_k_by_rule_of_thumb": self.curve.best_by_rule_of_thumb.num_speculative_tokens,
            "points": [asdict(point) for point in self.curve.points],
            "pair": None if self.prediction is None else asdict(self.prediction),
        }


def plan(settings: PlanSettings) -> Plan:
    """Compute the closed forms at the given cost, or at the cost that the configs' bytes give.

    Raises OptionError for options that contradict each other or are out of range.
    """
    _check(settings)
    alpha, counted = _alpha(settings)
    if settings.target_config is None or settings.draft_config is None:
        assert settings.draft_cost is not None
        return Plan(plan_curve(alpha, settings.draft_cost, settings.ks), None, counted)
    device = None if settings.device is None else load_device(settings.device)
    target = read_model(settings.target_config, "--target-config")
    draft = read_model(settings.draft_config, "--draft-config")
    require_full_precision(draft, settings.draft_config)
    prediction = predict(
        target,
        draft,
        alpha,
        settings.ks,
        device=device,
        context_length=settings.context_length,
        changes=settings.changes,
    )
    cost = prediction.baseline.draft_cost
    assert cost is not None
    return Plan(plan_curve(alpha, cost, settings.ks), prediction, counted)


def _alpha(settings: PlanSettings) -> tuple[float, CountedRate | None]:
    """Return α as it was given, or from the acceptance rate and the k at which that was counted."""
    if settings.alpha is not None:
        return settings.alpha, None
    rate, k = settings.acceptance_rate, settings.measured_k
    assert rate is not None
    if k is None and len(settings.ks) == 1:
        k = settings.ks[0]
    if k is None:
        raise OptionError(
            f"--acceptance-rate {rate:g}: accepted / proposed falls with k. Say at which it was "
            "counted, as in --measured-k 4; or give --alpha, the acceptance per token asked for."
        )
    if not 0 <= rate <= 1:
        raise OptionError(
            f"--acceptance-rate {rate:g}: it is accepted / proposed, in 0..1. Write 0.75 for 75 %."
        )
    if not 1 <= k <= MAX_K:
        raise OptionError(f"--measured-k {k}: it lies in 1..{MAX_K}.")
    return alpha_from_rate(rate, k), CountedRate(rate, k)


def _check(settings: PlanSettings) -> None:
    _check_acceptance(settings)
    configs = settings.target_config, settings.draft_config
    if (configs[0] is None) != (configs[1] is None):
        missing = "--draft-config" if configs[1] is None else "--target-config"
        raise OptionError(f"{missing} is missing: the byte model needs both models of the pair.")
    has_pair = configs[0] is not None
    if has_pair and settings.draft_cost is not None:
        raise OptionError(
            "--draft-cost and the configs say the same thing twice: the cost follows from their "
            "bytes. Leave one of them out."
        )
    if not has_pair and settings.draft_cost is None:
        raise OptionError(
            "what does a draft step cost? Give --draft-cost (a draft step over a step of the "
            "target, as in 0.05; 0 for n-grams), or --target-config and --draft-config."
        )
    if not has_pair and settings.device is not None:
        raise OptionError("--device needs --target-config and --draft-config: it times bytes.")
    if not has_pair and settings.changes:
        raise OptionError("--set needs --target-config and --draft-config: it changes recipes.")
    if settings.context_length < 0:
        raise OptionError(f"--context-length {settings.context_length} must be at least 0.")
    if not has_pair and settings.context_length:
        raise OptionError("--context-length needs --target-config and --draft-config.")


def _check_acceptance(settings: PlanSettings) -> None:
    if (settings.alpha is None) == (settings.acceptance_rate is None):
        raise OptionError(
            "give one of --alpha (acceptance per token asked for) and --acceptance-rate (accepted "
            "/ proposed, as engines print it)."
        )
    if settings.measured_k is not None and settings.acceptance_rate is None:
        raise OptionError("--measured-k belongs to --acceptance-rate: α does not depend on k.")
