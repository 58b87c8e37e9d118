"""evaluate: measure a quantized draft against its full-precision self, and decide."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_recorded
from quantdraft.cli.values import A_FILE, A_PATH, ModelName, Name, optional_numbers, parse_ks
from quantdraft.common.progress import show_progress
from quantdraft.engines.registry import MEASURED
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice, ModeChoice

SAMPLED = "with --prompts, how the target answers; with a log that does not say, how it was sampled"


@click.command(
    cls=Command,
    short_help="Measure a quantized draft, and decide: go or no-go.",
    example="quantdraft evaluate D-int4 --target T --traffic traffic.jsonl",
    stopped="Finished stages are kept in the run directory: the same command goes on from there.",
)
@click.argument("candidate", type=ModelName())
@options.target(options.NO_TARGET)
@options.BASELINE
@options.traffic_file()
@click.option(
    "--prompts",
    type=A_FILE,
    help="Prompts instead of traffic: the target answers them first, into the run directory.",
)
@options.log_reading
@click.option(
    "--held-out",
    "is_held_out",
    is_flag=True,
    help="Judge on the half of the traffic that `apply --calibration` leaves, though this "
    "candidate was not calibrated on the other: to compare it with candidates that were.",
)
@options.output("The run directory. Default: runs/<candidate>.")
@options.KS
@options.ACCEPTANCE_RULE
@options.max_new_tokens("With --prompts: the longest response, in tokens.")
@click.option("--temperature", type=float, help=f"The temperature: {SAMPLED}. 0: greedy.")
@click.option("--top-p", type=float, help="The top-p that goes with --temperature. Default: 1.")
@click.option("--top-k", type=int, help="The top-k that goes with --temperature. Default: none.")
@options.seed("The seed of resampling, of the live loop and of the answers to --prompts.")
@options.BATCH_SIZE
@options.CONTEXT_LENGTH
@click.option(
    "--batch-sizes",
    metavar="NUMBERS",
    help="Further batch sizes to time, each with every context: 1,8,32.",
)
@click.option(
    "--context-lengths",
    metavar="NUMBERS",
    help="Further contexts to time: 128,512. Default with --batch-sizes: the traffic's own range.",
)
@click.option(
    "--trace",
    type=A_FILE,
    help="Arrivals and lengths of your requests (Mooncake, BurstGPT, Azure): the verdict is then "
    "given over the batches and contexts at which their tokens are decoded.",
)
@click.option(
    "--trace-servers",
    type=int,
    default=1,
    show_default=True,
    help="How many servers share the requests of the trace.",
)
@click.option(
    "--trace-ms-per-token",
    type=float,
    help="The time per output token of a request, by which the number in flight is found. Default: "
    "that of the baseline draft, as it is timed at each batch.",
)
@options.latency_seconds(20.0)
@options.MODE
@options.no_latency()
@options.live_prompts(4)
@options.POLICY
@options.DEVICE
@options.dtype("The float type of replay, of the live loop, and of an engine's servers.")
@options.threads()
@click.option(
    "--engine",
    type=Name("engine", lambda: ("native", *MEASURED)),
    default="native",
    show_default=True,
    help="Where speed is measured: by this process's own kernels, or in servers of an engine.",
)
@click.option(
    "--engine-path",
    "--vllm-python",
    type=A_PATH,
    help="The Python with vLLM (default: that of `engines install`), or llama.cpp's directory.",
)
@click.option(
    "--engine-url",
    "--vllm-url",
    "engine_urls",
    multiple=True,
    help="A server that runs already: the candidate's URL, or ARM=URL with ARM one of "
    "autoregressive, baseline, candidate and control.",
)
@click.option(
    "--engine-spec",
    "--vllm-spec",
    multiple=True,
    metavar="KEY=VALUE",
    help="An entry to add to vLLM's speculative config. Give the option once for each.",
)
@click.option(
    "--engine-args",
    "--vllm-args",
    multiple=True,
    help="One more argument for the engine's server, of those that place the work and share out "
    "memory: --engine-args --max-num-seqs=4. Give the option once for each.",
)
@click.option(
    "--engine-prompts",
    "--vllm-prompts",
    type=int,
    help="How many prompts are served. Default: all.",
)
@click.option(
    "--engine-k",
    "--vllm-k",
    type=int,
    help="The number of speculative tokens that is served. Default: that of -k nearest to 4.",
)
@click.option(
    "--engine-loads",
    "--vllm-loads",
    type=int,
    help="How often the server of each arm is started. Default: 2.",
)
@click.option(
    "--no-cache",
    is_flag=True,
    help="Replay the baseline here, though an earlier run on the same traffic has kept its replay.",
)
@options.force("Replace a finished run.")
@options.json_output("Print the record as JSON.")
def evaluate(
    candidate: str,
    target: str | None,
    baseline: str | None,
    traffic_path: Path | None,
    prompts: Path | None,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    is_held_out: bool,
    output: Path | None,
    ks: str,
    acceptance_rule: AcceptanceRule | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int,
    batch_size: int,
    context_length: int | None,
    batch_sizes: str | None,
    context_lengths: str | None,
    trace: Path | None,
    trace_servers: int,
    trace_ms_per_token: float | None,
    latency_seconds: float,
    mode: ModeChoice,
    no_latency: bool,
    live_prompts: int,
    policy: Path | None,
    device: str | None,
    dtype: DtypeChoice,
    threads: int | None,
    engine: str,
    engine_path: Path | None,
    engine_urls: tuple[str, ...],
    engine_spec: tuple[str, ...],
    engine_args: tuple[str, ...],
    engine_prompts: int | None,
    engine_k: int | None,
    engine_loads: int | None,
    no_cache: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Measure a quantized draft against its full-precision self, and decide.

    CANDIDATE is a directory that `apply` wrote, or another draft. The traffic is replayed through
    both drafts (same tokens, every k at once); target and draft decode a few prompts together, to
    check the replay; their steps are timed in turns. Writes evaluation.json, report.md and
    report.html. A killed run goes on where it stopped when the same command is given again.
    """
    with show_progress("evaluate"):
        from quantdraft.engines.serving_settings import ServingSettings
        from quantdraft.judge.advice.commands import next_command
        from quantdraft.measure.settings import (
            EvaluateSettings,
            ModelSettings,
            TimingSettings,
            TrafficSettings,
        )
        from quantdraft.record import RECORD_FILE
        from quantdraft.report import render_acceptance, render_verdict, report_again, where
        from quantdraft.workflows.evaluate import evaluate as evaluate_candidate

        settings = EvaluateSettings(
            models=ModelSettings(
                candidate=candidate,
                target=target,
                baseline=baseline,
                device=device,
                dtype=dtype,
                threads=threads,
            ),
            traffic=TrafficSettings(
                traffic_path=traffic_path,
                prompts=prompts,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                acceptance_rule=acceptance_rule,
                read=options.read_settings(format_name, turns, template_kwargs, requests),
                is_held_out=is_held_out,
            ),
            ks=parse_ks(ks),
            timing=TimingSettings(
                batch_size=batch_size,
                context_length=context_length,
                batch_sizes=optional_numbers(batch_sizes, "--batch-sizes"),
                context_lengths=optional_numbers(context_lengths, "--context-lengths"),
                latency_seconds=latency_seconds,
                mode=mode,
                no_latency=no_latency,
                trace=trace,
                trace_servers=trace_servers,
                trace_ms_per_token=trace_ms_per_token,
            ),
            serving=ServingSettings(
                engine=engine,
                path=engine_path,
                urls=engine_urls,
                spec=engine_spec,
                args=engine_args,
                num_prompts=engine_prompts,
                k=engine_k,
                num_loads=engine_loads,
            ),
            live_prompts=live_prompts,
            policy=policy,
            seed=seed,
            output=output,
            force=force,
            keeps_replays=not no_cache,
        )
        evaluation, run_dir = evaluate_candidate(settings), settings.run_dir
    is_timed = bool(evaluation.latency.arms or evaluation.served)
    lines = [
        render_verdict(evaluation),
        *([] if is_timed else ["", render_acceptance(evaluation), ""]),
        f"Next: {next_command(evaluation, shlex.quote(str(run_dir)))}",
        where(run_dir, RECORD_FILE, report_again(run_dir)),
    ]
    print_recorded(run_dir / RECORD_FILE, lines, as_json)
