"""Profile one draft step of each recipe: how many kernels run, and for how long.

python -m tests.benchmarks.step_kernels [--shape llama-3.2-1b] [--context 512] [--output FILE]

Random weights in a published shape, batch 1. A line for each recipe, then one JSON object with the
kernels by name. On a CPU, where there are no kernels of a device, torch's operations are counted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.checkpoints.tensors.devices import pick_device
from quantdraft.common.files import write_json
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import modes
from quantdraft.engines.native.steps import Stepper
from quantdraft.engines.native.weight_sources import RandomWeights
from quantdraft.measure.latency.faults import arm_fault
from quantdraft.quantize.recipe import load_recipe
from tests.benchmarks.gpu_suite import DRY_SHAPE, RECIPES, SHAPES

NUM_LISTED = 12  # kernels of a recipe, the longest first


def main() -> None:
    """Print a line for each recipe, then the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=(*SHAPES, DRY_SHAPE), default=SHAPES[0])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--device", default=None)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    is_dry = options.shape == DRY_SHAPE
    shape = open_checkpoint(pair_dir() / "draft") if is_dry else shape_checkpoint(options.shape)
    device = pick_device(options.device)
    found = {}
    for name in (None, *RECIPES):
        found[name or "baseline"] = profiled(shape, name, options.context, device)
        print(name or "baseline", {k: v for k, v in found[name or "baseline"].items() if k != "by"})
    if options.output is not None:
        write_json(options.output, found)
    print(json.dumps(found))


def profiled(
    shape: Checkpoint, recipe: str | None, context: int, device: torch.device
) -> dict[str, Any]:
    """The kernels of one step; the reason where there are none."""
    source = RandomWeights(shape, None if recipe is None else load_recipe(recipe))
    try:
        native = load_native(source, torch.bfloat16, device)
        step = Stepper(native, 1, context, 1, modes(native, device)[0])
        for _ in range(3):
            step.step(1)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * (device.type == "cuda"))]
        with profile(activities=kinds) as profiler:
            step.step(1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except Exception as error:  # a recipe that cannot run leaves the others
        return {"undefined": arm_fault(recipe or "baseline", error, device)}
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    events = [event for event in profiler.events() if event.device_type == wanted]
    number, time_us = Counter[str](), Counter[str]()
    for event in events:
        number[event.name] += 1
        time_us[event.name] += round(event.time_range.elapsed_us())
    return {
        "num_kernels": len(events),
        "kernel_ms": sum(time_us.values()) / 1e3,
        "by": {name: [number[name], us / 1e3] for name, us in time_us.most_common(NUM_LISTED)},
    }


if __name__ == "__main__":
    main()
