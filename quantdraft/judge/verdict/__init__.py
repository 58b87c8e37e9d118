"""go, no-go or inconclusive: limits as data, checks against intervals, alarms that stop a verdict.

Knows no model and no measurement, only their numbers.
"""

from quantdraft.judge.verdict.alarms import (
    acceptance_collapsed,
    control_strays,
    dtype_mismatch,
    engine_disagrees,
    forced_dtype,
    live_divergent,
    measured_alarms,
    not_quantized,
    replay_disagrees,
    served_alarms,
)
from quantdraft.judge.verdict.checks import Evidence
from quantdraft.judge.verdict.decision import decide
from quantdraft.judge.verdict.policy import Policy, load_policy, policy_of

__all__ = [
    "Evidence",
    "Policy",
    "acceptance_collapsed",
    "control_strays",
    "decide",
    "dtype_mismatch",
    "engine_disagrees",
    "forced_dtype",
    "live_divergent",
    "load_policy",
    "measured_alarms",
    "not_quantized",
    "policy_of",
    "replay_disagrees",
    "served_alarms",
]
