"""demo: the whole path in one command."""

from __future__ import annotations

from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, tell, tell_aside
from quantdraft.cli.values import AT_LEAST_1, RecipeName, recipe_names
from quantdraft.common.progress import step


@click.command(
    cls=Command,
    short_help="The whole job on a small pair that comes along.",
    example="quantdraft demo --recipe int4 --num-prompts 16 -o demo-run",
    stopped="What is finished is kept in the output: the same command goes on from there.",
)
@options.output("The directory of everything that is made.", "demo-run")
@click.option(
    "--recipe",
    "-r",
    "names",
    type=RecipeName("recipe", recipe_names, is_open=True),
    multiple=True,
    help="A recipe to apply and evaluate. Default: a choice of bundled ones.",
)
@click.option(
    "--num-prompts",
    type=AT_LEAST_1,
    default=32,
    show_default=True,
    help="How many of the embedded prompts are used.",
)
@options.force()
@options.json_output("Print each recipe's verdict as JSON.")
def demo(
    output: Path, names: tuple[str, ...], num_prompts: int, force: bool, as_json: bool
) -> None:
    """Do the whole job on the embedded pair: apply, evaluate, verdict, report, compare, export."""
    with step("demo"):
        from quantdraft.workflows.demo import demo as run_demo

        say = tell_aside if as_json else tell
        evaluations = run_demo(output, names, num_prompts=num_prompts, force=force, say=say)
    if as_json:
        verdicts = [
            {
                "recipe": evaluation.name,
                "decision": evaluation.verdict.decision,
                "summary": evaluation.verdict.summary,
                "run": str(output / "runs" / evaluation.name),
            }
            for evaluation in evaluations
        ]
        print_json({"output": str(output), "verdicts": verdicts})
