"""plan: the curve of speedup by k, and the byte model where the pair's configs are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quantdraft.errors import OptionError
from quantdraft.planning.curve import Curve, plan_curve
from quantdraft.planning.devices import load_device
from quantdraft.planning.pair import read_model, require_full_precision
from quantdraft.planning.prediction import Prediction, predict
from quantdraft.proposals import ALL_KS


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the user asked for; names and defaults are the command line's."""

    acceptance_rate: float
    draft_cost: float | None = None
    ks: tuple[int, ...] = ALL_KS
    target_config: str | None = None
    draft_config: str | None = None
    device: str | None = None
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The curve, and the prediction for a pair where one was given."""

    curve: Curve
    prediction: Prediction | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `kind` says of every number here what it is."""
        best = self.curve.best
        return {
            "schema_version": 1,
            "kind": "prediction",
            "acceptance_rate": self.curve.acceptance_rate,
            "draft_cost": self.curve.draft_cost,
            "best_k": best.num_speculative_tokens,
            "best_speedup": best.leviathan,
            "best_k_by_rule_of_thumb": self.curve.best_by_rule_of_thumb.num_speculative_tokens,
            "points": [asdict(point) for point in self.curve.points],
            "pair": None if self.prediction is None else asdict(self.prediction),
        }


def plan(settings: PlanSettings) -> Plan:
    """The closed forms at the given cost, or at the cost that the configs' bytes give.

    Raises OptionError for options that contradict each other or are out of range.
    """
    _check(settings)
    if settings.target_config is None or settings.draft_config is None:
        assert settings.draft_cost is not None
        return Plan(plan_curve(settings.acceptance_rate, settings.draft_cost, settings.ks), None)
    device = None if settings.device is None else load_device(settings.device)
    target = read_model(settings.target_config, "--target-config")
    draft = read_model(settings.draft_config, "--draft-config")
    require_full_precision(draft, settings.draft_config)
    prediction = predict(
        target,
        draft,
        settings.acceptance_rate,
        settings.ks,
        device=device,
        context_length=settings.context_length,
    )
    cost = prediction.baseline.draft_cost
    assert cost is not None
    return Plan(plan_curve(settings.acceptance_rate, cost, settings.ks), prediction)


def _check(settings: PlanSettings) -> None:
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
            "target, as in 0.05), or --target-config and --draft-config."
        )
    if not has_pair and settings.device is not None:
        raise OptionError("--device needs --target-config and --draft-config: it times bytes.")
    if settings.context_length < 0:
        raise OptionError(f"--context-length {settings.context_length} must be at least 0.")
    if not has_pair and settings.context_length:
        raise OptionError("--context-length needs --target-config and --draft-config.")
