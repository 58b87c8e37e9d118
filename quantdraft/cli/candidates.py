"""A candidate made, and a candidate served: apply and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_items, print_json, print_lines, tell_aside
from quantdraft.cli.values import DIRECTORY, Model, Name, serving_names
from quantdraft.common.progress import step
from quantdraft.errors import OptionError

WARNING = "WARNING: "
ENGINE = Name("engine", serving_names, is_open=True)


@click.command(
    cls=Command,
    short_help="Quantize a draft by a recipe, and prove that it worked.",
    example="quantdraft apply --recipe int4 --draft D -o D-int4",
    stopped="Nothing was written: an output appears whole or not at all.",
)
@options.RECIPE
@click.option(
    "--draft",
    "-d",
    type=Model(),
    required=True,
    help="The full-precision draft: directory or Hub id.",
)
@options.output(help_text="Default: ./<draft>-<recipe>.")
@click.option(
    "--calibration",
    type=DIRECTORY,
    help="JSONL: traffic, or texts. Or the Hub id that the recipe names, to download it.",
)
@options.DEVICE
@options.POLICY
@options.force()
@options.as_json("Print the manifest as JSON.")
def apply(
    recipe: str,
    draft: str,
    output: Path | None,
    policy: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Quantize a draft by a recipe, and prove that it worked.

    The output directory appears whole or not at all. Before success is printed it is opened again:
    it loads, its logits differ from the draft's, they are those of its own dequantized weights, and
    its bytes are what the scheme promises. A killed run leaves nothing and starts from the
    beginning; the same inputs and seed give the same bytes.
    """
    with step("apply") as now:
        from quantdraft.judge.verdict.policy import load_policy
        from quantdraft.quantize.apply import applied_lines
        from quantdraft.quantize.apply import apply as apply_recipe
        from quantdraft.quantize.recipe import load_recipe

        limit = load_policy(policy).min_speedup_over_baseline
        known = load_recipe(recipe)
        if given["calibration"] is not None and not known.needs_calibration:
            raise OptionError(f"recipe {recipe!r} is not calibrated. Leave out --calibration.")
        made = apply_recipe(
            known, draft, output, min_speedup=limit, progress=now, announce=tell_aside, **given
        )
    if as_json:
        print_json(made.manifest)
    else:
        print_items(applied_lines(made), len("Written: "))


@click.command(
    cls=Command,
    short_help="A directory for an engine, with its launch line.",
    example="quantdraft export D-int4 --engine vllm --target T --run runs/D-int4 -o served",
    stopped="Nothing was written: an output appears whole or not at all.",
)
@click.argument("checkpoint", type=DIRECTORY)
@click.option(
    "--engine",
    "-e",
    required=True,
    type=ENGINE,
    metavar="ENGINE",
    help="vllm, sglang, transformers, tensorrt-llm or llamacpp.",
)
@options.target("The target, as the engine is to load it.", required=True)
@click.option("--run", type=DIRECTORY, help="The run directory with its evaluation.")
@click.option("-k", "--num-speculative-tokens", "k", type=int, help="Default: the measured best.")
@click.option("--output", "-o", required=True, type=DIRECTORY, help="Where the directory goes.")
@click.option("--pad-vocab", is_flag=True, help="Pad embedding and head to the target's rows.")
@click.option("--draft", type=DIRECTORY, help="llamacpp: the full-precision draft to convert.")
@click.option("--gguf-type", help="llamacpp: f16, bf16, q8_0 or q4_0. Default: as many bits.")
@click.option("--llamacpp", "llamacpp_dir", type=DIRECTORY, help="llamacpp: its sources.")
@click.option("--proof/--no-proof", default=True, help="llamacpp: let its built server try it.")
@click.option("--require-go", is_flag=True, help="Refuse anything but a go.")
@options.force()
@options.as_json()
def export(
    checkpoint: Path, engine: str, output: Path, k: int | None, as_json: bool, **given: Any
) -> None:
    """A directory the engine loads, a model card with the evidence, and the exact launch line.

    llama.cpp loads GGUF alone: it is made from the full-precision draft by llama.cpp's own
    converter where --llamacpp says where that is; else the commands are written. Where its server
    is built there too (or on PATH), it loads the file and speculates with it, and the card says
    what it counted.
    """
    with step("export"):
        from quantdraft.workflows.export.export import ExportSettings
        from quantdraft.workflows.export.export import export as export_checkpoint

        settings = ExportSettings(checkpoint, engine, output, num_speculative_tokens=k, **given)
        lines = export_checkpoint(settings).lines
    if as_json:
        print_json({"output": str(output), "engine": engine, "said": lines})
    else:
        print_items([line for line in lines if line.startswith(WARNING)], len(WARNING))
        print_lines([line for line in lines if not line.startswith(WARNING)])
