"""Why an arm is left out: from what a kernel, a recording or a driver raised."""

from __future__ import annotations

import pytest
import torch

from quantdraft.errors import EngineError, NoKernelError, OptionError
from quantdraft.measure.latency.faults import MAX_REASON, arm_fault

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def failed_recording() -> Exception:
    """An error as `torch.cuda.graph` raises it: its end hides what happened inside."""
    try:
        try:
            raise RuntimeError("a host wait in a capture")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        return error


def test_a_failed_recording_is_told_by_what_it_began_with():
    reason = arm_fault("int8-bnb", failed_recording(), CPU)
    assert reason.startswith("a step fails: a host wait in a capture (test_faults.py:")


def test_reasons_are_one_short_line_with_the_kind_of_error():
    assert arm_fault("fp8", ValueError("first\nsecond"), CPU) == "a step fails: ValueError: first"
    assert arm_fault("fp8", RuntimeError(""), CPU) == "a step fails: no reason"
    assert len(arm_fault("fp8", RuntimeError("x" * 5000), CPU)) < MAX_REASON + 50
    assert arm_fault("fp8", NoKernelError("no kernel"), CUDA) == "no kernel"
    with pytest.raises(OptionError):
        arm_fault("fp8", OptionError("--mode"), CPU)


def test_a_gpu_that_is_lost_ends_the_run_and_names_the_arm(monkeypatch):
    def synchronize(device: torch.device) -> None:
        if is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    is_lost = False
    assert arm_fault("fp8", RuntimeError("bad shape"), CUDA) == "a step fails: bad shape"
    is_lost = True
    with pytest.raises(EngineError, match="fp8 broke the GPU's context: a step fails: bad shape"):
        arm_fault("fp8", RuntimeError("bad shape"), CUDA)
