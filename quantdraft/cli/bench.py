"""bench: step times over batch, context and new tokens."""

from __future__ import annotations

from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_recorded
from quantdraft.cli.values import (
    ModelName,
    Name,
    Positive,
    known_shapes,
    parse_names,
    parse_numbers,
    recipe_names,
)
from quantdraft.common.progress import show_progress
from quantdraft.record.choices import ModeChoice

SHAPE = Name("shape", known_shapes, is_open=True)


@click.command(
    cls=Command,
    short_help="Time the steps of a target and its drafts.",
    example="quantdraft bench --shape llama-3.2-1b --recipes int4,int8,int4-head8",
    stopped="Finished points are kept beside the output: the same command goes on with the next.",
)
@click.argument("candidates", nargs=-1, type=ModelName())
@options.target("The target: its passes over m new tokens are timed too.")
@options.BASELINE
@click.option(
    "--shape",
    type=SHAPE,
    help="Time random weights in the shape of a published model, e.g. llama-3.2-1b.",
)
@click.option("--target-shape", type=SHAPE, help="With --shape: the shape of the target.")
@options.recipe_list(
    recipe_names,
    "--recipes",
    help="With --shape: the recipes of the candidates, e.g. int4,int8,int4-head8.",
)
@options.CHANGES
@click.option(
    "--batch-sizes",
    metavar="NUMBERS",
    default="1,2,4,8,16,32,64",
    show_default=True,
    help="The batch sizes that are timed.",
)
@click.option(
    "--context-lengths",
    metavar="NUMBERS",
    default="128,512,2048",
    show_default=True,
    help="The numbers of cached tokens that are timed.",
)
@click.option(
    "--new-tokens",
    "-m",
    metavar="NUMBERS",
    default="1-17",
    show_default=True,
    help="The numbers of new tokens in the target's passes.",
)
@click.option("--seconds", type=Positive(), default=20.0, show_default=True, help=options.SECONDS)
@options.MODE
@options.threads()
@options.DEVICE
@options.output("The directory of the record. Default: ./bench-<draft>.")
@options.force()
@options.json_output("Print the record as JSON.")
def bench(
    candidates: tuple[str, ...],
    target: str | None,
    baseline: str | None,
    shape: str | None,
    target_shape: str | None,
    recipes: str | None,
    changes: tuple[str, ...],
    batch_sizes: str,
    context_lengths: str,
    new_tokens: str,
    seconds: float,
    mode: ModeChoice,
    threads: int | None,
    device: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Time steps over batch size, context length and number of new tokens.

    CANDIDATES are directories that `apply` wrote. Baseline, control (the baseline a second time)
    and candidates take turns in shuffled blocks; the table has this machine's memory bandwidth
    beside them. A point that does not fit into memory or time is left out, and the table says so.
    Writes bench.json and bench.md.
    """
    with show_progress("bench"):
        from quantdraft.quantize.recipe_changes import parse_changes
        from quantdraft.report import (
            BENCH_PAGE,
            BENCH_RECORD_FILE,
            render_bench,
            report_again,
            where,
        )
        from quantdraft.workflows.bench import BenchSettings
        from quantdraft.workflows.bench import bench as run_bench

        settings = BenchSettings(
            candidates=candidates,
            target=target,
            baseline=baseline,
            shape=shape,
            target_shape=target_shape,
            recipes=parse_names(recipes),
            changes=parse_changes(changes),
            batch_sizes=parse_numbers(batch_sizes, "--batch-sizes"),
            context_lengths=parse_numbers(context_lengths, "--context-lengths"),
            new_tokens=parse_numbers(new_tokens, "--new-tokens"),
            seconds=seconds,
            mode=mode,
            threads=threads,
            device=device,
            output=output,
            force=force,
        )
        measured = run_bench(settings)
        output = settings.directory(measured.name)
    record = output / BENCH_RECORD_FILE
    named = where(output, BENCH_RECORD_FILE, report_again(output), BENCH_PAGE)
    print_recorded(record, [render_bench(measured), named], as_json)
