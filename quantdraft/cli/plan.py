"""plan: the speedup by k, predicted without any model."""

from __future__ import annotations

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_json, print_lines
from quantdraft.cli.values import AT_LEAST_1, Name, gpu_names, known_shapes, parse_ks
from quantdraft.common.progress import show_progress

A_CONFIG = Name("shape", known_shapes, is_open=True)


@click.command(
    cls=Command,
    short_help="Predict the speedup by k, without any model.",
    example="quantdraft plan --alpha 0.75 --draft-cost 0.05",
)
@click.option(
    "--alpha",
    "-a",
    type=float,
    help="Acceptance per token that the draft is asked for, in 0..1 (arXiv:2211.17192).",
)
@click.option(
    "--acceptance-rate",
    type=float,
    help="Accepted / proposed tokens, as engines print it. Give it instead of --alpha.",
)
@click.option(
    "--measured-k",
    type=AT_LEAST_1,
    help="The k at which --acceptance-rate was counted. Default: -k, where that is one value.",
)
@click.option(
    "--draft-cost",
    "-c",
    type=float,
    help="The time of a draft step over that of a target step; 0 for n-gram proposals.",
)
@options.KS
@click.option(
    "--target-config",
    "-t",
    type=A_CONFIG,
    help="The target's config.json, its directory, or the name of a known shape.",
)
@click.option(
    "--draft-config",
    "-d",
    type=A_CONFIG,
    help="The full-precision draft's config.json, its directory, or the name of a known shape.",
)
@options.CHANGES
@click.option(
    "--device",
    type=Name("device", gpu_names, is_open=True),
    help="The device that serves: a100, l4, l40s, rtx-4090, h100, h200, b200, mi300x, mi325x.",
)
@click.option(
    "--context-length",
    type=int,
    default=0,
    show_default=True,
    help="Cached tokens that a step reads.",
)
@options.json_output()
def plan(
    alpha: float | None,
    acceptance_rate: float | None,
    measured_k: int | None,
    draft_cost: float | None,
    ks: str,
    target_config: str | None,
    draft_config: str | None,
    changes: tuple[str, ...],
    device: str | None,
    context_length: int,
    as_json: bool,
) -> None:
    """Predict the speedup by k from an acceptance and a cost; no model is needed.

    The rate that an engine prints is not alpha, and falls with k: say at which k it was counted.

    \b
      quantdraft plan --acceptance-rate 0.5 --measured-k 4 --draft-cost 0.05

    \b
    With the configs of a pair: its cost, and what each recipe could gain:
      quantdraft plan -a 0.75 --target-config llama-3.1-8b --draft-config llama-3.2-1b --device h200

    Everything it prints is a prediction; `quantdraft evaluate` measures.
    """
    with show_progress("plan"):
        from quantdraft.quantize.recipe_changes import parse_changes
        from quantdraft.workflows.plan.plan import PlanSettings
        from quantdraft.workflows.plan.plan import plan as make_plan
        from quantdraft.workflows.plan.view import plan_lines

        made = make_plan(
            PlanSettings(
                alpha=alpha,
                draft_cost=draft_cost,
                acceptance_rate=acceptance_rate,
                measured_k=measured_k,
                ks=parse_ks(ks),
                target_config=target_config,
                draft_config=draft_config,
                changes=parse_changes(changes),
                device=device,
                context_length=context_length,
            )
        )
    if as_json:
        print_json(made.as_dict())
    else:
        print_lines(plan_lines(made))
