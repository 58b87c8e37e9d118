"""distill: train a draft to be accepted, through a recipe's rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_items, print_json, print_lines
from quantdraft.cli.values import (
    A_PATH,
    AT_LEAST_1,
    ModelName,
    Name,
    RecipeName,
    parse_numbers,
    recipe_names,
)
from quantdraft.common.progress import show_progress
from quantdraft.quantize.training.settings import LOSSES
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice


@click.command(
    cls=Command,
    short_help="Train a draft to be accepted, through a recipe's rounding.",
    example="quantdraft distill --draft D --target T --traffic traffic.jsonl --recipe int4 "
    "--minutes 30 -o D-int4-distilled",
    stopped="What was trained is kept beside the output: the same command goes on from there.",
)
@click.option(
    "--draft",
    "-d",
    type=ModelName(),
    help="The full-precision draft: a directory or Hub id[@revision].",
)
@options.traffic_file(required=True)
@options.target("The target, whose distributions are learnt. Only --loss ce does without.")
@click.option(
    "--recipe",
    "-r",
    type=RecipeName("recipe", recipe_names, is_open=True),
    help="The recipe through whose rounding is trained: the result has its format, as `apply` "
    "writes it. Default: none, the draft stays in full precision.",
)
@options.CHANGES
@options.output("The directory of the trained draft.", required=True)
@click.option("--minutes", type=float, help="How long to train, over all runs together.")
@click.option("--epochs", type=float, help="How often to see the training part, instead.")
@click.option(
    "--loss",
    type=Name("loss", lambda: tuple(LOSSES)),
    default="kl",
    show_default=True,
    help="What is made small. kl, tv: the distance to the target's distribution; lk: minus the "
    "logarithm of what of it is kept; ce: cross-entropy with a log's tokens; rounds, rounds-kl: tv "
    "and kl, each token weighted by the rounds that keeping it saves at -k.",
)
@options.speculative_tokens("Tokens proposed in a round: drafts are compared at this k.", 4)
@options.ACCEPTANCE_RULE
@click.option(
    "--init-layers",
    metavar="NUMBERS",
    help="Instead of --draft: cut one from the target, of these of its layers (0,5,11,17), with "
    "its embedding, norm and head.",
)
@click.option(
    "--layers",
    "num_layers",
    type=AT_LEAST_1,
    help="The same with so many layers, evenly spread.",
)
@click.option(
    "--share",
    type=float,
    help="The share of the conversations that is seen: most is trained on, a part chosen by. The "
    "rest is left for `evaluate`. Default: half; all of a file that `traffic --split` wrote.",
)
@click.option(
    "--learning-rate", type=float, default=5e-5, show_default=True, help="AdamW's, at its highest."
)
@click.option(
    "--batch-tokens", type=int, default=1024, show_default=True, help="Tokens of one update."
)
@click.option(
    "--max-length",
    type=int,
    default=1024,
    show_default=True,
    help="Tokens of a prompt with its response that are read; the rest is left out.",
)
@click.option(
    "--prompt-weight",
    type=float,
    default=1.0,
    show_default=True,
    help="The weight of a prompt's tokens in the loss; those of a response have 1.",
)
@click.option(
    "--num-probabilities",
    type=int,
    help="How many of the target's most probable tokens are kept at each place. Default: as many "
    "as leave the others 1 %.",
)
@click.option(
    "--patience",
    type=int,
    default=6,
    show_default=True,
    help="Training ends after so many looks, of 10 in all, without a better draft.",
)
@options.seed("The seed of the order in which conversations are seen.")
@options.log_reading
@click.option("--temperature", type=float, help="How a log that does not say was sampled.")
@click.option("--top-p", type=float, help="The top-p that goes with --temperature. Default: 1.")
@click.option("--top-k", type=int, help="The top-k that goes with --temperature. Default: none.")
@options.DEVICE
@options.dtype("The float type of products; weights and gradients stay float32.")
@options.threads()
@click.option(
    "--work",
    type=A_PATH,
    help="Where the target's distributions and the state are kept, also afterwards: another "
    "training takes the distributions over. Default: OUTPUT.training, removed at the end.",
)
@options.force("Replace an existing output, and an unfinished training of other settings.")
@options.json_output("Print the manifest as JSON.")
def distill(
    draft: str | None,
    traffic_path: Path,
    target: str | None,
    recipe: str | None,
    changes: tuple[str, ...],
    output: Path,
    minutes: float | None,
    epochs: float | None,
    loss: Any,
    k: int,
    acceptance_rule: AcceptanceRule | None,
    init_layers: str | None,
    num_layers: int | None,
    share: float | None,
    learning_rate: float,
    batch_tokens: int,
    max_length: int,
    prompt_weight: float,
    num_probabilities: int | None,
    patience: int,
    seed: int,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    device: str | None,
    dtype: DtypeChoice,
    threads: int | None,
    work: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a draft to be accepted, through a recipe's rounding.

    The conversations of the traffic are parted by hash: on some the draft is trained, by some the
    best draft is chosen, on the others `evaluate` judges it; they are never seen here. The target's
    distributions are computed once. The output directory appears whole or not at all, proven as
    `apply` proves it, and is replayed before it appears. A killed run goes on where it stopped when
    the same command is given again; with --epochs its result is the same to the bit.
    """
    with show_progress("distill") as now:
        from quantdraft.errors import OptionError
        from quantdraft.measure.settings import TrafficSettings
        from quantdraft.quantize.apply import next_step
        from quantdraft.quantize.recipe_changes import load_changed, parse_changes
        from quantdraft.quantize.training.settings import TrainingSettings
        from quantdraft.workflows.distill import DistillSettings, distilled_lines
        from quantdraft.workflows.distill import distill as distill_draft

        if changes and recipe is None:
            raise OptionError("--set changes a recipe, and none is given. Add --recipe.")
        if init_layers is not None and num_layers is not None:
            raise OptionError("give either --init-layers or --layers.")
        layers: int | tuple[int, ...] | None = num_layers
        if init_layers is not None:
            layers = parse_numbers(init_layers, "--init-layers", least=0)
        made = distill_draft(
            DistillSettings(
                output=output,
                traffic=TrafficSettings(
                    traffic_path,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    acceptance_rule=acceptance_rule,
                    read=options.read_settings(format_name, turns, template_kwargs, requests),
                ),
                draft=draft,
                target=target,
                recipe=None if recipe is None else load_changed(recipe, parse_changes(changes)),
                training=TrainingSettings(
                    loss=loss,
                    k=k,
                    minutes=minutes,
                    epochs=epochs,
                    learning_rate=learning_rate,
                    batch_tokens=batch_tokens,
                    max_length=max_length,
                    prompt_weight=prompt_weight,
                    num_probabilities=num_probabilities,
                    patience=patience,
                    seed=seed,
                ),
                layers=layers,
                share=share,
                device=device,
                dtype=dtype,
                threads=threads,
                work=work,
                force=force,
            ),
            now,
        )
    if as_json:
        print_json(made.manifest)
        return
    print_items(distilled_lines(made), len("Written: "))
    print_lines([f"Next:    {next_step(made)}"])
