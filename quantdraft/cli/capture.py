"""capture: the target's own responses to prompts, as traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines, tell_aside
from quantdraft.cli.values import A_FILE
from quantdraft.common.progress import show_progress
from quantdraft.record.choices import DtypeChoice


@click.command(
    cls=Command,
    short_help="Collect the target's own responses to your prompts.",
    example="quantdraft capture --target T --prompts prompts.jsonl -o traffic.jsonl",
    stopped="Finished batches are kept beside the output: the same command goes on with the next.",
)
@options.target(required=True)
@click.option(
    "--prompts", "-p", required=True, type=A_FILE, help="The prompts: a JSONL or ShareGPT file."
)
@options.log_reading
@options.output("The traffic file to write.", required=True)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="The sampling temperature. 0: the most probable token, always.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the most probable tokens that have this probability together.",
)
@click.option(
    "--top-k",
    type=int,
    default=0,
    show_default=True,
    help="Sample from this many of the most probable tokens. 0: no limit.",
)
@options.seed("The seed of the draws; each prompt has its own draws.")
@options.max_new_tokens("The longest response, in tokens.")
@click.option(
    "--batch-size",
    type=int,
    help="How many prompts are answered at once. Default: 32 where memory allows; 8 without the "
    "native engine.",
)
@click.option("--limit", type=int, metavar="N", help="Use only the first N prompts.")
@click.option(
    "--target-url",
    help="The URL of a vLLM server that serves the target; --target then names its tokenizer.",
)
@options.DEVICE
@options.dtype("The float type of the target.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run Python code that comes with the target. The traffic records that it was run.",
)
@options.force()
@options.json_output()
def capture(
    target: str,
    prompts: Path,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    output: Path,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    max_new_tokens: int,
    batch_size: int | None,
    limit: int | None,
    target_url: str | None,
    device: str | None,
    dtype: DtypeChoice,
    trust_remote_code: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Let the target answer prompts, and keep its responses as traffic.

    A killed run goes on where it stopped when the same command is given again.
    """
    with show_progress("capture"):
        from quantdraft.measure.capture import capture as capture_traffic
        from quantdraft.measure.settings import CaptureSettings
        from quantdraft.record.wording import counted
        from quantdraft.traffic.traffic import Sampling

        settings = CaptureSettings(
            target,
            prompts,
            output,
            sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            limit=limit,
            force=force,
            trust_remote_code=trust_remote_code,
            target_url=target_url,
            read=options.read_settings(format_name, turns, template_kwargs, requests),
        )
        traffic = capture_traffic(settings)
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
