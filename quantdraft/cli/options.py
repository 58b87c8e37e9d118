"""Options that several commands have, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import click

from quantdraft.cli.values import (
    A_FILE,
    A_PATH,
    AT_LEAST_0,
    AT_LEAST_1,
    ModelName,
    Name,
    Names,
    Positive,
    RecipeName,
    recipe_names,
)
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice, ModeChoice
from quantdraft.record.terms import MAX_K

if TYPE_CHECKING:
    from quantdraft.traffic.responses import ReadSettings

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

DEVICES = ("cpu", "cuda")  # for completion; torch knows more

NO_TARGET = "The target. Without it only acceptance is measured, and no verdict on speed is given."
SECONDS = "Seconds of timing for each batch and context."
ADDS = "Add to a directory that holds something else."


def target(
    help_text: str = "The target: a directory or Hub id[@revision].",
    *,
    required: bool = False,
) -> Decorator[Any]:
    """Return --target."""
    return click.option("--target", "-t", type=ModelName(), required=required, help=help_text)


def draft(help_text: str) -> Decorator[Any]:
    """Return --draft."""
    return click.option("--draft", "-d", type=ModelName(), required=True, help=help_text)


def drafts(help_text: str) -> Decorator[Any]:
    """Return --draft, which may be given several times."""
    return click.option(
        "--draft", "-d", "drafts", type=ModelName(), multiple=True, required=True, help=help_text
    )


def several_recipes(name: str, help_text: str) -> Decorator[Any]:
    """Return --recipe, which may be given several times. name: of the parameter."""
    kind = RecipeName("recipe", recipe_names, is_open=True)
    return click.option("--recipe", "-r", name, type=kind, multiple=True, help=help_text)


def output(help_text: str, default: str | None = None, *, required: bool = False) -> Decorator[Any]:
    """Return --output."""
    return click.option(
        "--output",
        "-o",
        type=A_PATH,
        required=required,
        default=None if default is None else Path(default),
        show_default=default is not None,
        help=help_text,
    )


def speculative_tokens(help_text: str, default: int | None = None) -> Decorator[Any]:
    """Return -k, one number of speculative tokens."""
    return click.option(
        "-k",
        "--num-speculative-tokens",
        "k",
        type=int,
        default=default,
        show_default=default is not None,
        help=help_text,
    )


def force(help_text: str = "Replace an existing output.") -> Decorator[Any]:
    """Return --force."""
    return click.option("--force", is_flag=True, help=help_text)


def latency_seconds(default: float) -> Decorator[Any]:
    """Return --latency-seconds."""
    return click.option(
        "--latency-seconds", type=Positive(), default=default, show_default=True, help=SECONDS
    )


def live_prompts(default: int) -> Decorator[Any]:
    """Return --live-prompts."""
    return click.option(
        "--live-prompts",
        type=AT_LEAST_0,
        default=default,
        show_default=True,
        help="How many prompts the live loop decodes, to check the replay. 0: it is not run.",
    )


def no_latency(
    help_text: str = "Measure acceptance only; no step is timed.",
) -> Decorator[Any]:
    """Return --no-latency."""
    return click.option("--no-latency", is_flag=True, help=help_text)


def max_new_tokens(help_text: str) -> Decorator[Any]:
    """Return --max-new-tokens."""
    return click.option(
        "--max-new-tokens", type=int, default=128, show_default=True, help=help_text
    )


def threads(
    help_text: str = "The number of CPU threads. Default: torch's own choice.",
) -> Decorator[Any]:
    """Return --threads."""
    return click.option("--threads", type=AT_LEAST_1, help=help_text)


def json_output(help_text: str = "Print the result as JSON.") -> Decorator[Any]:
    """Return --json: one document on stdout, and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def dtype(help_text: str = "The float type of replay and of the live loop.") -> Decorator[Any]:
    """Return --dtype."""
    return click.option(
        "--dtype",
        type=Name("float type", lambda: get_args(DtypeChoice)),
        default="auto",
        show_default=True,
        help=f"{help_text} auto: bfloat16 on a GPU, float32 on a CPU.",
    )


def recipe_list(known: Callable[[], list[str]], *names: str, **options: Any) -> Decorator[Any]:
    """Return an option that takes recipes separated by commas."""
    return click.option(*names, type=Names("recipes", known, is_open=True), **options)


