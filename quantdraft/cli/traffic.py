"""traffic: what is in a log, a capture, a file of prompts or a trace of lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines
from quantdraft.cli.values import A_FILE, ModelName
from quantdraft.common.progress import show_progress
from quantdraft.errors import OptionError


@click.command(
    cls=Command,
    short_help="Show what is in a log, and split it by conversation.",
    example="quantdraft traffic log.jsonl --split calibration=0.5,evaluation=0.5 -o parts",
    stopped="Nothing was written: the parts appear whole or not at all.",
)
@click.argument("files", nargs=-1, required=True, type=A_FILE, metavar="FILE...")
@click.option(
    "--tokenizer",
    "--target",
    "-t",
    "tokenizer",
    type=ModelName(),
    help="The target, whose tokenizer and chat template write the prompts: lengths are tokens, and "
    "what it cannot write is named. Default: characters, except where the file has token ids.",
)
@click.option("--draft", "-d", type=ModelName(), help="The same by a draft's tokenizer.")
@options.log_reading
@click.option(
    "--split",
    metavar="NAME=SHARE,...",
    help="Write parts of ONE file into --output, by conversation: calibration=0.5,evaluation=0.5. "
    "The same every time; each part is read back by every command.",
)
@options.output("With --split: the directory of the parts.")
@options.force("Replace the directory of the parts.")
@options.json_output()
def traffic(
    files: tuple[Path, ...],
    tokenizer: str | None,
    draft: str | None,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    split: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show what is in FILE, of any format that quantdraft reads, without running a model.

    What it was read as, the lines that were left out and why; conversations; counts by domain,
    model, finish reason and tool use; lengths of prompts and answers. Traces of lengths without
    text (Mooncake, BurstGPT, Azure) are read too: they say at which contexts to time.
    """
    with show_progress("traffic"):
        from quantdraft.traffic.split import parse_shares, split_traffic
        from quantdraft.workflows.traffic import describe_traffic, lines_of_all, split_lines

        if (split is None) != (output is None):
            raise OptionError("--split and --output go together: the parts, and their directory.")
        if split is not None and len(files) > 1:
            raise OptionError(f"--split takes one file, not {len(files)}. Split each by itself.")
        reading = options.read_settings(format_name, turns, template_kwargs, requests)
        if split is not None and output is not None:
            made = split_traffic(files[0], parse_shares(split), output, reading, force=force)
            shown = made.as_record(), split_lines(made)
        else:
            found = describe_traffic(files, tokenizer or draft, reading)
            has_tokenizer = (tokenizer or draft) is not None
            shown = (
                {"files": [each.as_record() for each in found]},
                list(lines_of_all(found, has_tokenizer)),
            )
    if as_json:
        print_json(shown[0])
    else:
        print_lines(shown[1])
