"""demo: the whole path in one command."""

from __future__ import annotations

from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines, tell, tell_aside
from quantdraft.cli.values import AT_LEAST_1
from quantdraft.common.progress import show_progress


@click.command(
    cls=Command,
    short_help="Try the whole path on a small pair that comes with the package.",
    example="quantdraft demo --recipe int4 --num-prompts 16 -o demo-run",
    stopped="What is finished is kept in the output: the same command goes on from there.",
)
@options.output("The directory of everything that is made.", "demo-run")
@options.several_recipes(
    "names", "A recipe to apply and evaluate. Default: a choice of bundled ones."
)
@click.option(
    "--num-prompts",
    type=AT_LEAST_1,
    default=32,
    show_default=True,
    help="How many of the embedded prompts are used.",
)
@click.option(
    "--inputs-only",
    is_flag=True,
    help="Only write the pair and its prompts into the directory, to try the commands on.",
)
@options.force()
@options.json_output("Print each recipe's verdict as JSON.")
def demo(
    output: Path,
    names: tuple[str, ...],
    num_prompts: int,
    inputs_only: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Do every step on the embedded pair: capture, apply, evaluate, compare, select, export."""
    with show_progress("demo"):
        from quantdraft.workflows.demo import demo as run_demo
        from quantdraft.workflows.demo import write_inputs

        if inputs_only:
            written = [str(path) for path in write_inputs(output, force=force)]
            if as_json:
                print_json({"output": str(output), "written": written})
            else:
                print_lines(
                    [
                        *written,
                        f"Next: quantdraft capture --target {output / 'target'} "
                        f"--prompts {output / 'prompts.jsonl'} -o traffic.jsonl",
                    ]
                )
            return
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
