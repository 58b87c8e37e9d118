"""apply: quantize a draft by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_items, print_json, print_lines, tell_aside
from quantdraft.cli.values import A_FILE
from quantdraft.common.progress import show_progress
from quantdraft.errors import OptionError


@click.command(
    cls=Command,
    short_help="Quantize a draft by a recipe, and prove that it worked.",
    example="quantdraft apply --recipe int4 --draft D -o D-int4",
    stopped="Nothing was written: an output appears whole or not at all.",
)
@options.RECIPE
@options.CHANGES
@options.draft("The full-precision draft: a directory or Hub id[@revision].")
@options.output("The directory of the candidate. Default: ./<draft>-<recipe>.")
@click.option(
    "--calibration",
    type=A_FILE,
    help="Traffic or texts (JSONL) for a recipe that is calibrated; or the Hub id of the data set "
    "that the recipe names, to download it. Of traffic one half is seen, by conversation, and "
    "`evaluate` judges on the other; --set calibration.share=1 takes all.",
)
@options.log_reading
@options.DEVICE
@options.POLICY
@options.force()
@options.json_output("Print the manifest as JSON.")
def apply(
    recipe: str,
    changes: tuple[str, ...],
    draft: str,
    output: Path | None,
    calibration: Path | None,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    device: str | None,
    policy: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize a draft by a recipe, and prove that it worked.

    The output directory appears whole or not at all. Before success is printed it is opened again
    and checked: it loads, its logits differ from the draft's and agree with those of its own
    dequantized weights, and its bytes are what the scheme promises. A killed run leaves nothing and
    starts from the beginning; the same inputs and seed give the same bytes.
    """
    with show_progress("apply") as now:
        from quantdraft.judge.verdict.policy import load_policy
        from quantdraft.quantize.apply import applied_lines, next_step
        from quantdraft.quantize.apply import apply as apply_recipe
        from quantdraft.quantize.recipe_changes import load_changed, parse_changes

        limit = load_policy(policy).min_speedup_over_baseline
        known = load_changed(recipe, parse_changes(changes))
        if calibration is not None and not known.needs_calibration:
            raise OptionError(f"recipe {recipe!r} is not calibrated. Leave out --calibration.")
        read = options.read_settings(format_name, turns, template_kwargs, requests)
        if read.as_record() and not known.reads_traffic:
            raise OptionError(
                f"recipe {recipe!r} is not calibrated on a log. Leave out the options that say "
                "how one is read: --format, --turns, --chat-template-kwargs, --requests."
            )
        made = apply_recipe(
            known,
            draft,
            output,
            calibration=calibration,
            read=read,
            device=device,
            force=force,
            min_speedup=limit,
            progress=now,
            announce=tell_aside,
        )
    if as_json:
        print_json(made.manifest)
    else:
        print_items(applied_lines(made), len("Written: "))
        print_lines([f"Next:    {next_step(made, policy)}"])
