"""Baseline against candidate, on the same prompts and in the same timing blocks, with intervals.

Prompts are resampled, not tokens, because tokens of one prompt are not independent; every resample
keeps both arms of a prompt together, and all arms of a timing block. Acceptance is a ratio of sums.
"""

from quantdraft.judge.comparison.disagreements import Spell, find_disagreements
from quantdraft.judge.comparison.lengths import check_paired, compare_acceptance
from quantdraft.judge.comparison.pairwise import all_pairs
from quantdraft.judge.comparison.points import grid_points, stops_paying_at
from quantdraft.judge.comparison.slices import by_context, by_domain, by_position, slice_tokens
from quantdraft.judge.comparison.speeds import best_k, speed_point, step_ratio, with_step_speedups
from quantdraft.judge.statistics.bootstrap import MIN_TIMINGS, Bootstrap
from quantdraft.judge.statistics.settling import Needed, num_prompts_to_settle, what_would_settle

__all__ = [
    "MIN_TIMINGS",
    "Bootstrap",
    "Needed",
    "Spell",
    "all_pairs",
    "best_k",
    "by_context",
    "by_domain",
    "by_position",
    "check_paired",
    "compare_acceptance",
    "find_disagreements",
    "grid_points",
    "num_prompts_to_settle",
    "slice_tokens",
    "speed_point",
    "step_ratio",
    "stops_paying_at",
    "what_would_settle",
    "with_step_speedups",
]
