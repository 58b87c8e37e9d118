"""select: which of several drafts, under which recipe, at which k."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_recorded, tell_aside
from quantdraft.cli.values import A_PATH, parse_ks
from quantdraft.common.progress import show_progress
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice


@click.command(
    cls=Command,
    short_help="Choose among several drafts, recipes and k.",
    example=(
        "quantdraft select --target T --draft A --draft B --recipe int4 --traffic traffic.jsonl"
    ),
    stopped="Finished runs are kept in the output: the same command goes on with the next.",
)
@options.target(required=True)
@options.drafts(
    "A full-precision draft: a directory or Hub id[@revision]. Give the option once for each."
)
@options.several_recipes(
    "recipes", "A recipe: each draft is measured under it too. Give the option once for each."
)
@options.CHANGES
@options.traffic_file(required=True)
@options.log_reading
@options.CALIBRATION
@options.KS
@options.ACCEPTANCE_RULE
@options.BATCH_SIZE
@options.CONTEXT_LENGTH
@options.latency_seconds(10.0)
@options.no_latency("Measure acceptance only; the order is then a prediction.")
@options.live_prompts(0)
@options.POLICY
@options.seed("The seed of resampling and of the live loop.")
@options.DEVICE
@options.dtype()
@options.threads()
@click.option(
    "--run",
    "runs",
    type=A_PATH,
    multiple=True,
    help="A finished evaluation: where it measured one of these, it is not measured again.",
)
@options.output("The directory of candidates, runs and report.", "selection")
@options.force(options.ADDS)
@options.json_output("Print the record as JSON.")
def select(
    target: str,
    drafts: tuple[str, ...],
    recipes: tuple[str, ...],
    changes: tuple[str, ...],
    traffic_path: Path,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    calibration: Path | None,
    ks: str,
    acceptance_rule: AcceptanceRule | None,
    batch_size: int,
    context_length: int | None,
    latency_seconds: float,
    no_latency: bool,
    live_prompts: int,
    policy: Path | None,
    seed: int,
    device: str | None,
    dtype: DtypeChoice,
    threads: int | None,
    runs: tuple[Path, ...],
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Choose among drafts: which one, under which recipe, at which k, for this target's traffic.

    Drafts with another vocabulary than the target's are refused. The others are replayed on the
    same tokens and timed, and listed in the order of their speed over the target alone, with the
    reasons. A killed run goes on where it stopped when the same command is given again.
    """
    with show_progress("select"):
        from quantdraft.measure.settings import SharedSettings, TimingSettings
        from quantdraft.quantize.recipe_changes import parse_changes
        from quantdraft.report import where
        from quantdraft.workflows.select.select import AGAIN, SelectSettings
        from quantdraft.workflows.select.select import select as select_draft
        from quantdraft.workflows.select.view import selection_text

        settings = SelectSettings(
            target=target,
            drafts=drafts,
            traffic_path=traffic_path,
            output=output,
            evaluations=SharedSettings(
                device=device,
                dtype=dtype,
                threads=threads,
                acceptance_rule=acceptance_rule,
                ks=parse_ks(ks),
                timing=TimingSettings(
                    batch_size=batch_size,
                    context_length=context_length,
                    latency_seconds=latency_seconds,
                    no_latency=no_latency,
                ),
                live_prompts=live_prompts,
                policy=policy,
                seed=seed,
                read=options.read_settings(format_name, turns, template_kwargs, requests),
            ),
            recipes=recipes,
            changes=parse_changes(changes),
            calibration=calibration,
            runs=runs,
            force=force,
        )
        selection = select_draft(settings, tell_aside)
    lines = [selection_text(selection), where(output, "selection.json", AGAIN)]
    print_recorded(output / "selection.json", lines, as_json)
