"""Triton's products, compiled for four GPUs without one. Run by `make test-triton`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.triton

PROGRAM = [sys.executable, "-m", "tests.benchmarks.triton_code", "--json"]
# Four programs of 128 threads fit the 65,536 registers of a multiprocessor.
MAX_REGISTERS = 128
MAX_SHARED_BYTES = 99 * 1024  # of one program on 8.6 and 8.9, the smallest
# Above these a product could not read its weight as fast as an H100's memory gives it.
MAX_INSTRUCTIONS_A_BYTE = {"int8": 3.2, "fp8": 3.2, "int8-weight-only": 5.5, "int4": 20, "bf16": 2}


def compiled(arch: int, cache_dir: Path) -> list[dict[str, Any]]:
    """What the products become; in a process without the interpreter, whose kernels are others."""
    environment = {name: at for name, at in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache_dir)
    done = subprocess.run(
        [*PROGRAM, "--arch", str(arch)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    codes: list[dict[str, Any]] = json.loads(done.stdout)
    return codes


@pytest.mark.parametrize("arch", [80, 89, 90, 100])
def test_products_compile_for_a_gpu_without_spills_and_with_few_instructions(arch, tmp_path):
    codes = compiled(arch, tmp_path)
    formats = {code["name"].split(",")[0] for code in codes}
    # FP8 needs 8.9.
    assert formats >= set(MAX_INSTRUCTIONS_A_BYTE) - ({"fp8"} if arch < 89 else set())
    for code in codes:
        fmt = code["name"].split(",")[0]
        # ptxas keeps one address on the stack in groups of 32 on 10.0.
        is_one = arch == 100 and code["name"] == "int4, groups of 32, symmetric"
        assert code["stack_bytes"] <= (8 if is_one else 0), code
        assert code["registers"] <= MAX_REGISTERS, code
        assert code["shared_bytes"] <= MAX_SHARED_BYTES, code
        if code["instructions_a_byte"] is None:
            continue
        assert code["instructions_a_byte"] <= MAX_INSTRUCTIONS_A_BYTE[fmt], code
        assert code["loads"]["128"] >= 1, code  # 16 bytes at a time
        if fmt != "int4":
            assert set(code["loads"]) == {"128"}, code
