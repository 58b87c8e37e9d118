"""Run jobs on a Ray cluster, on the processors and GPUs of every node.

A job whose worker was lost is run again. Without a shared disk, inputs are put into Ray's object
store once and unpacked once a node, and outputs come back as results. With a shared disk, and in a
cluster of this machine alone, jobs read and write the sweep's own paths.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from quantdraft import __version__
from quantdraft.common.files import write_text
from quantdraft.common.progress import say
from quantdraft.common.resume import STAGES_DIR
from quantdraft.errors import OptionError, OutputError
from quantdraft.workflows.sweep.jobs import (
    Job,
    OnOutcome,
    Outcome,
    Places,
    begin,
    done_before,
    perform,
    require_same_version,
)
from quantdraft.workflows.sweep.parcels import (
    Parcel,
    pack,
    require_own_directory,
    unpack_parcel,
    unpack_parcel_once,
)
from quantdraft.workflows.sweep.ray_session import ray_session

MAX_RETRIES = 3  # of a job whose worker or node was lost
CLEAR_SECONDS = 60
DIGEST_CHARACTERS, PATH_CHARACTERS = 32, 16  # of an input's content, and of another path's hash
CACHE_FILE = "ray-cache"  # in the sweep's directory: the name of its directory on every node


@dataclass(frozen=True, slots=True)
class Resources:
    """What one job takes of a node."""

    cpus: float | None  # None: all of the smallest node, so that no two jobs time side by side
    gpus: float = 0.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """An input that is sent: where it lies on this machine, and the hash of its content."""

    path: Path
    digest: str


def run_on_ray(
    jobs: Sequence[Job],
    logs: Path,
    on_outcome: OnOutcome,
    *,
    address: str | None,
    resources: Resources,
    is_shared: bool,
) -> dict[str, Outcome]:
    """Run every job as a Ray task, after the one it needs. on_outcome: called as each ends.

    address: of a running cluster, "auto" for the one this machine belongs to; None: a cluster of
        this machine alone, for as long as the sweep takes
    Raises MissingPackageError without Ray, OptionError where no such cluster answers.
    """
    with ray_session(address) as ray:
        resources = _with_cpus(ray, resources)
        _require_room(ray, resources)
        crew = _Crew(ray, resources, logs, is_shared or address is None)
        is_done = False
        try:
            for job in jobs:
                crew.send(job)
            outcomes = crew.gather(on_outcome)
            is_done = all(outcome.error is None for outcome in outcomes.values())
        finally:  # also where this process was interrupted, or its disk is full
            crew.stop()
            crew.clear_nodes(is_done=is_done)
        return outcomes


class _Crew:
    """The tasks that were submitted, and how each ended."""

    def __init__(self, ray: Any, resources: Resources, logs: Path, is_shared: bool) -> None:
        self.ray, self.logs, self.is_shared = ray, logs, is_shared
        options: dict[str, Any] = {
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "max_retries": MAX_RETRIES,
            "num_returns": 2,
        }
        if resources.memory_bytes is not None:
            options["memory"] = resources.memory_bytes
        self.task = ray.remote(**options)(_work)
        self.cache = "" if is_shared else _cache_name(logs.parent / CACHE_FILE)
        self.inputs: dict[Path, tuple[Sent, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self.results: dict[str, tuple[Any, Any]] = {}  # outcome and output, by the job's name
        self.outcomes: dict[str, Outcome] = {}

    def send(self, job: Job) -> None:
        """Submit a job; its inputs go to the object store once, another job's output directly."""
        needed = self.results.get(job.needs or "")
        before = done_before(job, _here) if needed is None else None
        if before is not None:
            self.outcomes[job.name] = before
            return
        made = None if needed is None or job.needs is None else self.jobs[job.needs].output
        inputs = [self._put(path) for path in job.inputs if path != made]
        after, output = needed or (None, None)
        order = Order(job, tuple(inputs), made, str(self.logs), self.cache, __version__)
        self.jobs[job.name] = job
        self.results[job.name] = tuple(self.task.remote(order, after, output))

    def gather(self, on_outcome: OnOutcome) -> dict[str, Outcome]:
        """Wait for all jobs, and write their outputs where the sweep's settings say."""
        for outcome in self.outcomes.values():
            on_outcome(outcome)
        waiting = {result[0]: name for name, result in self.results.items()}
        while waiting:
            ended, _ = self.ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(ended[0])
            self.outcomes[name] = self._outcome(name)
            on_outcome(self.outcomes[name])
        return self.outcomes

    def stop(self) -> None:
        """Stop the tasks that have not ended."""
        for result, _ in self.results.values():
            self.ray.cancel(result, force=True)

    def clear_nodes(self, *, is_done: bool) -> None:
        """Remove what the sweep kept on the nodes that are alive.

        is_done: False leaves what unfinished evaluations have counted, to go on with; models and
            traffic are removed in every case
        """
        if self.is_shared:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self.ray.remote(num_cpus=0, max_retries=0)(_clear)
        nodes = [node["NodeID"] for node in self.ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        sent = [
            task.options(scheduling_strategy=place).remote(self.cache, is_done) for place in places
        ]
        _, waiting = self.ray.wait(sent, num_returns=len(sent), timeout=CLEAR_SECONDS)
        if waiting:
            say(
                f"{len(waiting)} of {len(sent)} nodes did not answer: remove {self.cache} in their "
                "temporary directories, it holds models and traffic."
            )
        elif is_done:
            (self.logs.parent / CACHE_FILE).unlink(missing_ok=True)

    def _outcome(self, name: str) -> Outcome:
        result, output = self.results[name]
        try:
            outcome: Outcome = self.ray.get(result)
            if outcome.error is None and not self.is_shared:
                begin(self.jobs[name], _here)
                unpack_parcel(self.ray.get(output), self.jobs[name].output)
        except self.ray.exceptions.RayError as error:
            return Outcome(name, f"its worker failed: {self._reason(error)}")
        return outcome

    def _reason(self, error: Exception) -> str:
        """Return the reason: the last line of a traceback, the first of Ray's own message."""
        words = str(error).strip().splitlines() or [""]
        is_traceback = isinstance(error, self.ray.exceptions.RayTaskError)
        return f"{type(error).__name__}: {words[-1 if is_traceback else 0]}"[:300]

    def _put(self, path: Path) -> tuple[Sent, Any]:
        if self.is_shared:
            return Sent(path, ""), None
        if path not in self.inputs:
            parcel = pack(path)
            self.inputs[path] = Sent(path, parcel.digest), self.ray.put(parcel)
        return self.inputs[path]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know: the job, its inputs, and where they belong."""

    job: Job
    inputs: tuple[tuple[Sent, Any], ...]
    made: Path | None  # the path of the output of the job it needs, which comes as a value
    logs: str
    cache: str  # the directory's name on every node; empty: the disk is shared
    version: str


def _work(
    order: Order, after: Outcome | None, output: Parcel | None
) -> tuple[Outcome, Parcel | None]:
    """Run a job on a worker: place its inputs, do it, and return its output."""
    job = order.job
    require_same_version(order.version)
    if after is not None and after.error is not None:
        return Outcome(job.name, after.error), None
    if not order.cache:
        return _perform_here(job, _here, Path(order.logs) / f"{job.name}.log"), None
    try:
        cache = require_own_directory(Path(tempfile.gettempdir()) / order.cache)
    except OutputError as error:
        return Outcome(job.name, str(error)), None

    def unpack(digest: str, path: Path, parcel: Callable[[], Parcel]) -> Path:
        return unpack_parcel_once(parcel, cache / digest[:DIGEST_CHARACTERS] / path.name)

    places = {
        sent.path: unpack(sent.digest, sent.path, partial(_fetch, ref))
        for sent, ref in order.inputs
    }
    if order.made is not None and output is not None:
        places[order.made] = unpack(output.digest, order.made, lambda: output)

    def at(path: Path) -> Path:
        # What is no input stays on the node: stages, and the output until it is whole.
        kept = hashlib.sha256(str(path).encode()).hexdigest()[:PATH_CHARACTERS]
        return places.get(path) or cache / kept / path.name

    outcome = _perform_here(job, at, at(Path(order.logs)) / f"{job.name}.log")
    if outcome.error is not None:
        return outcome, None
    made = pack(at(job.output))
    shutil.rmtree(at(job.output).parent)
    return outcome, made


def _perform_here(job: Job, at: Places, log: Path) -> Outcome:
    """Do a job; an error of this worker's disk is the outcome of this job alone."""
    try:
        return perform(job, at, log)
    except OutputError as error:
        return Outcome(job.name, str(error))


def _fetch(ref: Any) -> Parcel:
    import ray

    parcel: Parcel = ray.get(ref)
    return parcel


def _here(path: Path) -> Path:
    return path


def _cache_name(path: Path) -> str:
    """Return a secret name; the same for a sweep that is continued."""
    if not path.is_file():
        write_text(path, f"quantdraft-ray-{secrets.token_hex(16)}")
    return path.read_text(encoding="utf-8")


def _clear(cache: str, is_done: bool) -> None:
    """Remove a sweep's directory from this node, or of it what was sent and made: models, traffic.

    Left are evaluations that have begun, by the hash of their path, which is shorter.
    """
    place = Path(tempfile.gettempdir()) / cache
    if is_done:
        shutil.rmtree(place, ignore_errors=True)
        return
    for found in place.glob("*"):
        is_input = len(found.name) == DIGEST_CHARACTERS
        if is_input or not any((run / STAGES_DIR).is_dir() for run in found.glob("*")):
            shutil.rmtree(found, ignore_errors=True)


def _with_cpus(ray: Any, resources: Resources) -> Resources:
    if resources.cpus is not None:
        return resources
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return replace(resources, cpus=min((n for n in nodes if n > 0), default=1.0))


def _require_room(ray: Any, resources: Resources) -> None:
    """Raise OptionError where no node can hold one job: Ray would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(
        node.get("CPU", 0) >= (resources.cpus or 0)
        and node.get("GPU", 0) >= resources.gpus
        and node.get("memory", 0) >= (resources.memory_bytes or 0)
        for node in nodes
    ):
        largest = max((node.get("CPU", 0) for node in nodes), default=0)
        raise OptionError(
            f"no node of the cluster has room for one job ({resources.cpus:g} CPUs, "
            f"{resources.gpus:g} GPUs); the largest has {largest:g} CPUs. Lower --cpus or --gpus."
        )
