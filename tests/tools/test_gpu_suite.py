"""Run the GPU suite's dry run: the same code on this machine, on a small shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_dry_run_measures_every_arm_that_has_a_kernel_and_resumes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.gpu_suite",
        "--dry-run",
        "--device=cpu",
        "--seconds=0.2",
        f"--output={tmp_path / 'suite'}",
    ]
    first = run(command)
    summary = json.loads(first)
    assert summary == json.loads((tmp_path / "suite" / "suite.json").read_text(encoding="utf-8"))
    point = summary["shapes"]["embedded-draft"][0]
    for name in ("baseline", "control", "int4", "int4-head8", "int8", "int8-head8"):
        assert point["steps"][name]["median_ms"] > 0
        assert point["steps"][name]["bandwidth_fraction"] > 0
    assert "no cpu kernel computes in fp8" in point["undefined"]["fp8"]
    assert summary["live_loop"]["int4"]["is_same_text"]
    assert "no cpu kernel" in summary["live_loop"]["fp8"]["undefined"]

    record = tmp_path / "suite" / "embedded-draft" / "bench.json"
    written = record.stat().st_mtime_ns
    run(command)
    assert record.stat().st_mtime_ns == written  # what is finished is not measured again


def run(command: list[str]) -> str:
    """The last line of the command's output."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
