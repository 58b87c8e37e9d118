"""Compare `quantdraft apply` with llm-compressor's `oneshot`: time and peak memory, 0.5B shape.

python -m tests.benchmarks.apply_vs_oneshot [--recipes int4,int4-gptq] [--rounds 1]
    [--sides apply,oneshot] [--results FILE]

Random weights in the shape of Qwen2.5-0.5B, bf16, with the embedded pair's tokenizer. Each side is
a process of its own, imports included; both write a loadable directory; the sides take turns.
Scheme W4A16 on both. GPTQ sees the same token ids, and computes in float32 on both sides: bfloat16,
which oneshot would take, is slower on a CPU without instructions for it. `apply` includes its
proof, and the line says how long that took. Processor seconds stand beside the clock's: on a
machine that does other work too, they are what can be compared. Peak memory is the child's
ru_maxrss; pages of the files that it maps count. Runs are kept in FILE, so that sides can be
measured in calls of their own: ratios are of the medians of all that it holds. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = "qwen2.5-0.5b"
SIDES = ("apply", "oneshot")
NAMES = {"int4": "data_free", "int4-gptq": "gptq"}
NUM_SAMPLES, SAMPLE_TOKENS = 8, 128


def write_model(directory: Path) -> None:
    """Random weights of SHAPE as bf16 safetensors, a tokenizer, and token ids to calibrate on."""
    import torch
    from safetensors.torch import save_file

    from quantdraft.checkpoints.reference import pair_dir
    from quantdraft.checkpoints.shapes import shape_checkpoint
    from quantdraft.common.files import write_json, write_text

    directory.mkdir(parents=True)
    shape, generator = shape_checkpoint(SHAPE), torch.Generator().manual_seed(0)
    weights = {
        name: _random(name, info.shape, generator).bfloat16()
        for name, info in shape.tensors.items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", dict(shape.config))
    for path in (pair_dir() / "draft").glob("tokenizer*"):
        shutil.copyfile(path, directory / path.name)
    ids = torch.randint(1, 4096, (NUM_SAMPLES, SAMPLE_TOKENS), generator=generator).tolist()
    lines = [{"prompt_token_ids": row[:1], "response_token_ids": row[1:]} for row in ids]
    write_text(directory / "calibration.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _random(name: str, shape: tuple[int, ...], generator: Any) -> Any:
    import torch

    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * 0.02
    return torch.ones(shape) if "norm" in name else torch.zeros(shape)


def apply_side(recipe_name: str, model: Path, output: Path) -> dict[str, float]:
    """What `quantdraft apply` does; the seconds that its proof took."""
    from quantdraft.quantize import apply as quantization
    from quantdraft.quantize.recipe import load_recipe

    recipe, proof_s = load_recipe(recipe_name), 0.0
    prove = quantization.prove

    def timed(*args: Any) -> Any:
        nonlocal proof_s
        started = time.perf_counter()
        proof = prove(*args)
        proof_s = time.perf_counter() - started
        return proof

    quantization.prove = timed
    calibration = model / "calibration.jsonl" if recipe.needs_calibration else None
    quantization.apply(recipe, str(model), output, calibration=calibration, device="cpu")
    return {"proof_s": proof_s}


def oneshot_side(recipe_name: str, model: Path, output: Path) -> dict[str, float]:
    """What llm-compressor's own examples do, on the same samples."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    is_gptq = recipe_name == "int4-gptq"
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32" if is_gptq else "auto")
    tokenizer = AutoTokenizer.from_pretrained(model)
    modifier = GPTQModifier if is_gptq else QuantizationModifier
    oneshot(
        model=loaded,
        processor=tokenizer,
        recipe=[modifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])],
        **(_samples(model) if is_gptq else {}),
    )
    loaded.save_pretrained(output, save_compressed=True)
    tokenizer.save_pretrained(output)
    return {}


