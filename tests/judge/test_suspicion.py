"""Planted contradictions in step times: each raises its alarm, and what is sound raises none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantdraft.judge.verdict.suspicion import suspicions
from quantdraft.record import ArmLatency, Latency, Roofline, StepSamples

LOADS, BLOCKS = 8, 6
ROOF = Roofline(40e9, 40e9, {})
BF16, INT4, TARGET = 2_500_000_000, 1_060_000_000, 16_000_000_000  # bytes of a step


def steps(rng: np.random.Generator, noise: float = 0.02, **ms: float) -> dict[int, StepSamples]:
    """Samples by number of new tokens: m1=84.6 is a step of one token."""
    return {
        int(name[1:]): StepSamples(
            tuple((value * np.exp(rng.normal(0, noise, LOADS * BLOCKS))).tolist())
        )
        for name, value in ms.items()
    }


def latency(noise: float = 0.02, **changes: dict[int, StepSamples]) -> Latency:
    """Llama-3.2-1B as it was measured where nothing was wrong: INT4 2.08 times of 2.36."""
    rng = np.random.default_rng(0)
    sizes = {"baseline": BF16, "control": BF16, "candidate": INT4, "target": TARGET}
    measured = {
        "baseline": steps(rng, noise, m1=84.6),
        "control": steps(rng, noise, m1=84.6),
        "candidate": steps(rng, noise, m1=40.7),
        "target": steps(rng, noise, m1=540, m2=545, m3=556, m5=580),
    } | changes
    arms = {
        name: ArmLatency(name, "bfloat16", (f"kernel_of_{name}",), 0, found, sizes[name], 0)
        for name, found in measured.items()
    }
    loads = tuple(load for load in range(LOADS) for _ in range(BLOCKS))
    return Latency("native", "cpu", 2, 1, 128, arms, roofline=ROOF, loads=loads)


def codes(found: Latency) -> list[str]:
    return [alarm.code for alarm in suspicions(found)]


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_sound_times_raise_nothing():
    assert suspicions(latency()) == ()
    assert suspicions(replace(latency(), arms={})) == ()
    assert suspicions(replace(latency(), loads=(), roofline=None)) == ()


def test_a_ratio_above_what_the_bytes_allow():
    """The baseline got float32 kernels in a disturbed trial: 163 ms, "3.45 times" of 2.36."""
    (alarm,) = suspicions(latency(baseline=steps(rng(), m1=163.0)))
    assert alarm.code == "above_byte_limit"
    assert "its bytes allow 2.358×" in alarm.message
    assert "kernel_of_baseline" in alarm.message


def test_a_baseline_much_further_from_the_bandwidth_than_its_candidate():
    """The same where blocks are too noisy for the interval to exclude the limit."""
    noisy = latency(noise=1.2, baseline=steps(rng(), noise=1.2, m1=163.0))
    assert codes(noisy) == ["baseline_far_from_bandwidth"]
    assert "reaches" in suspicions(noisy)[0].message


def test_a_verification_that_gets_cheaper_with_more_tokens():
    """Two tokens had a poor kernel: 3.40 ms, and 2.02 for three."""
    poor = steps(rng(), m1=500, m2=920, m3=546, m5=580)
    (alarm,) = suspicions(latency(target=poor))
    assert alarm.code == "verification_cheaper"
    assert "for 3 new tokens as for 2" in alarm.message


def test_a_draft_and_a_target_of_one_shape_and_format_with_different_times():
    """The same weights took 13.3 ms as target and 18.3 as draft."""
    found = latency(target=steps(rng(), m1=61.5, m2=62, m3=63))
    arms = found.arms | {"target": replace(found.arms["target"], step_bytes=BF16)}
    assert codes(replace(found, arms=arms)) == ["twins_differ"]
    equal = latency(target=steps(rng(), m1=84.0, m2=86, m3=88))
    arms = equal.arms | {"target": replace(equal.arms["target"], step_bytes=BF16)}
    assert codes(replace(equal, arms=arms)) == []


def with_one_load_at(factor: float, noise: float = 0.02) -> Latency:
    found = latency(noise=noise)
    ms = np.array(found.arms["candidate"].steps[1].samples_ms)
    ms[2 * BLOCKS : 3 * BLOCKS] *= factor
    slow = {1: StepSamples(tuple(ms.tolist()))}
    return replace(
        found, arms=found.arms | {"candidate": replace(found.arms["candidate"], steps=slow)}
    )


def test_a_load_that_disagrees_with_the_others():
    found = with_one_load_at(20.0)
    assert codes(found) == ["loads_disagree"]
    assert "load 3 of 8" in suspicions(found)[0].message


def test_a_load_of_noisy_blocks_does_not_disagree():
    assert codes(with_one_load_at(1.0, noise=0.3)) == []


def test_an_alarm_says_what_was_tried():
    found = latency(baseline=steps(rng(), m1=163.0))
    assert "chosen again" not in suspicions(found)[0].message
    again = replace(found, retried=("what the first attempt found",))
    assert "Kernels were chosen again by new trials" in suspicions(again)[0].message


@pytest.mark.parametrize("seed", range(5))
def test_false_alarms_are_rare(seed):
    """Noise of 5 % in 8 loads of 6 blocks, without anything wrong: no alarm in any of 40."""
    generator = np.random.default_rng(seed)
    for _ in range(8):
        sound = latency(
            baseline=steps(generator, 0.05, m1=84.6),
            candidate=steps(generator, 0.05, m1=40.7),
            target=steps(generator, 0.05, m1=540, m2=545, m3=556, m5=580),
        )
        assert codes(sound) == []
