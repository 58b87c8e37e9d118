"""The commands that the fault campaign kills, on a tiny pair, and the checks of their outputs."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantdraft.measure.latency.timing_plan import MIN_LOADS
from quantdraft.report.charts import drawing, renderer
from tests.campaigns.warm import import_what_was_imported, run

NUM_PROMPTS = 12
CAPTURE_BATCH = 2
# Public names that are replaced, by module: what makes a run short, and equal from run to run.
SMALL: dict[str, dict[str, Any]] = {
    "quantdraft.measure.replay": {"MAX_BATCH_TOKENS": 150},  # some batches, not one
    "quantdraft.measure.latency.roofline": {
        "BUFFER_BYTES": {"cpu": 8 << 20},
        "LAST_SIZE": {"cpu": 128},
    },
    "quantdraft.measure.latency.loaded": {"TRIAL_SECONDS": 0.0},
    "quantdraft.measure.latency.point": {"MAX_OVERRUN": float("inf")},
    # Which kernel is the fastest differs from run to run, and with it what falls at a near-tie.
    "quantdraft.engines.kernels.trials": {
        "least_seconds": lambda timers: {name: 1.0 + place for place, name in enumerate(timers)}
    },
    # Or all may be timed once more.
    "quantdraft.workflows.evaluate": {"suspicions": lambda latency: ()},
}
HEAVY = ("torch", "transformers", "pydantic", "safetensors.torch", "quantdraft.workflows.evaluate")
HEAVY += (
    "quantdraft.report.charts.drawing",
    "quantdraft.workflows.bench",
    "quantdraft.quantize.apply",
    "quantdraft.measure.capture",
    "quantdraft.workflows.sweep.sweep",
    "quantdraft.cli",
)
FOR_APPLY = ("llmcompressor", "llmcompressor.modifiers.quantization", "llmcompressor.entrypoints")
FOR_APPLY += ("llmcompressor.modifiers.gptq", "datasets", "compressed_tensors.compressors")


@dataclass(frozen=True, slots=True)
class Command:
    """A long-running command, and what is looked at when it died or ended."""

    name: str
    line: str  # of the command line, without spaces inside an argument
    result: str  # the output's name in the directory of outputs
    complaints: Callable[[Path], list[str]]  # about an output that stands there
    kept: Callable[[Path], dict[str, Any]]  # finished parts on the disk, by name
    final: Callable[[Path], Any]  # what must be equal to the undisturbed run's
    num_units: int = 0  # pieces of work that are counted as they are computed
    is_finished: Callable[[Path], bool] = Path.exists
    pages: tuple[str, ...] = ()  # that a finished output may lack, and `report` draws


def import_everything(names: list[str]) -> None:
    """In the parent, once; nothing is computed, so that its children may fork."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    for name in (*HEAVY, *(FOR_APPLY if "apply" in names else ())):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # Their bundle takes seconds: made once, here, and in no child again. Charts are drawn in each.
    drawing.scripts()
    renderer.end()
    SMALL["quantdraft.measure.latency.loaded"]["float_types"] = lambda device: [torch.float32]
    for module, replaced in SMALL.items():
        for name, value in replaced.items():
            getattr(sys.modules[module], name)  # an AttributeError for one that is gone
            setattr(sys.modules[module], name, value)


