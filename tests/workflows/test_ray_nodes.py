"""What a sweep leaves on the nodes of a cluster: nothing that was sent to them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantdraft.common.resume import STAGES_DIR
from quantdraft.workflows.sweep import ray_cluster
from quantdraft.workflows.sweep.jobs import Outcome
from quantdraft.workflows.sweep.ray_cluster import CACHE_FILE, Resources, run_on_ray


class FakeRay:
    """A cluster of this process, which does a task as it is submitted."""

    exceptions = SimpleNamespace(RayError=ValueError, RayTaskError=KeyError)

    def __init__(self) -> None:
        self.cancelled: list[Any] = []

    def remote(self, **_: Any) -> Any:
        """Return a decorator whose function is done at once."""

        def decorate(work: Any) -> Any:
            def submit(*given: Any) -> Any:
                return work(*given) or (None,)

            return SimpleNamespace(
                remote=submit, options=lambda **_: SimpleNamespace(remote=submit)
            )

        return decorate

    def nodes(self) -> list[dict[str, Any]]:
        """One node."""
        return [{"NodeID": "a" * 56, "Alive": True, "Resources": {"CPU": 1.0}}]

    def wait(self, refs: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """All have ended."""
        return refs, []

    def get(self, ref: Any) -> Any:
        """A reference is its value."""
        return ref

    put = get

    def cancel(self, ref: Any, *, force: bool) -> None:
        """Note it."""
        self.cancelled.append(ref)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """The fake, with its nodes' temporary directory in the test's own."""
    pytest.importorskip("ray")
    made = FakeRay()

    @contextlib.contextmanager
    def session(address: str | None) -> Iterator[FakeRay]:
        yield made

    monkeypatch.setattr(ray_cluster, "ray_session", session)
    monkeypatch.setattr(ray_cluster, "_fetch", made.get)
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    return made


def run(tmp_path: Path, fails: Any = None) -> dict[str, Outcome]:
    """A sweep of one job with a model and traffic, which ends as `fails` says."""
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "model.safetensors").write_text("weights")
    (tmp_path / "traffic.jsonl").write_text("traffic")

    def work(at: Any) -> None:
        assert (at(tmp_path / "model") / "model.safetensors").read_text() == "weights"
        (at(tmp_path / "run") / STAGES_DIR).mkdir(parents=True)
        if fails is not None:
            raise fails
        (at(tmp_path / "run") / "done").write_text("done")

    job = SimpleNamespace(
        name="job",
        needs=None,
        facts={},
        inputs=(tmp_path / "model", tmp_path / "traffic.jsonl"),
        output=tmp_path / "run",
        is_whole=lambda at: (at(tmp_path / "run") / "done").is_file(),
        work=work,
    )
    return run_on_ray(
        [job],  # type: ignore[list-item]
        tmp_path / "sweep" / "logs",
        lambda outcome: None,
        address="there:1",
        resources=Resources(1.0),
        is_shared=False,
    )


def left(tmp_path: Path) -> list[str]:
    """The names of all that lies on the node."""
    return sorted(path.name for path in (tmp_path / "node").rglob("*"))


def test_a_sweep_that_is_done_leaves_nothing(tmp_path: Path, cluster: FakeRay) -> None:
    assert run(tmp_path)["job"].error is None
    assert left(tmp_path) == []
    assert not (tmp_path / "sweep" / CACHE_FILE).exists()
    assert (tmp_path / "run" / "done").is_file()


def test_weights_and_traffic_do_not_stay_where_a_job_failed(
    tmp_path: Path, cluster: FakeRay
) -> None:
    assert run(tmp_path, ray_cluster.OutputError("full"))["job"].error is not None
    assert STAGES_DIR in left(tmp_path), "what was counted is there to go on with"
    assert not {"model", "model.safetensors", "traffic.jsonl"} & set(left(tmp_path))
    assert (tmp_path / "sweep" / CACHE_FILE).is_file()


def test_weights_and_traffic_do_not_stay_where_the_sweep_was_interrupted(
    tmp_path: Path, cluster: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **options: Any) -> Any:
        if "timeout" not in options:
            raise KeyboardInterrupt
        return [], []

    monkeypatch.setattr(cluster, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not {"model", "model.safetensors", "traffic.jsonl"} & set(left(tmp_path))
    assert len(cluster.cancelled) == 1
