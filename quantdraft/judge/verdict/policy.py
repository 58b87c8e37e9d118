"""The limits a draft is judged by, from one YAML file and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantdraft.common.documents import all_problems, read_yaml_mapping
from quantdraft.errors import OptionError
from quantdraft.record import MIN_SPEEDUP, Evaluation
from quantdraft.record.verdict import OVER_AUTOREGRESSIVE, OVER_BASELINE, RATE, RATE_LOSS

# The name of the check that holds each of these limits of a policy.
CHECK_OF_LIMIT = {
    "min_speedup_over_baseline": OVER_BASELINE,
    "min_speedup_over_autoregressive": OVER_AUTOREGRESSIVE,
    "max_acceptance_rate_loss": RATE_LOSS,
    "min_acceptance_rate": RATE,
}


class Policy(BaseModel):
    """Limits of the verdict; ratios and fractions, never percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Lower end of the interval.
    min_speedup_over_baseline: float = Field(default=MIN_SPEEDUP, gt=0)
    # Else skip speculation; lower end, exclusive.
    min_speedup_over_autoregressive: float = Field(default=1.0, gt=0)
    # 2-4 points is the usual cost of INT4. These decide only where speed was not measured.
    max_acceptance_rate_loss: float = Field(default=0.04, ge=0, le=1)
    min_acceptance_rate: float = Field(default=0.50, ge=0, le=1)
    warn_acceptance_rate: float = Field(default=0.65, ge=0, le=1)
    # Alarms. A draft whose scales are lost still loads, and is never accepted.
    min_acceptance_length: float = Field(default=1.05, ge=1)
    min_length_ratio: float = Field(default=0.80, ge=0, le=1)
    max_control_deviation: float = Field(default=0.02, ge=0)
    # Rounds beyond what near-ties of the draft allow, as a share of those replayed, where
    # arithmetic is not exact (bfloat16, other kernels).
    max_replay_disagreement: float = Field(default=0.02, ge=0)


def load_policy(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Policy:
    """Return the default limits, changed by a YAML file, then by overrides (those not None).

    An unknown key or a value out of range is an OptionError that names each of them.
    """
    changes: dict[str, Any] = {}
    if path is not None:
        changes = read_yaml_mapping(path, "policy", OptionError, may_be_empty=True)
    changes |= {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        return Policy.model_validate(changes)
    except ValidationError as error:
        where = "policy" if path is None else str(path)
        raise OptionError(
            f"{where}: {all_problems(error, Policy).rstrip('.')}. "
            f"Limits: {', '.join(Policy.model_fields)}."
        ) from error


def policy_of(evaluation: Evaluation) -> Policy:
    """Return the limits that an evaluation was judged by, so that every page shows those.

    An older record has no policy: its checks hold the limits that decided, the rest are defaults.
    """
    recorded = evaluation.provenance.get("policy")
    if isinstance(recorded, dict):
        known = {name: recorded[name] for name in Policy.model_fields if name in recorded}
        with suppress(ValidationError):
            return Policy.model_validate(known)
    limits = {check.name: check.limit for check in evaluation.verdict.checks}
    found = {name: limits.get(check) for name, check in CHECK_OF_LIMIT.items()}
    return Policy(**{name: limit for name, limit in found.items() if limit is not None})