def seed(help_text: str) -> Decorator[Any]:
    """Return --seed."""
    return click.option("--seed", type=AT_LEAST_0, default=0, show_default=True, help=help_text)


def traffic_file(*, required: bool = False) -> Decorator[Any]:
    """Return --traffic."""
    return click.option(
        "--traffic",
        "traffic_path",
        type=A_FILE,
        required=required,
        help="Prompts with the target's responses: a file from `capture`, or a log.",
    )


class JsonObject(click.ParamType):  # type: ignore[type-arg]
    """A JSON object."""

    name = "JSON"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the object of a text; fails with one line for any other value."""
        if isinstance(value, dict):
            return value
        from quantdraft.common.documents import parse_json

        try:
            found = parse_json(value)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.fail(f"{value!r} is no JSON object, such as '{{\"enable_thinking\": false}}'.")
        return found


def log_reading(function: Function) -> Function:
    """Add the options that say how a log, or a file of prompts, is read.

    The command gets a keyword argument for each of `read_settings`.
    """
    for add in (
        click.option(
            "--format",
            "format_name",
            metavar="NAME",
            help="The format of the log or the prompts: chat, batch, sharegpt, litellm, otel, … "
            "Default: found out line by line.",
        ),
        click.option(
            "--turns",
            type=click.Choice(["last", "all"]),
            help="Which of a conversation's answers are used. Default: all of a conversation; of a "
            "request with its reply, the reply.",
        ),
        click.option(
            "--chat-template-kwargs",
            "template_kwargs",
            type=JsonObject(),
            help="Arguments for the chat template, as the engine was given them: "
            "'{\"enable_thinking\": false}'. A line's own come before them.",
        ),
        click.option(
            "--requests",
            type=A_FILE,
            help="The input file of a batch whose output is read: its lines hold the prompts.",
        ),
    )[::-1]:
        function = add(function)
    return function


def read_settings(
    format_name: str | None,
    turns: Literal["last", "all"] | None,
    template_kwargs: dict[str, Any] | None,
    requests: Path | None,
) -> ReadSettings:
    """Return what the options of `log_reading` say."""
    from quantdraft.traffic.responses import ReadSettings

    return ReadSettings(format_name, turns, template_kwargs or {}, requests)


BASELINE = click.option(
    "--baseline",
    "-b",
    type=ModelName(),
    help="The full-precision draft. Default: the one that `apply` started from.",
)
CALIBRATION = click.option(
    "--calibration",
    type=A_FILE,
    help="Traffic or texts (JSONL) for the recipes that are calibrated. If it is the --traffic: "
    "one half of its conversations is calibrated on, and all recipes are judged on the other.",
)
RECIPE = click.option(
    "--recipe",
    "-r",
    type=RecipeName("recipe", recipe_names, is_open=True),
    required=True,
    help="The recipe: a bundled name, or a path to a .yaml file.",
)
CHANGES = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="A field of the recipe to change: group_size=64, lm_head=8-bit, calibration.seed=1. Give "
    "the option once for each. The recipe's name follows: int4-g64.",
)
KS = click.option(
    "-k",
    "--num-speculative-tokens",
    "ks",
    metavar="NUMBERS",
    default=f"1-{MAX_K}",
    show_default=True,
    help="Tokens proposed in a round: 4, 1-8 or 2,4,8. Each draft is judged at its best k of them.",
)
ACCEPTANCE_RULE = click.option(
    "--acceptance-rule",
    type=Name("acceptance rule", lambda: get_args(AcceptanceRule)),
    help="How the engine decides which draft tokens to keep. Default: greedy for greedy traffic, "
    "else greedy_draft.",
)
BATCH_SIZE = click.option(
    "--batch-size",
    type=int,
    default=1,
    show_default=True,
    help="Sequences in the batch whose steps are timed.",
)
CONTEXT_LENGTH = click.option(
    "--context-length",
    type=int,
    help="Cached tokens in the steps that are timed. Default: the traffic's median.",
)
MODE = click.option(
    "--mode",
    type=Name("mode", lambda: get_args(ModeChoice)),
    default="auto",
    show_default=True,
    help="How steps run. auto: the mode that a short trial finds faster, recorded on a GPU.",
)
POLICY = click.option("--policy", type=A_FILE, help="A YAML file with the limits of the verdict.")
DEVICE = click.option(
    "--device",
    type=Name("device", lambda: DEVICES, is_open=True),
    help="The device: cpu, cuda or cuda:N. Default: CUDA where there is one.",
)
