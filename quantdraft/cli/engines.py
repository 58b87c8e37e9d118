"""engines: list and install the serving engines that `evaluate` can use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from quantdraft.cli import options
from quantdraft.cli.group import Commands
from quantdraft.cli.printing import print_json
from quantdraft.cli.values import A_PATH, Name
from quantdraft.common.progress import show_progress


@click.group(
    cls=Commands,
    invoke_without_command=True,
    no_args_is_help=False,
    short_help="List the serving engines that are installed, or install one.",
    example="quantdraft engines install vllm",
)
@options.json_output()
@click.pass_context
def engines(ctx: click.Context, as_json: bool) -> None:
    """List the serving engines that `evaluate` can use.

    `quantdraft engines install vllm` installs one.
    """
    if ctx.invoked_subcommand is None:
        _print_engines(as_json)


@engines.command(name="list", example="quantdraft engines list")
@options.json_output()
def list_engines(as_json: bool) -> None:
    """List what is installed, in which version."""
    _print_engines(as_json)


@engines.command(
    example="quantdraft engines install vllm",
    stopped="What was installed by then is no environment yet: the same command begins anew.",
)
@click.argument("name", type=Name("engine", lambda: ("vllm",)))
@click.option(
    "--dir",
    "directory",
    type=A_PATH,
    help="The directory of the environment. Default: in the user's data directory.",
)
@options.force("Replace an installed one.")
@options.json_output()
def install(name: str, directory: Path | None, force: bool, as_json: bool) -> None:
    """Make an engine's own environment: the CUDA build where there is a GPU, else the CPU build."""
    with show_progress(f"install {name}") as now:
        from quantdraft.engines.vllm.environment import install_vllm

        found = install_vllm(directory, force=force, say=now)
    if as_json:
        print_json({name: asdict(found)})
        return
    click.echo(f"{name} {found.version} ({found.device_type}): {found.python}")
    if directory is not None:
        click.echo(f"Use it with --engine-path {found.python}")


def _print_engines(as_json: bool) -> None:
    with show_progress("engines"):
        from quantdraft.engines.vllm.environment import installed_vllm

        found = installed_vllm()
    if as_json:
        print_json({"vllm": None if found is None else asdict(found)})
    elif found is None:
        click.echo("vllm  not installed: quantdraft engines install vllm")
    else:
        click.echo(f"vllm  {found.version} ({found.device_type})  {found.python}")
