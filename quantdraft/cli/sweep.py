"""sweep: many drafts under many recipes, evaluated and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.printing import print_recorded, tell, tell_aside
from quantdraft.cli.values import Name, Positive, parse_ks, parse_names, recipe_and_sweep_names
from quantdraft.common.progress import show_progress
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice, ExecutorChoice


@click.command(
    cls=Command,
    short_help="Apply and evaluate many drafts and recipes, and compare them.",
    example="quantdraft sweep --draft D --recipes ladder --target T --traffic traffic.jsonl",
    stopped="Finished cells are kept in the output: the same command goes on with the next.",
)
@options.drafts("A full-precision draft: a directory or Hub id[@revision]. Give one or more.")
@options.recipe_list(
    recipe_and_sweep_names,
    "--recipes",
    "-r",
    required=True,
    help="The recipes: fp8,int8,int4; `ladder` stands for these.",
)
@options.CHANGES
@options.traffic_file(required=True)
@options.log_reading
@options.target(options.NO_TARGET)
@options.CALIBRATION
@click.option(
    "--by-domain", is_flag=True, help="Make one evaluation for each domain of the traffic."
)
@options.KS
@options.ACCEPTANCE_RULE
@options.latency_seconds(20.0)
@options.no_latency()
@options.live_prompts(4)
@options.POLICY
@options.seed("The seed of resampling and of the live loop.")
@options.DEVICE
@options.dtype()
@options.threads("The number of CPU threads of a job. Default: torch's own choice.")
@click.option(
    "--executor",
    type=Name("executor", lambda: get_args(ExecutorChoice)),
    default="local",
    show_default=True,
    help="What runs the jobs: this process, one after another, or a Ray cluster.",
)
@click.option(
    "--ray-address",
    help="ray: a running cluster: auto, HOST:PORT. Default: one is started on this machine.",
)
@click.option(
    "--cpus", type=Positive(), help="ray: CPUs of a job. Default: --threads, or a whole node."
)
@click.option("--gpus", type=float, default=0.0, show_default=True, help="ray: GPUs of a job.")
@click.option("--memory-gb", type=Positive(), help="ray: memory of a job, in GB.")
@click.option("--shared", "is_shared", is_flag=True, help="ray: all nodes see the same files.")
@options.output("The directory of candidates, runs and comparison.", "sweep")
@options.force(options.ADDS)
@options.json_output("Print the record as JSON.")
def sweep(
    drafts: tuple[str, ...],
    recipes: str,
    changes: tuple[str, ...],
    traffic_path: Path,
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
    target: str | None,
    calibration: Path | None,
    by_domain: bool,
    ks: str,
    acceptance_rule: AcceptanceRule | None,
    latency_seconds: float,
    no_latency: bool,
    live_prompts: int,
    policy: Path | None,
    seed: int,
    device: str | None,
    dtype: DtypeChoice,
    threads: int | None,
    executor: ExecutorChoice,
    ray_address: str | None,
    cpus: float | None,
    gpus: float,
    memory_gb: float | None,
    is_shared: bool,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Evaluate every draft under every recipe on the same traffic, and compare them.

    What is finished is kept by the content of its inputs: the same command goes on where it
    stopped, and a longer list of recipes computes only what is new. Recipes that cannot be applied
    here are listed with the reason. With --executor ray the jobs go to a cluster's nodes; step
    times count only where each job has a whole node, which is the default.
    """
    with show_progress("sweep"):
        from quantdraft.measure.settings import SharedSettings, TimingSettings
        from quantdraft.quantize.recipe_changes import parse_changes
        from quantdraft.workflows.sweep.grid import SweepSettings
        from quantdraft.workflows.sweep.sweep import SWEEP_FILE
        from quantdraft.workflows.sweep.sweep import sweep as run_sweep

        settings = SweepSettings(
            drafts=drafts,
            recipes=parse_names(recipes),
            traffic_path=traffic_path,
            output=output,
            target=target,
            evaluations=SharedSettings(
                device=device,
                dtype=dtype,
                threads=threads,
                acceptance_rule=acceptance_rule,
                ks=parse_ks(ks),
                timing=TimingSettings(latency_seconds=latency_seconds, no_latency=no_latency),
                live_prompts=live_prompts,
                policy=policy,
                seed=seed,
                read=options.read_settings(format_name, turns, template_kwargs, requests),
            ),
            changes=parse_changes(changes),
            calibration=calibration,
            by_domain=by_domain,
            executor=executor,
            ray_address=ray_address,
            cpus=cpus,
            gpus=gpus,
            memory_gb=memory_gb,
            is_shared=is_shared,
            force=force,
        )
        result = run_sweep(settings, tell_aside if as_json else tell)
    print_recorded(output / SWEEP_FILE, [], as_json)
    if all(cell.job in result.failed for cell in result.cells):
        sys.exit(1)
