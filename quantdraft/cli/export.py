"""export: a directory that an engine loads, with its launch line."""

from __future__ import annotations

from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_items, print_json, print_lines
from quantdraft.cli.values import A_PATH, Name
from quantdraft.common.progress import show_progress
from quantdraft.engines.registry import ENGINES

WARNING = "WARNING: "
ENGINE = Name("engine", lambda: list(ENGINES), is_open=True)


@click.command(
    cls=Command,
    short_help="Write a directory for an engine, with its launch line.",
    example="quantdraft export D-int4 --engine vllm --target T --run runs/D-int4 -o served",
    stopped="Nothing was written: an output appears whole or not at all.",
)
@click.argument("checkpoint", type=A_PATH)
@click.option(
    "--engine",
    "-e",
    required=True,
    type=ENGINE,
    metavar="ENGINE",
    help=f"The engine that will serve: {', '.join(ENGINES)}.",
)
@options.target(
    "The target, as the engine is to load it: a directory or Hub id[@revision].",
    required=True,
)
@click.option(
    "--run", type=A_PATH, help="The run directory of `evaluate`: its figures go into the card."
)
@options.speculative_tokens(
    "Tokens proposed in a round, for the launch line. Default: the measured best."
)
@options.output("The directory that is written.", required=True)
@click.option(
    "--pad-vocab",
    is_flag=True,
    help="Pad embedding and head to the target's number of rows.",
)
@click.option(
    "--draft", type=A_PATH, help="llamacpp: the full-precision draft that is converted to GGUF."
)
@click.option(
    "--gguf-type",
    help="llamacpp: f16, bf16, q8_0 or q4_0. Default: the type with the candidate's bits.",
)
@click.option(
    "--llamacpp", "llamacpp_dir", type=A_PATH, help="llamacpp: the directory of its sources."
)
@click.option(
    "--proof/--no-proof",
    default=True,
    help="llamacpp: whether its server, where it is built, loads and tries the file.",
)
@click.option("--require-go", is_flag=True, help="Refuse a candidate whose verdict is not a go.")
@options.force()
@options.json_output()
def export(
    checkpoint: Path,
    engine: str,
    target: str,
    run: Path | None,
    k: int | None,
    output: Path,
    pad_vocab: bool,
    draft: Path | None,
    gguf_type: str | None,
    llamacpp_dir: Path | None,
    proof: bool,
    require_go: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a directory that the engine loads, with a model card and the launch line.

    CHECKPOINT is a directory that `apply` wrote. llama.cpp loads GGUF alone: with --llamacpp its
    own converter makes it from the full-precision draft; else the commands for it are written.
    Where llama.cpp's server is built there (or on PATH), it loads the file and speculates with it,
    and the card says what it counted.
    """
    with show_progress("export"):
        from quantdraft.workflows.export.export import ExportSettings
        from quantdraft.workflows.export.export import export as export_checkpoint

        settings = ExportSettings(
            checkpoint,
            engine,
            output,
            target,
            run=run,
            num_speculative_tokens=k,
            pad_vocab=pad_vocab,
            draft=draft,
            gguf_type=gguf_type,
            llamacpp_dir=llamacpp_dir,
            proof=proof,
            require_go=require_go,
            force=force,
        )
        lines = export_checkpoint(settings).lines
    if as_json:
        print_json({"output": str(output), "engine": engine, "said": lines})
    else:
        print_items([line for line in lines if line.startswith(WARNING)], len(WARNING))
        print_lines([line for line in lines if not line.startswith(WARNING)])
