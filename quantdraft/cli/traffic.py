"""capture: the target's own responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines, tell_aside
from quantdraft.cli.values import DIRECTORY
from quantdraft.common.progress import step


@click.command(
    cls=Command,
    short_help="The target's own responses to your prompts.",
    example="quantdraft capture --target T --prompts prompts.jsonl -o traffic.jsonl",
    stopped="Finished batches are kept beside the output: the same command goes on with the next.",
)
@options.target(required=True)
@click.option("--prompts", "-p", required=True, type=DIRECTORY, help="JSONL or ShareGPT file.")
@click.option("--output", "-o", required=True, type=DIRECTORY, help="Where the traffic goes.")
@options.sampling("0: greedy.", None, "0: no limit.")
@options.SEED
@options.max_new_tokens()
@click.option("--batch-size", type=int, default=8, show_default=True, help="Prompts at a time.")
@click.option("--limit", type=int, help="Only the first so many prompts.")
@click.option("--target-url", help="A vLLM server with the target: then --target is its tokenizer.")
@options.DEVICE
@options.dtype("float32, bfloat16, float16.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the target's own Python code. Recorded."
)
@options.force()
@options.as_json()
def capture(
    target: str,
    prompts: Path,
    output: Path,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Let the target answer prompts, and keep its responses as traffic.

    A killed run goes on where it stopped when the same command is given again.
    """
    with step("capture"):
        from quantdraft.measure.capture import capture as capture_traffic
        from quantdraft.record.wording import counted
        from quantdraft.traffic.traffic import Sampling

        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        traffic = capture_traffic(target, prompts, output, sampling=sampling, **given)
    num_responses, num_tokens = len(traffic.responses), traffic.num_tokens
    if as_json:
        print_json(
            {
                "output": str(output),
                "num_responses": num_responses,
                "num_tokens": num_tokens,
                "skipped": list(traffic.skipped),
            }
        )
        return
    for reason in traffic.skipped:
        tell_aside(f"Skipped: {reason}")
    print_lines(
        [
            f"{counted(num_responses, 'response')}, {counted(num_tokens, 'token')}: {output}",
            f"Next: quantdraft evaluate CANDIDATE --target {target} --traffic {output}",
        ]
    )
