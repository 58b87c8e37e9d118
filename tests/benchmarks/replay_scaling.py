"""Measure replay's time and memory by the size of the traffic, 100 to 100,000 responses.

python -m tests.benchmarks.replay_scaling [--largest 10000] [--output reports/campaigns]

Traffic of random tokens is replayed under a tiny random draft, so that what is measured is the
product's own part: reading the file, batching, keeping the numbers, counting rounds for every k,
resampling the prompts. A real draft's passes come on top, and they too are one a response. Every
size runs in a process of its own, whose processor time is counted, so that others do not matter;
files are read from the disk from the first size on, as large ones always are.

The last line is one JSON object with `exponent`: the slope of log time over log size between 1,000
responses and the largest (1 is linear), and `bytes_per_response`: growth of the peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (100, 1_000, 10_000, 100_000)
VOCAB_SIZE, PROMPT_TOKENS, RESPONSE_TOKENS = 256, 16, (8, 33)
KS = tuple(range(1, 9))


def main() -> None:
    """Print a line a size, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= options.largest]
    import_everything()
    rows = []
    with tempfile.TemporaryDirectory(prefix="scaling.") as directory:
        for size in sizes:
            rows.append(measured(size, Path(directory)))
            print(as_line(rows[-1]), flush=True)
    found = summary(rows)
    if options.output is not None:
        write(rows, found, options.output)
    print(json.dumps(found))


def import_everything() -> None:
    """In the parent, which computes nothing."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import quantdraft.judge.comparison
    import quantdraft.measure.probabilities
    import quantdraft.measure.replay
    import quantdraft.traffic.jsonl

    torch.set_num_threads(1)
    quantdraft.traffic.jsonl.MAX_BYTES_IN_MEMORY = 0


def measured(size: int, work_dir: Path) -> dict[str, Any]:
    """Write the traffic, replay it in a child, and return what the child found."""
    path = work_dir / f"{size}.jsonl"
    write_traffic(path, size)
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, json.dumps(replayed(path, work_dir / str(size))).encode())
        finally:
            os._exit(0)
    os.close(told)
    with open(answer, encoding="utf-8") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return {"num_responses": size, "file_bytes": path.stat().st_size, **found}


def write_traffic(path: Path, size: int) -> None:
    """Random tokens, line by line."""
    from quantdraft.traffic.traffic import Response, Sampling, header_line, response_line

    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write(header_line(Sampling(), {"name": "random"}, size))
        for index in range(size):
            length = int(rng.integers(*RESPONSE_TOKENS))
            prompt, response = (
                tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in (PROMPT_TOKENS, length)
            )
            file.write(response_line(Response(f"p{index}", prompt, response)))


def replayed(path: Path, run_dir: Path) -> dict[str, Any]:
    """Processor seconds of every part, and by how much the peak memory grew."""
    from quantdraft.judge.acceptance import replay_rounds
    from quantdraft.judge.comparison.lengths import compare_acceptance
    from quantdraft.measure.probabilities import open_store_at
    from quantdraft.measure.replay import acceptance_probabilities
    from quantdraft.traffic.traffic import read_traffic, token_counts

    draft = tiny_draft()
    before, seconds, peaks = peak_bytes(), {}, {}

    def done(part: str) -> None:
        nonlocal started
        seconds[part], started = time.process_time() - started, time.process_time()
        peaks[part] = peak_bytes() - before

    started = time.process_time()
    traffic = read_traffic(path)
    done("read")
    num_tokens = token_counts(traffic.responses).response.tolist()
    with open_store_at(run_dir / "keep.f64", {"traffic": traffic.sha256}, num_tokens) as kept:
        keeps = acceptance_probabilities(draft, traffic, "greedy", store=kept)
    done("replay")
    names = [response.prompt_id for response in traffic.responses]
    rounds = replay_rounds(names, keeps, KS)
    done("rounds")
    compare_acceptance(rounds, rounds, KS[-1])
    done("resample")
    return {"num_tokens": sum(num_tokens), "seconds": seconds, "peak_bytes": peaks}


def tiny_draft() -> Any:
    """One layer, random: its passes cost next to nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.inference_mode():  # what the library sets up at its first pass is not the traffic's
        model(input_ids=torch.zeros(64, 48, dtype=torch.long))
    return model


