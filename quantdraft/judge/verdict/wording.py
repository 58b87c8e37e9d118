"""Numbers as a reader wants them. Fractions become percent here and nowhere else."""

from __future__ import annotations

from quantdraft.record import Interval


def percent(fraction: float) -> str:
    """0.0312 as "3.1 %"."""
    return f"{100 * fraction:.1f} %"


def signed(fraction: float) -> str:
    """-0.031 as "−3.1", 0.02 as "+2.0": percent without the sign."""
    points = round(100 * fraction, 1) + 0.0  # + 0.0: no negative zero
    return f"{'−' if points < 0 else '+'}{abs(points):.1f}"


def faster(speedup: Interval, than: str) -> str:
    """1.03 as "3.0 % faster than the bf16 draft (95 % interval +2.1 to +3.9 %)"."""
    word = "slower" if speedup.value < 1 else "faster"
    ends = f"{signed(speedup.low - 1)} to {signed(speedup.high - 1)} %"
    return f"{percent(abs(speedup.value - 1))} {word} than {than} (95 % interval {ends})"


def times(speedup: Interval) -> str:
    """1.84 as "1.84 × (1.80 to 1.88)"."""
    return f"{speedup.value:.2f} × ({speedup.low:.2f} to {speedup.high:.2f})"
