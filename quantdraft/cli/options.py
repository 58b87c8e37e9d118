"""Options that several commands have, each written once. A command puts them on in its order."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from quantdraft.cli.values import (
    AT_LEAST_0,
    AT_LEAST_1,
    DIRECTORY,
    Model,
    Name,
    Names,
    Positive,
    Recipe,
    recipe_names,
)
from quantdraft.record.terms import MAX_K

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

# A test holds these to the types of the settings that they become.
ACCEPTANCE_RULES = ("greedy", "greedy_draft", "rejection", "exact_match")
MODES = ("auto", "eager", "fused", "compiled", "graph")
ENGINES = ("native", "vllm")
EXECUTORS = ("local", "ray")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")

A_TARGET = "The target: directory or Hub id."
A_DRAFT = "The draft: directory or Hub id."
A_BASELINE = "The full-precision draft. Default: what apply started from."
NO_TARGET = "Without it: acceptance only, and no verdict on speed."
OF_TIMED_STEPS = "Of the timed steps."


def together(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator, in the order in which --help lists them."""
    return lambda function: reduce(lambda done, each: each(done), reversed(decorators), function)


def target(help_text: str = A_TARGET, *, required: bool = False) -> Decorator[Any]:
    """--target"""
    return click.option("--target", "-t", type=Model(), required=required, help=help_text)


def drafts(help_text: str) -> Decorator[Any]:
    """--draft, once for each"""
    return click.option(
        "--draft", "-d", "drafts", type=Model(), multiple=True, required=True, help=help_text
    )


def output(default: str | None = None, help_text: str | None = None) -> Decorator[Any]:
    """--output, optional"""
    return click.option(
        "--output",
        "-o",
        type=DIRECTORY,
        default=None if default is None else Path(default),
        show_default=default is not None,
        help=help_text,
    )


def force(help_text: str = "Replace an existing output.") -> Decorator[Any]:
    """--force"""
    return click.option("--force", is_flag=True, help=help_text)


def latency_seconds(default: float, help_text: str) -> Decorator[Any]:
    """--latency-seconds"""
    return click.option(
        "--latency-seconds", type=Positive(), default=default, show_default=True, help=help_text
    )


def live_prompts(default: int, help_text: str) -> Decorator[Any]:
    """--live-prompts"""
    return click.option(
        "--live-prompts", type=AT_LEAST_0, default=default, show_default=True, help=help_text
    )


def no_latency(help_text: str = "Acceptance only.") -> Decorator[Any]:
    """--no-latency"""
    return click.option("--no-latency", is_flag=True, help=help_text)


def context_length(help_text: str) -> Decorator[Any]:
    """--context-length of the timed steps"""
    return click.option("--context-length", type=int, help=f"{OF_TIMED_STEPS} {help_text}")


def max_new_tokens(help_text: str | None = None) -> Decorator[Any]:
    """--max-new-tokens"""
    return click.option(
        "--max-new-tokens", type=int, default=128, show_default=True, help=help_text
    )


def told_sampling(help_text: str) -> Decorator[Any]:
    """--temperature, --top-p and --top-k, None where they are not given"""
    return together(
        click.option("--temperature", type=float, help=f"0: greedy. {help_text}"),
        click.option("--top-p", type=float, help=help_text),
        click.option("--top-k", type=int, help=help_text),
    )


def sampling(temperature: str, top_p: str | None, top_k: str) -> Decorator[Any]:
    """--temperature, --top-p and --top-k; the words say when they matter"""
    return together(
        click.option("--temperature", type=float, default=0.0, show_default=True, help=temperature),
        click.option("--top-p", type=float, default=1.0, show_default=True, help=top_p),
        click.option("--top-k", type=int, default=0, show_default=True, help=top_k),
    )


def threads(help_text: str = "CPU threads. Default: torch's own choice.") -> Decorator[Any]:
    """--threads"""
    return click.option("--threads", type=AT_LEAST_1, help=help_text)


def as_json(help_text: str = "Print JSON.") -> Decorator[Any]:
    """--json: one document on stdout, and nothing else"""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


BASELINE = click.option("--baseline", "-b", type=Model(), help=A_BASELINE)
TRAFFIC = click.option(
    "--traffic", "traffic_path", required=True, type=DIRECTORY, help="From capture, or a log."
)
CALIBRATION = click.option(
    "--calibration", type=DIRECTORY, help="For recipes that are calibrated: traffic, or texts."
)
RECIPE = click.option(
    "--recipe",
    "-r",
    type=Recipe("recipe", recipe_names, is_open=True),
    required=True,
    help="A bundled name, or a path to a .yaml file.",
)
KS = click.option(
    "-k",
    "--num-speculative-tokens",
    "ks",
    default=f"1-{MAX_K}",
    show_default=True,
    help="4, 1-8 or 2,4,8. One value is the operating point; of several, each arm takes its best.",
)
ACCEPTANCE_RULE = click.option(
    "--acceptance-rule",
    type=Name("acceptance rule", lambda: ACCEPTANCE_RULES),
    help="Default: by the traffic.",
)
BATCH_SIZE = click.option(
    "--batch-size", type=int, default=1, show_default=True, help=OF_TIMED_STEPS
)
MODE = click.option(
    "--mode",
    type=Name("mode", lambda: MODES),
    default="auto",
    show_default=True,
    help="How steps run. auto: graphs on a GPU; on a CPU what a short trial finds faster.",
)
POLICY = click.option("--policy", type=DIRECTORY, help="YAML with limits of the verdict.")
SEED = click.option("--seed", type=AT_LEAST_0, default=0, show_default=True)
DEVICE = click.option(
    "--device",
    type=Name("device", lambda: DEVICES, is_open=True),
    help="cpu, cuda, cuda:N. Default: CUDA where there is one.",
)


def dtype(help_text: str) -> Decorator[Any]:
    """--dtype"""
    return click.option(
        "--dtype",
        type=Name("float type", lambda: DTYPES),
        default="auto",
        show_default=True,
        help=help_text,
    )


def recipe_list(known: Callable[[], list[str]], *names: str, **options: Any) -> Decorator[Any]:
    """An option that takes recipes separated by commas"""
    return click.option(*names, type=Names("recipes", known, is_open=True), **options)
