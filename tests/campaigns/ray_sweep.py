"""A sweep on Ray against the same sweep in one process: equal to the digit, and how much faster.

python -m tests.campaigns.ray_sweep [--num-prompts 96] [--recipes …] [--output reports/campaigns]

The nodes are Ray's own on this machine, one processor each, without a shared disk as far as the
sweep knows. Whole commands are timed: this process's `sweep --executor local`, then one node, two
nodes, and two of which one is killed when the first evaluation has come back. The last line is one
JSON object: `overhead` (one node over local, minus 1), `speedup` (one node over two),
`records_equal` and `survived`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantdraft.files import write_text
from quantdraft.reference import pair_dir

RECIPES = "fp8,int8,int4,int8-weight-only,fp8-block,int4-head8"
NUM_TOKENS = 128
TIMEOUT_SECONDS = 1800


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
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


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
            raise SystemExit("the sweep ended before a node could be killed")
        time.sleep(0.05)
    nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)
    finished(process)
    return time.perf_counter() - before


def captured(directory: Path, num_prompts: int) -> Path:
    """The target's greedy text on the embedded prompts."""
    from quantdraft.capture import capture
    from quantdraft.traffic import Sampling

    path = directory / "traffic.jsonl"
    prompts, target = pair_dir() / "prompts.jsonl", str(pair_dir() / "target")
    capture(
        target,
        prompts,
        path,
        sampling=Sampling(),
        max_new_tokens=NUM_TOKENS,
        limit=num_prompts,
        batch_size=32,
    )
    return path


def main() -> None:
    """Print a line for each run, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        traffic = captured(root, options.num_prompts)
        seconds: dict[str, float] = {}

        def run(name: str, address: str | None, nodes: Any = None) -> None:
            output = root / name
            line = command(traffic, options.recipes, output, address)
            seconds[name] = killed_midway(line, nodes, output) if nodes else timed(line)
            print(f"{name}: {seconds[name]:.1f} s", flush=True)

        run("local", None)
        with cluster(1) as nodes:
            run("one node", nodes.address)
        with cluster(2) as nodes:
            run("two nodes", nodes.address)
        with cluster(2) as nodes:
            run("one of two killed", nodes.address, nodes)
        records = {name: (root / name / "sweep.json").read_bytes() for name in seconds}
    found = {
        "seconds": seconds,
        "overhead": seconds["one node"] / seconds["local"] - 1,
        "speedup": seconds["one node"] / seconds["two nodes"],
        "records_equal": len(set(records.values())) == 1,
        "survived": records["one of two killed"] == records["local"],
        "num_recipes": len(options.recipes.split(",")),
        "num_prompts": options.num_prompts,
        "num_cpus": os.cpu_count(),
    }
    if options.output:
        write_text(options.output / "ray_sweep.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
