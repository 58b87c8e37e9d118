"""Commands over several drafts and recipes: sweep and select."""

from __future__ import annotations

import sys
from typing import Any

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_lines, print_record, tell, tell_aside
from quantdraft.cli.values import (
    DIRECTORY,
    Name,
    Positive,
    Recipe,
    parse_ks,
    parse_names,
    recipe_and_sweep_names,
    recipe_names,
)
from quantdraft.common.progress import step


@click.command(
    cls=Command,
    short_help="Many drafts and recipes: apply, evaluate, compare.",
    example="quantdraft sweep --draft D --recipes ladder --target T --traffic traffic.jsonl",
    stopped="Finished cells are kept in the output: the same command goes on with the next.",
)
@options.drafts("One or more.")
@options.recipe_list(
    recipe_and_sweep_names,
    "--recipes",
    "-r",
    required=True,
    help="fp8,int8,int4; `ladder` stands for these.",
)
@options.TRAFFIC
@options.target(options.NO_TARGET)
@options.CALIBRATION
@click.option("--by-domain", is_flag=True, help="One evaluation for each domain of the traffic.")
@options.KS
@options.ACCEPTANCE_RULE
@options.latency_seconds(20.0, "A run.")
@options.no_latency()
@options.live_prompts(4, "0: no live loop.")
@options.POLICY
@options.SEED
@options.DEVICE
@options.dtype("Of replay and the live loop.")
@options.threads("CPU threads of a job. Default: torch's own choice.")
@click.option(
    "--executor",
    type=Name("executor", lambda: options.EXECUTORS),
    default="local",
    show_default=True,
)
@click.option("--ray-address", help="A running cluster: auto, HOST:PORT. Default: this machine's.")
@click.option(
    "--cpus", type=Positive(), help="ray: CPUs of a job. Default: --threads, or a whole node."
)
@click.option("--gpus", type=float, default=0.0, show_default=True, help="ray: GPUs of a job.")
@click.option("--memory-gb", type=Positive(), help="ray: memory of a job.")
@click.option("--shared", "is_shared", is_flag=True, help="ray: all nodes see the same files.")
@options.output("sweep")
@options.force("Add to a directory that holds something else.")
@options.as_json("Print the record as JSON.")
def sweep(ks: str, recipes: str, as_json: bool, **given: Any) -> None:
    """Every draft under every recipe, evaluated on the same traffic, and compared.

    What is finished is kept by the content of its inputs: the same command goes on where it
    stopped, and a longer list of recipes computes only what is new. Recipes that cannot be applied
    here are listed with the reason. With --executor ray the jobs go to a cluster's nodes; time
    steps there only with a whole node for a job (the default).
    """
    with step("sweep"):
        from quantdraft.workflows.sweep.grid import SweepSettings
        from quantdraft.workflows.sweep.sweep import SWEEP_FILE
        from quantdraft.workflows.sweep.sweep import sweep as run_sweep

        settings = SweepSettings.of(ks=parse_ks(ks), recipes=parse_names(recipes), **given)
        result = run_sweep(settings, tell_aside if as_json else tell)
    if as_json:
        print_record(settings.output / SWEEP_FILE)
    if len(result.failed) == len(result.cells):
        sys.exit(1)


@click.command(
    cls=Command,
    short_help="Which of several drafts, which recipe, which k?",
    example=(
        "quantdraft select --target T --draft A --draft B --recipe int4 --traffic traffic.jsonl"
    ),
    stopped="Finished runs are kept in the output: the same command goes on with the next.",
)
@options.target(required=True)
@options.drafts("Give each with one.")
@click.option(
    "--recipe",
    "-r",
    "recipes",
    type=Recipe("recipe", recipe_names, is_open=True),
    multiple=True,
    help="Each draft under it too.",
)
@options.TRAFFIC
@options.CALIBRATION
@options.KS
@options.ACCEPTANCE_RULE
@options.BATCH_SIZE
@options.context_length("Default: the traffic's median.")
@options.latency_seconds(10.0, "A run.")
@options.no_latency("Acceptance only: ordered by prediction.")
@options.live_prompts(0, "Proof of a replay.")
@options.POLICY
@options.SEED
@options.DEVICE
@options.dtype("Of replay and the live loop.")
@options.threads()
@click.option(
    "--run",
    "runs",
    type=DIRECTORY,
    multiple=True,
    help="A finished evaluation: not measured again where it is one of these.",
)
@options.output("selection")
@options.force("Add to a directory that holds something else.")
@options.as_json("Print the record as JSON.")
def select(ks: str, as_json: bool, **given: Any) -> None:
    """Choose among drafts: which one, under which recipe, at which k, for this target's traffic.

    Drafts that do not speak the target's tokens are refused. The others are replayed on the same
    tokens and timed, and ordered by speed over the target alone, with the reasons. A killed run
    goes on where it stopped when the same command is given again.
    """
    with step("select"):
        from quantdraft.workflows.select import SelectSettings, selection_text
        from quantdraft.workflows.select import select as select_draft

        settings = SelectSettings.of(ks=parse_ks(ks), **given)
        selection = select_draft(settings, tell_aside)
    if as_json:
        print_record(settings.output / "selection.json")
    else:
        print_lines([selection_text(selection), f"Report: {settings.output / 'report.html'}"])
