"""Commands that run models: evaluate and bench."""

from __future__ import annotations

from typing import Any

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_lines, print_record
from quantdraft.cli.values import (
    DIRECTORY,
    Model,
    Name,
    Positive,
    optional_numbers,
    parse_ks,
    parse_names,
    parse_numbers,
    recipe_names,
    shape_names,
)
from quantdraft.common.progress import step

SHAPE = Name("shape", shape_names, is_open=True)


@click.command(
    cls=Command,
    short_help="Measure a quantized draft, and decide: go or no-go.",
    example="quantdraft evaluate D-int4 --target T --traffic traffic.jsonl",
    stopped="Finished stages are kept in the run directory: the same command goes on from there.",
)
@click.argument("candidate", type=Model())
@options.target(options.NO_TARGET)
@options.BASELINE
@click.option("--traffic", "traffic_path", type=DIRECTORY, help="From capture, or a log.")
@click.option("--prompts", type=DIRECTORY, help="Captured first, into the run directory.")
@options.output(help_text="Run directory. Default: runs/<candidate>.")
@options.KS
@options.ACCEPTANCE_RULE
@options.max_new_tokens("With --prompts.")
@options.told_sampling("With --prompts, or of a log that does not say.")
@options.SEED
@options.BATCH_SIZE
@options.context_length("Default: the traffic's median.")
@click.option("--batch-sizes", help="Time these too: 1,8,32. With every one of the contexts.")
@click.option(
    "--context-lengths", help="Time these too: 128,512. Default with --batch-sizes: the traffic's."
)
@options.latency_seconds(20.0, "A point.")
@options.MODE
@options.no_latency()
@options.live_prompts(4, "0: no live loop.")
@options.POLICY
@options.DEVICE
@options.dtype("Of replay and the live loop; of vLLM's servers.")
@options.threads()
@click.option(
    "--engine",
    type=Name("engine", lambda: options.ENGINES),
    default="native",
    show_default=True,
    help="Where speed is measured: this process's own kernels, or vLLM's servers.",
)
@click.option("--vllm-python", type=DIRECTORY, help="Python with vLLM. Default: the installed one.")
@click.option("--vllm-url", multiple=True, help="A running server: URL (candidate's), or ARM=URL.")
@click.option("--vllm-spec", multiple=True, help="KEY=VALUE for vLLM's speculative config.")
@click.option("--vllm-args", multiple=True, help="One more argument of vLLM's server.")
@click.option("--vllm-prompts", type=int, help="Only so many prompts are served. Default: all.")
@click.option("--vllm-k", type=int, help="The k that is served. Default: the nearest of -k to 4.")
@click.option("--vllm-loads", type=int, help="Starts of each arm's server. Default: 2.")
@options.force("Replace a finished run.")
@options.as_json("Print the record as JSON.")
def evaluate(
    candidate: str,
    ks: str,
    batch_sizes: str | None,
    context_lengths: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure a quantized draft against its full-precision self, and decide.

    Replays the traffic through both drafts (same tokens, every k at once), runs the live loop on a
    few prompts as proof, times draft and target steps in turns, and writes evaluation.json,
    report.md and report.html. A killed run resumes.
    """
    with step("evaluate"):
        from quantdraft.measure.settings import Settings
        from quantdraft.record import RECORD_FILE
        from quantdraft.report import render_verdict
        from quantdraft.workflows.evaluate import evaluate as evaluate_candidate

        settings = Settings(
            candidate=candidate,
            ks=parse_ks(ks),
            batch_sizes=optional_numbers(batch_sizes, "--batch-sizes"),
            context_lengths=optional_numbers(context_lengths, "--context-lengths"),
            **given,
        )
        evaluation, run_dir = evaluate_candidate(settings)
    if as_json:
        print_record(run_dir / RECORD_FILE)
    else:
        print_lines([render_verdict(evaluation), f"Report: {run_dir / 'report.html'}"])


@click.command(
    cls=Command,
    short_help="Step times over batch, context and new tokens.",
    example="quantdraft bench --shape llama-3.2-1b --recipes int4,int8,int4-head8",
    stopped="Finished points are kept beside the output: the same command goes on with the next.",
)
@click.argument("candidates", nargs=-1, type=Model())
@options.target("Its passes over m new tokens are timed too.")
@options.BASELINE
@click.option(
    "--shape", type=SHAPE, help="Random weights in a published model's shape, e.g. llama-3.2-1b."
)
@click.option("--target-shape", type=SHAPE, help="The same for the target.")
@options.recipe_list(
    recipe_names, "--recipes", help="With --shape: which candidates, e.g. int4,int8,int4-head8."
)
@click.option("--batch-sizes", default="1,2,4,8,16,32,64", show_default=True)
@click.option("--context-lengths", default="128,512,2048", show_default=True)
@click.option("--new-tokens", "-m", default="1-17", show_default=True, help="Of target passes.")
@click.option("--seconds", type=Positive(), default=20.0, show_default=True, help="A point.")
@options.MODE
@options.threads()
@options.DEVICE
@options.output(help_text="Default: ./bench-<draft>.")
@options.force()
@options.as_json("Print the record as JSON.")
def bench(
    candidates: tuple[str, ...],
    recipes: str | None,
    batch_sizes: str,
    context_lengths: str,
    new_tokens: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Step times over batch, context and new tokens, beside this machine's memory bandwidth.

    Baseline, control and candidates take turns in shuffled blocks. A point that does not fit into
    memory or time is left out, and the table says so. Writes bench.json and bench.md.
    """
    with step("bench"):
        from quantdraft.report import render_bench
        from quantdraft.workflows.bench import BenchSettings
        from quantdraft.workflows.bench import bench as run_bench

        settings = BenchSettings(
            candidates=candidates,
            recipes=parse_names(recipes),
            batch_sizes=parse_numbers(batch_sizes, "--batch-sizes"),
            context_lengths=parse_numbers(context_lengths, "--context-lengths"),
            new_tokens=parse_numbers(new_tokens, "--new-tokens"),
            **given,
        )
        measured, output = run_bench(settings)
    if as_json:
        print_record(output / "bench.json")
    else:
        print_lines([render_bench(measured), f"Record: {output / 'bench.json'}"])
