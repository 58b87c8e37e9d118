"""vLLM itself, and one of its servers for all tests: the embedded pair, k = 4, float32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.engines.measured import ServerPlan
from quantdraft.engines.process import Server
from quantdraft.engines.vllm.environment import Environment, find_vllm
from quantdraft.engines.vllm.measured import MeasuredVllm, VllmInstallation
from quantdraft.measure.served.fleet import Fleet

K = 4


@pytest.fixture(scope="session")
def vllm() -> Environment:
    """The installed environment, or that of $QUANTDRAFT_VLLM_PYTHON."""
    python = os.environ.get("QUANTDRAFT_VLLM_PYTHON")
    return find_vllm(Path(python) if python else None)


@pytest.fixture(scope="session")
def plan() -> ServerPlan:
    """What every server here serves."""
    return ServerPlan(pair_dir() / "target", "float32", K, 512, "greedy_draft")


@pytest.fixture(scope="session")
def server(
    vllm: Environment, plan: ServerPlan, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with the embedded draft."""
    logs = tmp_path_factory.mktemp("vllm")
    drafts = {"candidate": pair_dir() / "draft"}
    fleet = Fleet(MeasuredVllm(), VllmInstallation(vllm), plan, drafts, logs)
    with fleet.start("candidate") as ours:
        ours.wait_until_healthy()
        yield ours
