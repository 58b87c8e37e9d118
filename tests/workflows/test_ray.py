"""Sweeps on Ray: what a cluster finds, whom it lets in, and what a lost worker costs."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quantdraft.errors import OptionError
from quantdraft.workflows.sweep.grid import SweepSettings
from quantdraft.workflows.sweep.jobs import Places
from quantdraft.workflows.sweep.ray_cluster import CACHE_FILE, Resources, run_on_ray
from quantdraft.workflows.sweep.ray_session import ray_session
from quantdraft.workflows.sweep.sweep import sweep
from tests.integration.test_loopback import LOOPBACK, descendants, listening
from tests.workflows.test_sweep import settings, traffic

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
__all__ = ["settings", "traffic"]  # fixtures


@dataclass(frozen=True)
class Trial:
    """A job whose worker is killed, or runs out of memory, as often as it says."""

    name: str
    output: Path
    marks: Path  # a line for every attempt
    num_deaths: int = 0
    has_memory: bool = True
    needs: str | None = None
    inputs: tuple[Path, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        return {"name": self.name}

    def is_whole(self, at: Places) -> bool:
        return (at(self.output) / "done").is_file()

    def work(self, at: Places) -> None:
        with open(self.marks, "a", encoding="utf-8") as file:
            file.write("x")
        if not self.has_memory:
            raise MemoryError
        if self.marks.stat().st_size <= self.num_deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        at(self.output).mkdir(parents=True, exist_ok=True)
        (at(self.output) / "done").write_text(self.name)


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes, one processor each, that share no disk as far as we know."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes.address
    nodes.shutdown()


def test_lost_workers_jobs_are_done_again_and_a_full_memory_is_told(tmp_path, address):
    jobs = [
        Trial("killed", tmp_path / "out" / "killed", tmp_path / "killed", num_deaths=2),
        Trial("full", tmp_path / "out" / "full", tmp_path / "full", has_memory=False),
        Trial("after", tmp_path / "out" / "after", tmp_path / "after", needs="full"),
        Trial("well", tmp_path / "out" / "well", tmp_path / "well"),
    ]
    found = run_on_ray(
        jobs,  # type: ignore[arg-type]
        tmp_path / "sweep" / "logs",
        lambda outcome: None,
        address=address,
        resources=Resources(1.0),
        is_shared=False,
    )
    assert (tmp_path / "killed").read_text() == "xxx"
    assert found["killed"].error is None
    assert "MemoryError" in str(found["full"].error)
    assert "MemoryError" in str(found["after"].error)
    assert not (tmp_path / "after").exists(), "what it needs is not there"
    assert found["well"].error is None
    assert (tmp_path / "out" / "killed" / "done").read_text() == "killed"
    assert not (tmp_path / "out" / "full").exists()
    again = run_on_ray(
        jobs[:1],  # type: ignore[arg-type]
        tmp_path / "sweep" / "logs",
        lambda outcome: None,
        address=address,
        resources=Resources(1.0),
        is_shared=False,
    )
    assert again["killed"].was_done


def test_a_job_that_fits_on_no_node_is_refused(tmp_path, address):
    with pytest.raises(OptionError, match="no node of the cluster has room"):
        run_on_ray(
            [],
            tmp_path / "logs",
            lambda outcome: None,
            address=address,
            resources=Resources(64.0),
            is_shared=False,
        )


# Clusters of our own come last: see `ray_session`.


def test_a_sweep_on_ray_has_the_record_of_one_in_this_process(settings: SweepSettings, address):
    settings = replace(settings, evaluations=replace(settings.evaluations, threads=1))
    sweep(settings)
    expected = (settings.output / "sweep.json").read_bytes()
    assert len(json.loads(expected)["cells"]) == 2
    for name, given in (("two", address), ("own", None)):
        output = settings.output.with_name(name)
        there = replace(settings, executor="ray", ray_address=given, cpus=1, output=output)
        assert not sweep(there).failed
        assert (output / "sweep.json").read_bytes() == expected
        assert not (output / CACHE_FILE).exists(), "and the nodes hold nothing of it any more"


def variables_of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def test_a_cluster_of_ours_lets_nobody_in_and_leaves_nothing(tmp_path):
    before, others = variables_of_ray(), set(descendants(os.getpid()))  # another test's cluster
    with ray_session(None) as ray:
        found = listening(set(descendants(os.getpid())) - others)
        assert found
        assert found <= LOOPBACK
        place = Path(ray._private.worker._global_node.get_temp_dir_path()).parent
        assert place.stat().st_mode & 0o777 == 0o700
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert not place.exists()
    assert variables_of_ray() == before
