"""Compare a sweep on Ray with the same sweep in one process: equal digits, and the time saved.

python -m tests.campaigns.ray_sweep [--num-prompts 128] [--recipes …] [--repeats 2]
    [--output reports/campaigns]

The nodes are Ray's own on this machine, one processor each, on the loopback, without a shared disk
as far as the sweep knows. Whole commands are timed: this process's `sweep --executor local` and one
node, in turns (local, one, one, local); then two nodes, and two of which one is killed when the
first evaluation has come back. The last line is one JSON object: `overhead` (one node over local,
minus 1, of medians), `speedup` (one node over two), `records_equal` and `survived`. What is claimed
of the overhead needs `seconds_local` of 120 or more, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.common.files import write_json, write_text

RECIPES = (  # every one that needs no data
    "fp8,fp8-block,fp8-head8,int8,int8-head8,int8-weight-only,int8-bnb,int4,int4-head4,int4-head8,"
    "nf4,nf4-double,fp4,nvfp4a16,mxfp4,mxfp8,w4afp8,identity"
)
NUM_TOKENS = 256
LONG_SECONDS = 120
TIMEOUT_SECONDS = 1800
# Ray's own switch to the loopback.
VARIABLES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster(num_nodes: int) -> Iterator[Any]:
    """Nodes of one processor each, with the address that a driver connects to."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(num_nodes - 1):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    try:
        yield nodes
    finally:
        nodes.shutdown()


def command(traffic: Path, recipes: str, output: Path, address: str | None) -> list[str]:
    """The sweep as a user types it."""
    where = ["--executor", "ray", "--ray-address", address, "--cpus", "1"] if address else []
    draft = str(pair_dir() / "draft")
    return [
        *(sys.executable, "-m", "quantdraft.cli", "sweep", "--draft", draft),
        *("--recipes", recipes, "--traffic", str(traffic), "--output", str(output)),
        *("--no-latency", "--threads", "1", *where),
    ]


def started(line: list[str]) -> subprocess.Popen[str]:
    """One sweep, on one processor as far as it computes itself."""
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[str]) -> None:
    """Wait for it; what it said is an error's text."""
    said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode:
        raise SystemExit(f"the sweep failed:\n{said}")


def timed(line: list[str]) -> float:
    """Seconds of a whole command."""
    before = time.perf_counter()
    finished(started(line))
    return time.perf_counter() - before


def killed_midway(line: list[str], nodes: Any, output: Path) -> float:
    """Seconds, with the second node gone as soon as one evaluation is back."""
    before = time.perf_counter()
    process = started(line)
    while not list((output / "runs").glob("*/evaluation.json")):
        if process.poll() is not None:
            raise SystemExit(f"it ended before a node could be killed:\n{process.stdout.read()}")
        time.sleep(0.05)
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    finished(process)
    return time.perf_counter() - before


def captured(directory: Path, num_prompts: int) -> Path:
    """The target's greedy text on the embedded prompts, of which there are 128."""
    from quantdraft.measure.capture import capture
    from quantdraft.measure.settings import CaptureSettings
    from quantdraft.traffic.traffic import Sampling

    path, prompts = directory / "traffic.jsonl", directory / "prompts.jsonl"
    files = [pair_dir() / name for name in ("prompts.jsonl", "calibration.jsonl")]
    prompts.write_bytes(b"".join(file.read_bytes() for file in files))
    capture(
        CaptureSettings(
            str(pair_dir() / "target"),
            prompts,
            path,
            sampling=Sampling(),
            max_new_tokens=NUM_TOKENS,
            limit=num_prompts,
            batch_size=32,
        )
    )
    return path


def main() -> None:
    """Print a line for each run, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--repeats", type=int, default=2, help="Of local and one node.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ |= VARIABLES
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        traffic = captured(root, options.num_prompts)
        runs = all_runs(root, traffic, options.recipes, options.repeats)
    found = summary(runs) | {
        "num_recipes": len(options.recipes.split(",")),
        "num_prompts": options.num_prompts,
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg()[2],
    }
    if options.output:
        write(found, options.output)
    print(json.dumps(found))


Runs = dict[str, list[tuple[float, bytes]]]  # by name: seconds, and sweep.json


def all_runs(root: Path, traffic: Path, recipes: str, repeats: int) -> Runs:
    """Every sweep, each into a directory of its own."""
    runs: Runs = {"local": [], "one node": [], "two nodes": [], "one of two killed": []}

    def run(name: str, num_nodes: int) -> None:
        output = root / f"{name}-{len(runs[name])}"
        if num_nodes == 0:
            seconds = timed(command(traffic, recipes, output, None))
        else:
            with cluster(num_nodes) as nodes:
                line = command(traffic, recipes, output, nodes.address)
                is_killed = name == "one of two killed"
                seconds = killed_midway(line, nodes, output) if is_killed else timed(line)
        runs[name].append((seconds, (output / "sweep.json").read_bytes()))
        print(f"{name}: {seconds:.1f} s", flush=True)

    for repeat in range(repeats):
        turns = [("local", 0), ("one node", 1)]
        for turn in turns if repeat % 2 == 0 else turns[::-1]:
            run(*turn)
    run("two nodes", 2)
    run("one of two killed", 2)
    return runs


def summary(runs: Runs) -> dict[str, Any]:
    """Ratios of medians, and whether the records are equal."""
    seconds = {name: [each for each, _ in of_name] for name, of_name in runs.items()}
    typical = {name: statistics.median(each) for name, each in seconds.items()}
    records = {name: {record for _, record in of_name} for name, of_name in runs.items()}
    return {
        "seconds": seconds,
        "seconds_local": typical["local"],
        "is_long": typical["local"] >= LONG_SECONDS,
        "overhead": typical["one node"] / typical["local"] - 1,
        "speedup": typical["one node"] / typical["two nodes"],
        "records_equal": len(set.union(*records.values())) == 1,
        "survived": records["one of two killed"] == records["local"],
    }


def write(found: dict[str, Any], output: Path) -> None:
    """ray_sweep.json and .md."""
    write_json(output / "ray_sweep.json", found)
    lines = ["| sweep | seconds |", "| --- | --- |"]
    for name, seconds in found["seconds"].items():
        lines.append(f"| {name} | {', '.join(f'{each:.0f}' for each in seconds)} |")
    words = {True: "yes", False: "no"}
    text = (
        "# A sweep on Ray against one process\n\n"
        f"`python -m tests.campaigns.ray_sweep --num-prompts {found['num_prompts']}`: "
        f"{found['num_recipes']} recipes, {found['num_prompts']} prompts, nodes of one processor "
        f"each on a machine of {found['num_cpus']} (load {found['load_average']:.1f} at the end), "
        "whole commands.\n\n" + "\n".join(lines) + "\n\n"
        f"One node over local: {found['overhead']:+.0%}. One node over two: "
        f"{found['speedup']:.2f}. Records equal to the byte: {words[found['records_equal']]}. "
        f"A killed node survived: {words[found['survived']]}. Two minutes or more: "
        f"{words[found['is_long']]}.\n"
    )
    write_text(output / "ray_sweep.md", text)


if __name__ == "__main__":
    main()
