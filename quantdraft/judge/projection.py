"""What a candidate without a kernel here might gain elsewhere: a projection, never evidence.

It supposes that memory is the only limit, so that a draft step shrinks as its bytes do. No engine
reaches that, and the verdict does not look at it.
"""

from __future__ import annotations

from quantdraft.judge import speedup
from quantdraft.record import AcceptanceComparison, Projection, SpeedPoint


def project_speed(
    point: SpeedPoint, acceptance: AcceptanceComparison, ceiling: float
) -> Projection | None:
    """The speed equation with the baseline's draft step over `ceiling`; None where not needed.

    acceptance: of both arms at the candidate's k
    ceiling: baseline bytes / candidate bytes of a draft step
    """
    k, step_ms = point.candidate_num_speculative_tokens, point.baseline_draft_step_ms
    verify_ms = point.candidate_verify_step_ms
    if point.candidate_draft_step_ms is not None or step_ms is None or verify_ms is None:
        return None
    projected_ms = step_ms / ceiling
    gain = speedup.speedup_over_baseline(
        speedup.round_ms(k, step_ms, verify_ms),
        speedup.round_ms(k, projected_ms, verify_ms),
        acceptance.baseline_length.value,
        acceptance.candidate_length.value,
    )
    return Projection(k, ceiling, projected_ms, float(gain))