def make_inputs(work_dir: Path, needs_candidate: bool) -> None:
    """Target, draft, prompts, traffic, a short calibrated recipe, a candidate; all in children."""
    from quantdraft.quantize.recipe import load_recipe

    if os.fork() == 0:
        from tests.conftest import save_noisy, save_target, save_tokenizer, write_prompts

        for name in ("target", "draft"):
            save_tokenizer(work_dir / name)
        save_target(work_dir / "target", seed=0)
        save_noisy(work_dir / "target", work_dir / "draft", noise=0.06)
        write_prompts(work_dir / "prompts.jsonl", NUM_PROMPTS)
        os._exit(0)
    os.wait()
    recipe = load_recipe("int4-gptq").model_dump(mode="json")
    recipe["calibration"] |= {"num_samples": 4, "max_seq_length": 64}
    (work_dir / "int4-gptq.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    target, draft = str(work_dir / "target"), str(work_dir / "draft")
    made = [["capture", "-t", target, "--prompts", f"{work_dir}/prompts.jsonl", "-o"]]
    made[0] += [f"{work_dir}/traffic.jsonl", "--max-new-tokens", "12"]
    if needs_candidate:
        made.append(["apply", "-r", "int4", "-d", draft, "-o", f"{work_dir}/draft-int4"])
    for arguments in made:
        ended = run(arguments, work_dir)
        if ended.status != 0:
            raise SystemExit(f"{arguments[0]} fails:\n{ended.log}")
        import_what_was_imported(work_dir)


def commands(work_dir: Path) -> list[Command]:
    """Each writes to `out/<result>` in the work directory."""
    target, draft = str(work_dir / "target"), str(work_dir / "draft")
    prompts, out = str(work_dir / "prompts.jsonl"), work_dir / "out"
    return [
        Command(
            "capture",
            f"capture -t {target} --prompts {prompts} -o {out}/traffic.jsonl --max-new-tokens 12 "
            f"--batch-size {CAPTURE_BATCH} --temperature 0.8 --seed 3",
            "traffic.jsonl",
            complaints_of_traffic,
            lambda path: captured(path.with_name("traffic.jsonl.partial"), CAPTURE_BATCH),
            lambda path: path.read_bytes(),
            num_units=NUM_PROMPTS,
        ),
        Command(
            "apply",
            f"apply -r {work_dir}/int4-gptq.yaml -d {draft} -o {out}/candidate "
            f"--calibration {work_dir}/traffic.jsonl",
            "candidate",
            complaints_of_checkpoint,
            lambda path: {},  # the library's own passes do not stop halfway: it starts anew
            checkpoint,
            num_units=1,
        ),
        Command(
            "evaluate",
            f"evaluate {work_dir}/draft-int4 -t {target} --prompts {prompts} -o {out}/run -k 1,2,4 "
            "--latency-seconds 0.05 --mode eager --live-prompts 2 --threads 1 --max-new-tokens 12",
            "run",
            complaints_of_run,
            kept_of_run,
            evaluation,
            num_units=NUM_PROMPTS + 2 * num_batches(work_dir) + MIN_LOADS,
            is_finished=lambda path: (path / "evaluation.json").exists(),
            pages=("report.json", "report.md", "report.html"),
        ),
        Command(
            "bench",
            f"bench {work_dir}/draft-int4 -t {target} -o {out}/bench -m 1,3 --batch-sizes 1,2 "
            "--context-lengths 16 --seconds 0.05 --mode eager --threads 1",
            "bench",
            complaints_of_bench,
            kept_of_bench,
            bench,
            num_units=2 * MIN_LOADS,
            pages=("bench.md", "bench.html"),
        ),
    ]


def count_units(log: Path) -> None:
    """In a child: write a line for every piece of work that is computed."""
    from quantdraft.measure import answerers as answering
    from quantdraft.measure import replay
    from quantdraft.measure.latency.point import PointTiming
    from quantdraft.quantize import apply as quantization

    def counting(real: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{size(*arguments)}\n")
            return result

        return call

    logits, pieces = replay.response_logits, replay._pieces

    def replayed(*arguments: Any) -> Any:
        # The live loop's check asks for logits as well, of the loop's own texts: not counted.
        replay._pieces = counting(pieces, lambda *rest: 1)
        yield from logits(*arguments)
        replay._pieces = pieces

    own = answering.OwnTarget
    own.answers = counting(own.answers, lambda target, prompts, *rest: len(prompts))
    replay.response_logits = replayed
    PointTiming.time_arms = counting(PointTiming.time_arms, lambda *rest: 1)
    quantization.apply = counting(quantization.apply, lambda *rest: 1)


def units(kept: dict[str, Any]) -> int:
    """Pieces of work among the finished parts."""
    counted = ("prompt", "batch", "point", "stage latency-", "candidate")
    return sum(name.startswith(counted) for name in kept)


def complaints_of_traffic(path: Path) -> list[str]:
    """A capture is whole when it has the number of lines that its header says."""
    lines = path.read_text(encoding="utf-8").splitlines()
    is_whole = len(lines) == 1 + json.loads(lines[0])["num_prompts"]
    return [] if is_whole else [f"{path.name} has {len(lines)} lines"]


def captured(partial: Path, batch_size: int) -> dict[str, Any]:
    """The answers of whole batches in an unfinished capture."""
    if not partial.exists():
        return {}
    lines = [line for line in partial.read_bytes().splitlines(True)[1:] if line.endswith(b"\n")]
    num_done = len(lines) if len(lines) == NUM_PROMPTS else len(lines) // batch_size * batch_size
    return {f"prompt {i}": line.decode() for i, line in enumerate(lines[:num_done])}


def complaints_of_checkpoint(path: Path) -> list[str]:
    """A checkpoint is whole when its manifest, the last thing written, is there."""
    names = ("quantdraft.json", "config.json", "model.safetensors", "tokenizer.json")
    return [f"{name} is missing" for name in names if not (path / name).is_file()]


def checkpoint(path: Path) -> Any:
    """Hashes of all files; the manifest without the machine's load at the time."""
    manifest = json.loads((path / "quantdraft.json").read_text())
    manifest.pop("environment")
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.iterdir()
        if file.name != "quantdraft.json"
    }
    return files, manifest


def complaints_of_run(path: Path) -> list[str]:
    """Every JSON file of a run can be read at any time."""
    complaints = []
    for file in path.rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            complaints.append(f"{file.name}: {error}")
    return complaints


def kept_of_run(path: Path) -> dict[str, Any]:
    """Its stages, its captured prompts, its replayed batches."""
    traffic = path / "traffic.jsonl"
    kept = captured(traffic if traffic.exists() else path / "traffic.jsonl.partial", 8)
    for file in (path / "stages").glob("*.json"):
        kept[f"stage {file.stem}"] = file.read_text()
    for arm in ("baseline", "candidate"):
        kept |= batches(path, arm, path / "traffic.jsonl")
    return kept


def batches(run_dir: Path, arm: str, traffic: Path) -> dict[str, Any]:
    """Batches of a replay in which every token has its number."""
    path = run_dir / "stages" / f"keep-{arm}.f64"
    if not path.with_suffix(".json").exists():
        return {}
    responses = all_responses(traffic)
    values = np.fromfile(path)
    ends = np.cumsum([len(r.response_token_ids) for r in responses])
    each = np.split(values, ends[:-1])
    whole = {}
    for batch in replay_batches(responses):
        if all(not np.isnan(each[prompt]).any() for prompt in batch):
            whole[f"batch {arm} {batch}"] = [each[prompt].tolist() for prompt in batch]
    return whole


def num_batches(work_dir: Path) -> int:
    """Batches of a replay of the tiny traffic."""
    return len(replay_batches(all_responses(work_dir / "traffic.jsonl")))


def all_responses(path: Path) -> Any:
    from quantdraft.traffic.traffic import read_traffic

    return read_traffic(path).responses


def replay_batches(responses: Any) -> list[list[int]]:
    from quantdraft.measure.replay import _batches
    from tests.conftest import VOCAB_SIZE

    return list(_batches(responses, VOCAB_SIZE))


def evaluation(path: Path) -> Any:
    """The record without its times, and what follows from them."""
    record = json.loads((path / "evaluation.json").read_text())
    names = ("name", "acceptance_rule", "num_speculative_tokens", "acceptance", "prompts", "live")
    equal = {name: record[name] for name in names}
    arms = record["latency"]["arms"]
    return equal | {"arms": {name: sorted(arm["steps"]) for name, arm in arms.items()}}


def complaints_of_bench(path: Path) -> list[str]:
    """The record is there."""
    return [] if (path / "bench.json").is_file() else ["bench.json is missing"]


def kept_of_bench(path: Path) -> dict[str, Any]:
    """Loads that were timed: in the record, or beside an output that is not there yet."""
    if path.exists():
        points = json.loads((path / "bench.json").read_text())["points"]
        return {
            f"point {p['batch_size']}-{p['context_length']} load {load}": samples_of(p, load)
            for p in points
            for load in sorted(set(p["loads"]))
        }
    kept = {}
    for file in (path.with_name("bench.partial") / "stages").glob("point-*.json"):
        _, _, load, batch, context = file.stem.split("-")
        part = json.loads(file.read_text())["part"]
        kept[f"point {batch}-{context} load {load}"] = samples_of(part, 0)
    return kept


def samples_of(point: dict[str, Any], load: int) -> dict[str, list[float]]:
    """Every step's samples of one load."""
    return {
        f"{name} {width}": [
            ms
            for place, ms in enumerate(step["samples_ms"])
            if point["loads"][(step["blocks"] or range(place + 1))[place]] == load
        ]
        for name, arm in point["arms"].items()
        for width, step in arm["steps"].items()
    }


def bench(path: Path) -> Any:
    """The points without their times."""
    from quantdraft.record import read_bench

    record = asdict(read_bench(path / "bench.json"))
    return [
        (p["batch_size"], p["context_length"], name, sorted(arm["steps"]), arm["step_bytes"])
        for p in record["points"]
        for name, arm in p["arms"].items()
    ]


def difference(one: Any, other: Any) -> str:
    """Where two results part, shortened."""
    pair = [one, other]
    while isinstance(pair[0], dict) and isinstance(pair[1], dict):
        keys = [key for key in {**pair[0], **pair[1]} if pair[0].get(key) != pair[1].get(key)]
        pair = [each.get(keys[0]) for each in pair]
    return " against ".join(str(each)[:500] for each in pair)
