"""Commands that need no run: what there is, what fits, what could be gained."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import columns, print_json, print_lines
from quantdraft.cli.values import (
    AT_LEAST_1,
    Model,
    Name,
    Recipe,
    gpu_names,
    parse_ks,
    recipe_and_sweep_names,
    shape_names,
)
from quantdraft.common.progress import step
from quantdraft.errors import OptionError
from quantdraft.record.terms import USUAL_K

A_CONFIG = Name("shape", shape_names, is_open=True)


@click.command(
    cls=Command,
    short_help="What can be done to a draft, and with what here.",
    example="quantdraft recipes show int4",
)
@click.argument("action", required=False, type=Name("action", lambda: ("list", "show")))
@click.argument("name", required=False, type=Recipe("recipe", recipe_and_sweep_names, is_open=True))
@options.as_json()
def recipes(action: str | None, name: str | None, as_json: bool) -> None:
    """List the bundled recipes, or show one: `quantdraft recipes show int4`.

    The list says what each needs, on which devices a kernel computes in it, and which engines load
    the result.
    """
    with step("recipes"):
        from quantdraft.workflows import list_recipes as catalogue

        if action != "show" and name is not None:
            raise OptionError(f"`list` takes no name. `quantdraft recipes show {name}`.")
        if action != "show":
            shown = catalogue.as_json() if as_json else "\n".join(catalogue.listing(columns()))
        elif name is None:
            raise OptionError("which one? `quantdraft recipes show NAME`.")
        else:
            shown = catalogue.as_json(name) if as_json else catalogue.shown(name)
    click.echo(shown)


@click.command(
    cls=Command,
    short_help="Do target and draft fit, and can it pay at all?",
    example="quantdraft check --target T --draft D",
)
@options.target(required=True)
@click.option("--draft", "-d", type=Model(), required=True, help=options.A_DRAFT)
@click.option("-k", "--num-speculative-tokens", "k", type=int, default=USUAL_K, show_default=True)
@options.POLICY
@options.as_json()
def check(target: str, draft: str, k: int, policy: Path | None, as_json: bool) -> None:
    """Do target and draft fit, and how much could quantizing the draft gain at most?

    Exit code 0: compatible; 1: not. Every finding is one line with what to do.
    """
    with step("check"):
        from quantdraft.workflows.check import check as check_pair

        result = check_pair(target, draft, k, policy)
    if as_json:
        print_json(asdict(result))
    else:
        print_lines(result.lines())
    if not result.is_compatible:
        sys.exit(1)


@click.command(
    cls=Command,
    short_help="Predict the speedup by k, without any model.",
    example="quantdraft plan --alpha 0.75 --draft-cost 0.05",
)
@click.option(
    "--alpha",
    "-a",
    type=float,
    help="Acceptance per token asked for, in 0..1: alpha of the paper and of our reports.",
)
@click.option(
    "--acceptance-rate", type=float, help="Instead of alpha: accepted / proposed, as engines print."
)
@click.option(
    "--measured-k",
    type=AT_LEAST_1,
    help="The k at which that rate was counted. Default: -k, where it is one value.",
)
@click.option(
    "--draft-cost",
    "-c",
    type=float,
    help="A draft step over a step of the target; 0 for n-gram proposals.",
)
@options.KS
@click.option(
    "--target-config", "-t", type=A_CONFIG, help="A config.json, its directory, or a known shape."
)
@click.option("--draft-config", "-d", type=A_CONFIG, help="The same of the full-precision draft.")
@click.option(
    "--device",
    type=Name("device", gpu_names, is_open=True),
    help="a100, l4, l40s, rtx-4090, h100, h200, b200, mi300x, mi325x.",
)
@click.option("--context-length", type=int, default=0, show_default=True, help="Cached tokens.")
@options.as_json()
def plan(ks: str, as_json: bool, **given: Any) -> None:
    """Predict the speedup by k from an acceptance and a cost; no model is needed.

    The rate that an engine prints is not alpha, and falls with k: say at which k it was counted.

    \b
      quantdraft plan --acceptance-rate 0.5 --measured-k 4 --draft-cost 0.05

    \b
    The cost of a pair that is not here, and what each recipe could gain, from its configs:
      quantdraft plan -a 0.75 --target-config llama-3.1-8b --draft-config llama-3.2-1b --device h200

    Everything it prints is a prediction; `quantdraft evaluate` measures.
    """
    with step("plan"):
        from quantdraft.workflows.plan import PlanSettings, plan_lines
        from quantdraft.workflows.plan import plan as make_plan

        made = make_plan(PlanSettings(ks=parse_ks(ks), **given))
    if as_json:
        print_json(made.as_dict())
    else:
        print_lines(plan_lines(made))