def peak_bytes() -> int:
    """The most this process has held so far (Linux: kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Slope of the time, growth of the memory."""
    first, last = rows[min(1, len(rows) - 1)], rows[-1]
    times = [sum(row["seconds"].values()) for row in (first, last)]
    sizes = [row["num_responses"] for row in (first, last)]
    growth = sizes[1] - sizes[0]

    def per_response(part: str) -> float | None:
        return (last["peak_bytes"][part] - first["peak_bytes"][part]) / growth if growth else None

    slope = math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0]) if growth else None
    return {
        "largest": sizes[1],
        "seconds": round(times[1], 1),
        "exponent": None if slope is None else round(slope, 3),
        "bytes_per_response_replay": per_response("replay"),
        "bytes_per_response": per_response("resample"),
    }


def as_line(row: dict[str, Any]) -> str:
    """One size, for the table."""
    seconds, peak = row["seconds"], row["peak_bytes"]
    cells = [f"{row['num_responses']:,}", f"{row['file_bytes'] / 1e6:.1f}"]
    cells += [f"{seconds[part]:.2f}" for part in ("read", "replay", "rounds", "resample")]
    cells += [f"{1e3 * sum(seconds.values()) / row['num_responses']:.2f}"]
    cells += [f"{peak[part] / 1e6:.0f}" for part in ("read", "replay", "resample")]
    return f"| {' | '.join(cells)} |"


def write(rows: list[dict[str, Any]], found: dict[str, Any], output: Path) -> None:
    """replay_scaling.json, .md and .svg."""
    from quantdraft.common.files import write_json, write_text
    from quantdraft.report.charts.drawing import svg_file

    write_json(output / "replay_scaling.json", found | {"rows": rows})
    head = ["responses", "file, MB", "read, s", "replay, s", f"rounds of {len(KS)} k, s"]
    head += ["resample, s", "all, ms a response"]
    head += ["peak after reading, MB", "after replay, MB", "after resampling, MB"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    text = (
        "# Replay against the size of the traffic\n\n"
        f"`python -m tests.benchmarks.replay_scaling --largest {found['largest']}`: random traffic "
        f"({PROMPT_TOKENS} tokens of prompt, {RESPONSE_TOKENS[0]} to {RESPONSE_TOKENS[1] - 1} of "
        "response), a draft of one tiny layer, one thread. Seconds are the processor's; peaks are "
        "growth over the process before it read the traffic.\n\n"
        + "\n".join([*lines, *map(as_line, rows)])
        + "\n\n"
        f"Time grows with the power {found['exponent']} of the number of responses (1 is linear)."
        "\n\n"
        "![processor seconds and peak memory by number of responses](replay_scaling.svg)\n"
    )
    write_text(output / "replay_scaling.md", text)
    title = "Replay by number of responses: time and memory"
    write_text(output / "replay_scaling.svg", svg_file(scaling_chart(rows), title))


def scaling_chart(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, with what linear growth from the largest would be, and peak memory below."""
    import altair as alt

    from quantdraft.report.charts.style import CONFIG, LIGHT, inline

    largest = rows[-1]
    slope = sum(largest["seconds"].values()) / largest["num_responses"]
    points = [
        {
            "responses": row["num_responses"],
            "seconds": sum(row["seconds"].values()),
            "linear": slope * row["num_responses"],
            "megabytes": max(row["peak_bytes"].values()) / 1e6,
        }
        for row in rows
    ]
    log, sizes = alt.Scale(type="log"), [row["num_responses"] for row in rows]
    base = alt.Chart(inline(points)).encode(
        x=alt.X("responses:Q", title="responses", scale=log, axis=alt.Axis(values=sizes))
    )
    seconds = alt.Y("seconds:Q", title="processor seconds (dashed: linear)", scale=log)
    linear = base.mark_line(color=LIGHT["quiet"], strokeDash=[4, 3], strokeWidth=1)
    time_line = base.mark_line(point=True, color=LIGHT["candidate"]).encode(y=seconds)
    memory = base.mark_line(point=True, color=LIGHT["baseline"]).encode(
        y=alt.Y("megabytes:Q", title="peak memory, MB", scale=alt.Scale(domainMin=0))
    )
    sides = linear.encode(y=alt.Y("linear:Q", scale=log)) + time_line
    size = {"width": 420, "height": 260}
    drawn = sides.properties(**size) | memory.properties(**size)
    with alt.data_transformers.enable(consolidate_datasets=False):
        return {**drawn.to_dict(), "config": CONFIG}


if __name__ == "__main__":
    main()