def _samples(model: Path) -> dict[str, Any]:
    from datasets import Dataset

    lines = [json.loads(line) for line in (model / "calibration.jsonl").read_text().splitlines()]
    rows = [line["prompt_token_ids"] + line["response_token_ids"] for line in lines]
    masked = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    return {
        "dataset": Dataset.from_list(masked),
        "num_calibration_samples": NUM_SAMPLES,
        "max_seq_length": SAMPLE_TOKENS,
    }


def run(side: str, recipe: str, model: Path, work_dir: Path) -> dict[str, Any]:
    """One side in a process of its own: seconds from its start to its end, and its peak memory."""
    output, said = work_dir / f"{side}-{recipe}", work_dir / "said.json"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.apply_vs_oneshot", "--child", side, recipe]
    command += [str(model), str(output), str(said)]
    with open(work_dir / f"{side}-{recipe}.log", "wb") as log:
        descriptor, started = log.fileno(), time.perf_counter()
        moved = [(os.POSIX_SPAWN_DUP2, descriptor, stream) for stream in (1, 2)]
        child = os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=moved)
        _, status, usage = os.wait4(child, 0)  # the usage of this child alone
        seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{side} {recipe} failed: see '{log.name}'.")
    return {
        "side": side,
        "recipe": recipe,
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "written_bytes": sum(path.stat().st_size for path in output.glob("*.safetensors")),
        **json.loads(said.read_text()),
    }


def ratios(runs: list[dict[str, Any]], recipe: str) -> dict[str, float]:
    """apply / oneshot, of medians; empty until both sides have run."""

    def median(side: str, key: str) -> float:
        of_side = [r for r in runs if (r["side"], r["recipe"]) == (side, recipe)]
        return statistics.median(r[key] for r in of_side)

    if {r["side"] for r in runs if r["recipe"] == recipe} != set(SIDES):
        return {}
    proof_s, name = median("apply", "proof_s"), NAMES[recipe]
    seconds = {side: median(side, "seconds") for side in SIDES}
    cpu = {side: median(side, "cpu_s") for side in SIDES}
    peaks = {side: median(side, "peak_bytes") for side in SIDES}
    return {
        f"{name}_time_ratio": seconds["apply"] / seconds["oneshot"],
        f"{name}_time_ratio_without_proof": (seconds["apply"] - proof_s) / seconds["oneshot"],
        f"{name}_cpu_time_ratio": cpu["apply"] / cpu["oneshot"],
        f"{name}_memory_ratio": peaks["apply"] / peaks["oneshot"],
        f"{name}_apply_s": seconds["apply"],
        f"{name}_oneshot_s": seconds["oneshot"],
        f"{name}_proof_s": proof_s,
        f"{name}_apply_bytes": peaks["apply"],
        f"{name}_oneshot_bytes": peaks["oneshot"],
    }


def child(side: str, recipe: str, model: str, output: str, said: str) -> None:
    """The process that is measured."""
    do = apply_side if side == "apply" else oneshot_side
    figures = do(recipe, Path(model), Path(output))
    Path(said).write_text(json.dumps(figures))


def main() -> None:
    """Run the sides in turn, print a line each, then the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="int4,int4-gptq")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--model", type=Path, help="kept there between calls")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    kept = options.results
    runs = json.loads(kept.read_text()) if kept and kept.exists() else []
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "model"
        if not model.exists():
            write_model(model)
        for _ in range(options.rounds):
            for recipe in options.recipes.split(","):
                for side in options.sides.split(","):
                    runs.append(run(side, recipe, model, Path(name)))
                    print(json.dumps(runs[-1]), flush=True)
                    if kept:
                        kept.write_text(json.dumps(runs, indent=1) + "\n")
    found = {key: value for recipe in NAMES for key, value in ratios(runs, recipe).items()}
    print(json.dumps({"shape": SHAPE, "num_runs": len(runs), **found}))


if __name__ == "__main__":
    main()
