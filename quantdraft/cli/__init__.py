"""The command line: parse, call one library function of the same name, print.

Heavy imports wait inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import os

from quantdraft.cli import interrupts

if interrupts.is_program():
    interrupts.stop_at_once()

import click

# Waiting threads that spin take the processor from working ones, and distort every timing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Other libraries' bars; ours are asked for one by one.
os.environ.setdefault("TQDM_DISABLE", "1")

from quantdraft import __version__
from quantdraft.cli.apply import apply
from quantdraft.cli.bench import bench
from quantdraft.cli.capture import capture
from quantdraft.cli.check import check
from quantdraft.cli.compare import compare
from quantdraft.cli.completion import completion
from quantdraft.cli.demo import demo
from quantdraft.cli.distill import distill
from quantdraft.cli.engines import engines
from quantdraft.cli.evaluate import evaluate
from quantdraft.cli.export import export
from quantdraft.cli.group import Commands
from quantdraft.cli.plan import plan
from quantdraft.cli.recipes import recipes
from quantdraft.cli.report import report
from quantdraft.cli.select import select
from quantdraft.cli.sweep import sweep
from quantdraft.cli.traffic import traffic


@click.group(
    name="quantdraft",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    example="quantdraft demo",
)
@click.version_option(__version__, prog_name="quantdraft")
def main() -> None:
    """Quantize the draft of speculative decoding, and know whether it pays.

    \b
    The whole path, for a target T and a draft D (directories or Hub ids, also
    owner/name@revision):
      quantdraft check   --target T --draft D               do they fit, can it pay
      quantdraft capture --target T --prompts P.jsonl -o traffic.jsonl
      quantdraft apply   --recipe int4 --draft D -o D-int4
      quantdraft evaluate D-int4 --target T --traffic traffic.jsonl
      quantdraft export  D-int4 --engine vllm --target T --run RUN -o served

    `quantdraft demo` does all of it on a small pair that comes with the package.
    """


for _command in (
    *(demo, plan, check, recipes, traffic, capture, apply, distill),
    *(evaluate, report, compare, select, sweep, bench, export, engines, completion),
):
    main.add_command(_command)
