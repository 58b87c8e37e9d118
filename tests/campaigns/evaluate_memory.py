"""Measure the memory of `evaluate` by the number of prompts.

python -m tests.campaigns.evaluate_memory [--sizes 1000,10000] [--output reports/campaigns]

Whole evaluations, report included, of a tiny random draft on short random responses at 16 values of
k, without latency; every size in a process of its own. Traffic is read from the disk, as large
files always are. The last line is one JSON object with `bytes_per_prompt`, the growth of the peak
memory between the first size and the last, after each part: a part that does not raise the peak
fits into what an earlier one had freed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.replay_scaling import peak_bytes
from tests.evaluation_settings import evaluation_settings

KS = tuple(range(1, 17))
VOCAB_SIZE, PROMPT_TOKENS, RESPONSE_TOKENS = 512, 8, (8, 17)
PARTS = ("read_run_traffic", "judged", "write_report", "write_evaluation")


def main() -> None:
    """Print a line a size, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    import_everything()
    with tempfile.TemporaryDirectory(prefix="memory.") as directory:
        root = Path(directory)
        in_child(lambda: make_models(root))
        rows = [measured(size, root) for size in sizes]
    found = summary(rows)
    if options.output is not None:
        write(rows, found, options.output)
    print(json.dumps(found))


def import_everything() -> None:
    """In the parent, which computes nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import quantdraft.report.charts.drawing
    import quantdraft.traffic.jsonl
    import quantdraft.workflows.evaluate

    torch.set_num_threads(1)
    quantdraft.traffic.jsonl.MAX_BYTES_IN_MEMORY = 0


def in_child(work: Callable[[], Any]) -> Any:
    """What a forked process finds."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(told)
    with open(answer, encoding="utf-8") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return found


def make_models(root: Path) -> None:
    """A draft of one narrow layer, and a copy of it as the candidate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from quantdraft.quantize.apply import apply
    from quantdraft.quantize.recipe import load_recipe
    from tests.conftest import save_tokenizer

    torch.manual_seed(0)
    save_tokenizer(root / "draft")
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(root / "draft")
    apply(load_recipe("identity"), str(root / "draft"), root / "candidate")


def measured(size: int, root: Path) -> dict[str, Any]:
    """One size."""
    path = root / f"{size}.jsonl"
    write_traffic(path, size)
    row = {"num_prompts": size, **in_child(lambda: evaluated(path, root, root / str(size)))}
    print(as_line(row), flush=True)
    return row


def write_traffic(path: Path, size: int) -> None:
    """Random tokens of two domains, line by line."""
    from quantdraft.traffic.traffic import Response, Sampling, header_line, response_line

    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write(header_line(Sampling(), {"name": "random"}, size))
        for index in range(size):
            lengths = PROMPT_TOKENS, int(rng.integers(*RESPONSE_TOKENS))
            ids = (tuple(rng.integers(1, VOCAB_SIZE // 2, n).tolist()) for n in lengths)
            file.write(response_line(Response(f"p{index}", *ids, None, ("even", "odd")[index % 2])))


def evaluated(traffic: Path, root: Path, output: Path) -> dict[str, Any]:
    """The peak's growth up to the end of each part, and the size of the record."""
    from quantdraft.record import RECORD_FILE
    from quantdraft.workflows import evaluate as evaluation

    before, peaks, started = peak_bytes(), {}, time.process_time()

    def watched(part: str) -> Callable[..., Any]:
        real = getattr(evaluation, part)

        def call(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            peaks[part] = peak_bytes() - before
            return result

        return call

    for part in PARTS:
        setattr(evaluation, part, watched(part))
    evaluation.evaluate(
        evaluation_settings(
            candidate=str(root / "candidate"),
            baseline=str(root / "draft"),
            traffic_path=traffic,
            output=output,
            ks=KS,
            no_latency=True,
            threads=1,
        )
    )
    record = (output / RECORD_FILE).stat().st_size
    seconds = time.process_time() - started
    return {"peak_bytes": peaks, "record_bytes": record, "seconds": seconds}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth of every part's peak, and of the record, by prompt."""
    first, last = rows[0], rows[-1]
    num_more = last["num_prompts"] - first["num_prompts"]
    growth = {
        part: round((last["peak_bytes"][part] - first["peak_bytes"][part]) / num_more)
        for part in PARTS
    }
    record = round((last["record_bytes"] - first["record_bytes"]) / num_more)
    return {"num_ks": len(KS), "bytes_per_prompt": growth, "record_bytes_per_prompt": record}


def as_line(row: dict[str, Any]) -> str:
    """One size, for the table."""
    peaks = [f"{row['peak_bytes'][part] / 1e6:.0f}" for part in PARTS]
    record = f"{row['record_bytes'] / 1e6:.1f}"
    cells = [f"{row['num_prompts']:,}", *peaks, record, f"{row['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


def write(rows: list[dict[str, Any]], found: dict[str, Any], output: Path) -> None:
    """evaluate_memory.json and .md."""
    from quantdraft.common.files import write_json, write_text

    write_json(output / "evaluate_memory.json", found | {"rows": rows})
    sizes = ",".join(str(row["num_prompts"]) for row in rows)
    head = ["prompts", "after reading, MB", "after the judgement, MB", "after the report, MB"]
    head += ["after the record, MB", "record, MB", "processor seconds"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    growth = found["bytes_per_prompt"]
    text = (
        "# Memory of `evaluate` against the number of prompts\n\n"
        f"`python -m tests.campaigns.evaluate_memory --sizes {sizes}`: random traffic, {len(KS)} "
        "values of k, a draft of one narrow layer, no latency. Peaks are growth over the process "
        "before it began.\n\n" + "\n".join([*lines, *map(as_line, rows)]) + "\n\n"
        f"A prompt costs {growth['judged'] / 1e3:.1f} kB of memory up to the judgement and "
        f"{growth['write_evaluation'] / 1e3:.1f} kB in all, and "
        f"{found['record_bytes_per_prompt'] / 1e3:.1f} kB of the record. Tokens cost nothing: they "
        "and their keep probabilities stay on the disk.\n"
    )
    write_text(output / "evaluate_memory.md", text)


if __name__ == "__main__":
    main()
