"""The command line: parse, call one library function of the same name, print.

Errors become one line here and nowhere else; a bug keeps its traceback. Heavy imports wait inside
the commands, so that --help answers at once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from quantdraft import __version__
from quantdraft.errors import OptionError, QuantDraftError, is_out_of_memory

# Waiting threads that spin take the processor from working ones, and distort every timing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Other libraries' bars; ours are asked for one by one.
os.environ.setdefault("TQDM_DISABLE", "1")

RULES = ["greedy", "greedy_draft", "rejection", "exact_match"]
MODES = ["auto", "eager", "compiled", "graph"]
DIRECTORY = click.Path(path_type=Path)


class OneLineErrors(click.Group):
    """A group whose commands print a QuantDraftError as one line and exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of ours is one line, exit code 1."""
        try:
            return super().invoke(ctx)
        except QuantDraftError as error:
            _fail(str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            _fail("out of memory. Use a smaller --batch-size or a machine with more memory.")


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="quantdraft")
def main() -> None:
    """Quantize the draft of speculative decoding, and know whether it pays.

    \b
    The whole path, for a target T and a draft D (directories or Hub ids):
      quantdraft check   --target T --draft D               do they fit, can it pay
      quantdraft capture --target T --prompts P.jsonl -o traffic.jsonl
      quantdraft apply   --recipe int4 --draft D -o D-int4
      quantdraft evaluate D-int4 --target T --traffic traffic.jsonl
      quantdraft export  D-int4 --engine vllm --target T --run RUN -o served

    `quantdraft demo` does all of it on a small pair that comes with the package.
    """


@main.command()
@click.argument("action", required=False, type=click.Choice(["list", "show"]), default="list")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recipes(action: str, name: str | None, as_json: bool) -> None:
    """List the bundled recipes, or show one: `quantdraft recipes show int4`.

    The list says what each needs, on which devices a kernel computes in it, and which engines load
    the result.
    """
    from quantdraft import catalogue

    if action == "list":
        shown = catalogue.as_json() if as_json else "\n".join(catalogue.listing(_columns()))
    elif name is None:
        raise OptionError("which one? `quantdraft recipes show NAME`.")
    else:
        shown = catalogue.as_json(name) if as_json else catalogue.shown(name)
    click.echo(shown)


@main.command()
@click.option("--recipe", "-r", required=True, help="A bundled name, or a path to a .yaml file.")
@click.option("--draft", "-d", required=True, help="The full-precision draft: directory or Hub id.")
@click.option("--output", "-o", type=DIRECTORY, help="Default: ./<draft>-<recipe>.")
@click.option(
    "--calibration",
    type=DIRECTORY,
    help="JSONL: traffic, or texts. Or the Hub id that the recipe names, to download it.",
)
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def apply(
    recipe: str,
    draft: str,
    output: Path | None,
    calibration: Path | None,
    device: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize a draft by a recipe, and prove that it worked.

    The output directory appears whole or not at all. Before success is printed it is opened again:
    it loads, its logits differ from the draft's, they are those of its own dequantized weights, and
    its bytes are what the scheme promises.
    """
    from quantdraft.quantization import apply as apply_recipe
    from quantdraft.recipe import load_recipe

    checkpoint = apply_recipe(
        load_recipe(recipe),
        draft,
        output,
        calibration=calibration,
        device=device,
        force=force,
        progress=_tell if sys.stderr.isatty() else None,
        announce=partial(click.echo, err=True),
    )
    if as_json:
        click.echo(json.dumps(checkpoint.manifest, indent=1))
        return
    _echo_applied(checkpoint)


@main.command()
@click.option("--target", "-t", required=True, help="The target: directory or Hub id.")
@click.option("--draft", "-d", required=True, help="The draft: directory or Hub id.")
@click.option("-k", "--num-speculative-tokens", "k", type=int, default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(target: str, draft: str, k: int, as_json: bool) -> None:
    """Do target and draft fit, and how much could quantizing the draft gain at most?

    Exit code 0: compatible; 1: not. Every finding is one line with what to do.
    """
    from quantdraft.preflight import check as check_pair

    result = check_pair(target, draft, k)
    if as_json:
        click.echo(json.dumps(asdict(result), indent=1))
    else:
        for line in result.lines():
            click.echo(line)
    if not result.is_compatible:
        sys.exit(1)


@main.command()
@click.option("--target", "-t", required=True, help="The target: directory or Hub id.")
@click.option("--prompts", "-p", required=True, type=DIRECTORY, help="JSONL or ShareGPT file.")
@click.option("--output", "-o", required=True, type=DIRECTORY, help="Where the traffic goes.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True, help="0: no limit.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@click.option("--batch-size", type=int, default=8, show_default=True)
@click.option("--limit", type=int, help="Only the first so many prompts.")
@click.option("--target-url", help="A vLLM server with the target: then --target is its tokenizer.")
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the target's own Python code. Recorded."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
def capture(
    target: str,
    prompts: Path,
    output: Path,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    **options: Any,
) -> None:
    """Let the target answer prompts, and keep its responses as traffic.

    A killed run goes on where it stopped when the same command is given again.
    """
    from quantdraft.capture import capture as capture_traffic
    from quantdraft.traffic import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    traffic = capture_traffic(target, prompts, output, sampling=sampling, **options)
    for reason in traffic.skipped:
        click.echo(f"Skipped: {reason}", err=True)
    click.echo(
        f"{len(traffic.responses)} responses, {traffic.num_tokens} tokens: {output}\n"
        f"Next: quantdraft evaluate CANDIDATE --target {target} --traffic {output}"
    )


@main.command()
@click.argument("candidate", type=str)
@click.option("--target", "-t", help="Without it: acceptance only, and no verdict on speed.")
@click.option(
    "--baseline", "-b", help="The full-precision draft. Default: what apply started from."
)
@click.option("--traffic", "traffic_path", type=DIRECTORY, help="From capture, or a log.")
@click.option("--prompts", type=DIRECTORY, help="Captured first, into the run directory.")
@click.option("--output", "-o", type=DIRECTORY, help="Run directory. Default: runs/<candidate>.")
@click.option(
    "-k",
    "--num-speculative-tokens",
    "ks",
    default="1-16",
    show_default=True,
    help="4, 1-8 or 2,4,8. One value is the operating point; of several, each arm takes its best.",
)
@click.option("--acceptance-rule", type=click.Choice(RULES), help="Default: by the traffic.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="With --prompts.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="With --prompts.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="With --prompts.")
@click.option("--top-k", type=int, default=0, show_default=True, help="With --prompts.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch-size", type=int, default=1, show_default=True, help="Of the timed steps.")
@click.option(
    "--context-length", type=int, help="Of the timed steps. Default: the traffic's median."
)
@click.option("--batch-sizes", help="Time these too: 1,8,32. With every one of the contexts.")
@click.option(
    "--context-lengths", help="Time these too: 128,512. Default with --batch-sizes: the traffic's."
)
@click.option("--latency-seconds", type=float, default=20.0, show_default=True, help="A point.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How steps run. auto: graphs on a GPU; on a CPU what a short trial finds faster.",
)
@click.option("--no-latency", is_flag=True, help="Acceptance only.")
@click.option("--live-prompts", type=int, default=4, show_default=True, help="0: no live loop.")
@click.option("--policy", type=DIRECTORY, help="YAML with limits of the verdict.")
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--dtype", default="auto", show_default=True, help="Of replay and the live loop.")
@click.option("--threads", type=int, help="CPU threads. Default: torch's own choice.")
@click.option(
    "--engine",
    type=click.Choice(["native", "vllm"]),
    default="native",
    show_default=True,
    help="Where speed is measured: this process's own kernels, or vLLM's servers.",
)
@click.option("--vllm-python", type=DIRECTORY, help="Python with vLLM. Default: the installed one.")
@click.option("--vllm-url", multiple=True, help="A running server: URL (candidate's), or ARM=URL.")
@click.option("--vllm-spec", multiple=True, help="KEY=VALUE for vLLM's speculative config.")
@click.option("--vllm-args", multiple=True, help="One more argument of vLLM's server.")
@click.option("--vllm-prompts", type=int, help="Only so many prompts are served. Default: all.")
@click.option("--force", is_flag=True, help="Replace a finished run.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def evaluate(
    candidate: str,
    ks: str,
    batch_sizes: str | None,
    context_lengths: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a quantized draft against its full-precision self, and decide.

    Replays the traffic through both drafts (same tokens, every k at once), runs the live loop on a
    few prompts as proof, times draft and target steps in turns, and writes evaluation.json,
    report.md and report.html. A killed run resumes.
    """
    from quantdraft.evaluation import evaluate as evaluate_candidate
    from quantdraft.inputs import Settings
    from quantdraft.report import render_terminal

    settings = Settings(
        candidate=candidate,
        ks=parse_ks(ks),
        batch_sizes=_optional_numbers(batch_sizes, "--batch-sizes"),
        context_lengths=_optional_numbers(context_lengths, "--context-lengths"),
        **options,
    )
    evaluation, run_dir = evaluate_candidate(settings)
    if as_json:
        click.echo((run_dir / "evaluation.json").read_text(encoding="utf-8").rstrip())
        return
    click.echo(render_terminal(evaluation, is_whole=False))
    click.echo(f"Report: {run_dir / 'report.html'} (or: quantdraft report {run_dir})")


@main.command()
@click.argument("candidates", nargs=-1, type=str)
@click.option("--target", "-t", help="Its passes over m new tokens are timed too.")
@click.option(
    "--baseline", "-b", help="The full-precision draft. Default: what apply started from."
)
@click.option("--shape", help="Random weights in a published model's shape, e.g. llama-3.2-1b.")
@click.option("--target-shape", help="The same for the target.")
@click.option("--recipes", help="With --shape: which candidates, e.g. int4,int8,int4-head8.")
@click.option("--batch-sizes", default="1,2,4,8,16,32,64", show_default=True)
@click.option("--context-lengths", default="128,512,2048", show_default=True)
@click.option("--new-tokens", "-m", default="1-17", show_default=True, help="Of target passes.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="A point.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How steps run. auto: graphs on a GPU; on a CPU what a short trial finds faster.",
)
@click.option("--threads", type=int, help="CPU threads. Default: torch's own choice.")
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--output", "-o", type=DIRECTORY, help="Default: ./bench-<draft>.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def bench(
    candidates: tuple[str, ...],
    recipes: str | None,
    batch_sizes: str,
    context_lengths: str,
    new_tokens: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Step times over batch, context and new tokens, beside this machine's memory bandwidth.

    Baseline, control and candidates take turns in shuffled blocks. A point that does not fit into
    memory or time is left out, and the table says so. Writes bench.json and bench.md.
    """
    from quantdraft.benching import BenchSettings
    from quantdraft.benching import bench as run_bench
    from quantdraft.report import render_bench

    settings = BenchSettings(
        candidates=candidates,
        recipes=tuple(name.strip() for name in recipes.split(",")) if recipes else (),
        batch_sizes=parse_numbers(batch_sizes, "--batch-sizes"),
        context_lengths=parse_numbers(context_lengths, "--context-lengths"),
        new_tokens=parse_numbers(new_tokens, "--new-tokens"),
        **options,
    )
    measured, output = run_bench(settings)
    if as_json:
        click.echo((output / "bench.json").read_text(encoding="utf-8").rstrip())
        return
    click.echo(render_bench(measured))
    click.echo(f"Record: {output / 'bench.json'}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=DIRECTORY)
@click.option("--output", "-o", type=DIRECTORY, default=Path("comparison"), show_default=True)
@click.option("--force", is_flag=True, help="Replace an existing output.")
def compare(runs: tuple[Path, ...], output: Path, force: bool) -> None:
    """Recipes side by side: one report of several run directories.

    \b
    Example: quantdraft compare runs/* --output comparison
    """
    from quantdraft.report import compare as compare_runs

    click.echo(compare_runs(list(runs), output, force=force))
    click.echo(f"Report: {output / 'report.html'}")


@main.command()
@click.argument("run", type=DIRECTORY)
@click.option("--open", "is_opened", is_flag=True, help="Show the page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def report(run: Path, is_opened: bool, as_json: bool) -> None:
    """Print a run's verdict, and write its report anew from the record.

    \b
    Example: quantdraft report runs/D-int4 --open
    """
    from quantdraft.report import render_terminal, write_report
    from quantdraft.results import read_evaluation

    evaluation = read_evaluation(run / "evaluation.json" if run.is_dir() else run)
    run_dir = run if run.is_dir() else run.parent
    if as_json:
        click.echo(json.dumps(asdict(evaluation), indent=1))
        return
    write_report(evaluation, run_dir)
    click.echo(render_terminal(evaluation))
    click.echo(f"Report: {run_dir / 'report.html'}")
    if is_opened:
        click.launch(str(run_dir / "report.html"))


@main.command()
@click.argument("checkpoint", type=DIRECTORY)
@click.option(
    "--engine",
    "-e",
    required=True,
    metavar="ENGINE",
    help="vllm, sglang, transformers, tensorrt-llm or llamacpp.",
)
@click.option("--target", "-t", required=True, help="The target, as the engine is to load it.")
@click.option("--run", type=DIRECTORY, help="The run directory with its evaluation.")
@click.option("-k", "--num-speculative-tokens", "k", type=int, help="Default: the measured best.")
@click.option("--output", "-o", required=True, type=DIRECTORY)
@click.option("--pad-vocab", is_flag=True, help="Pad embedding and head to the target's rows.")
@click.option("--draft", type=DIRECTORY, help="llamacpp: the full-precision draft to convert.")
@click.option("--gguf-type", help="llamacpp: f16, bf16, q8_0 or q4_0. Default: as many bits.")
@click.option("--llamacpp", "llamacpp_dir", type=DIRECTORY, help="llamacpp: its sources.")
@click.option("--proof/--no-proof", default=True, help="llamacpp: let its built server try it.")
@click.option("--require-go", is_flag=True, help="Refuse anything but a go.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
def export(checkpoint: Path, engine: str, output: Path, k: int | None, **options: Any) -> None:
    """A directory the engine loads, a model card with the evidence, and the exact launch line.

    llama.cpp loads GGUF alone: it is made from the full-precision draft by llama.cpp's own
    converter where --llamacpp says where that is; else the commands are written. Where its server
    is built there too (or on PATH), it loads the file and speculates with it, and the card says
    what it counted.
    """
    from quantdraft.export import export as export_checkpoint

    lines = export_checkpoint(checkpoint, engine, output, num_speculative_tokens=k, **options)
    for line in lines:
        click.echo(line)


@main.group(cls=OneLineErrors, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def engines(ctx: click.Context, as_json: bool) -> None:
    """Serving engines that `evaluate` can use: list them, or `quantdraft engines install vllm`."""
    if ctx.invoked_subcommand is None:
        _list_engines(as_json)


@engines.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_engines(as_json: bool) -> None:
    """What is installed, in which version."""
    _list_engines(as_json)


@engines.command()
@click.argument("name", type=click.Choice(["vllm"]))
@click.option("--dir", "directory", type=DIRECTORY, help="Where. Default: the user's data.")
@click.option("--force", is_flag=True, help="Replace an installed one.")
def install(name: str, directory: Path | None, force: bool) -> None:
    """Make an engine's own environment: the CUDA build where there is a GPU, else the CPU build."""
    from quantdraft.engines.vllm.environment import install_vllm

    found = install_vllm(directory, force=force, say=_tell)
    click.echo(f"{name} {found.version} ({found.device_type}): {found.python}")
    if directory is not None:
        click.echo(f"Use it with --vllm-python {found.python}")


@main.command()
@click.option("--draft", "-d", "drafts", multiple=True, required=True, help="One or more.")
@click.option("--recipes", "-r", required=True, help="fp8,int8,int4; `ladder` stands for these.")
@click.option("--traffic", "traffic_path", required=True, type=DIRECTORY, help="From capture.")
@click.option("--target", "-t", help="Without it: acceptance only, and no verdict on speed.")
@click.option("--calibration", type=DIRECTORY, help="For recipes that are calibrated.")
@click.option("--by-domain", is_flag=True, help="One evaluation for each domain of the traffic.")
@click.option("-k", "--num-speculative-tokens", "ks", default="1-16", show_default=True)
@click.option("--acceptance-rule", type=click.Choice(RULES), help="Default: by the traffic.")
@click.option("--latency-seconds", type=float, default=20.0, show_default=True, help="A run.")
@click.option("--no-latency", is_flag=True, help="Acceptance only.")
@click.option("--live-prompts", type=int, default=4, show_default=True, help="0: no live loop.")
@click.option("--policy", type=DIRECTORY, help="YAML with limits of the verdict.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--dtype", default="auto", show_default=True, help="Of replay and the live loop.")
@click.option("--threads", type=int, help="CPU threads of a job. Default: torch's own choice.")
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--ray-address", help="A running cluster: auto, HOST:PORT. Default: this machine's.")
@click.option("--cpus", type=float, help="ray: CPUs of a job. Default: --threads, or a whole node.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="ray: GPUs of a job.")
@click.option("--memory-gb", type=float, help="ray: memory of a job.")
@click.option("--shared", "is_shared", is_flag=True, help="ray: all nodes see the same files.")
@click.option("--output", "-o", type=DIRECTORY, default=Path("sweep"), show_default=True)
@click.option("--force", is_flag=True, help="Add to a directory that holds something else.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def sweep(ks: str, recipes: str, as_json: bool, **options: Any) -> None:
    """Every draft under every recipe, evaluated on the same traffic, and compared.

    What is finished is kept by the content of its inputs: the same command goes on where it
    stopped, and a longer list of recipes computes only what is new. Recipes that cannot be applied
    here are listed with the reason. With --executor ray the jobs go to a cluster's nodes; time
    steps there only with a whole node for a job (the default).
    """
    from quantdraft.sweep import RECORD, SweepSettings
    from quantdraft.sweep import sweep as run_sweep

    settings = SweepSettings.of(
        ks=parse_ks(ks), recipes=tuple(name.strip() for name in recipes.split(",")), **options
    )
    result = run_sweep(settings, partial(click.echo, err=as_json))
    if as_json:
        click.echo((settings.output / RECORD).read_text(encoding="utf-8").rstrip())
    if len(result.failed) == len(result.cells):
        sys.exit(1)


@main.command()
@click.option(
    "--acceptance-rate",
    "-a",
    type=float,
    required=True,
    help="Accepted per token asked for, in 0..1 (alpha of the paper).",
)
@click.option("--draft-cost", "-c", type=float, help="A draft step over a step of the target.")
@click.option(
    "-k",
    "--num-speculative-tokens",
    "ks",
    default="1-16",
    show_default=True,
    help="4, 1-8 or 2,4,8.",
)
@click.option("--target-config", "-t", help="A config.json, its directory, or a known shape.")
@click.option("--draft-config", "-d", help="The same of the full-precision draft.")
@click.option("--device", help="a100, l4, l40s, rtx-4090, h100, h200, b200, mi300x, mi325x.")
@click.option("--context-length", type=int, default=0, show_default=True, help="Cached tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(ks: str, as_json: bool, **options: Any) -> None:
    """Predict the speedup by k from an acceptance rate and a cost; no model is needed.

    \b
    Two numbers are enough:
      quantdraft plan --acceptance-rate 0.75 --draft-cost 0.05
    The cost of a pair that is not here, and what each recipe could gain, from its configs:
      quantdraft plan -a 0.75 --target-config llama-3.1-8b --draft-config llama-3.2-1b --device h200

    Everything it prints is a prediction; `quantdraft evaluate` measures.
    """
    from quantdraft.planning import PlanSettings, plan_lines
    from quantdraft.planning import plan as make_plan

    made = make_plan(PlanSettings(ks=parse_ks(ks), **options))
    if as_json:
        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    for line in plan_lines(made):
        click.echo(line)


@main.command()
@click.option("--target", "-t", required=True, help="The target: directory or Hub id.")
@click.option("--draft", "-d", "drafts", multiple=True, required=True, help="Give each with one.")
@click.option("--recipe", "-r", "recipes", multiple=True, help="Each draft under it too.")
@click.option("--traffic", "traffic_path", required=True, type=DIRECTORY, help="From capture.")
@click.option("--calibration", type=DIRECTORY, help="For recipes that are calibrated.")
@click.option("-k", "--num-speculative-tokens", "ks", default="1-16", show_default=True)
@click.option("--acceptance-rule", type=click.Choice(RULES), help="Default: by the traffic.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Of the timed steps.")
@click.option("--context-length", type=int, help="Of the timed steps. Default: the traffic's.")
@click.option("--latency-seconds", type=float, default=10.0, show_default=True, help="A run.")
@click.option("--no-latency", is_flag=True, help="Acceptance only: ordered by prediction.")
@click.option("--live-prompts", type=int, default=0, show_default=True, help="Proof of a replay.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:N. Default: CUDA where there is one.")
@click.option("--dtype", default="auto", show_default=True, help="Of replay and the live loop.")
@click.option("--threads", type=int, help="CPU threads. Default: torch's own choice.")
@click.option("--output", "-o", type=DIRECTORY, default=Path("selection"), show_default=True)
@click.option("--force", is_flag=True, help="Add to a directory that holds something else.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def select(ks: str, as_json: bool, **options: Any) -> None:
    """Choose among drafts: which one, under which recipe, at which k, for this target's traffic.

    \b
      quantdraft select --target T --draft A --draft B --recipe int4 --traffic traffic.jsonl

    Drafts that do not speak the target's tokens are refused. The others are replayed on the same
    tokens and timed, and ordered by speed over the target alone, with the reasons. A killed run
    goes on where it stopped when the same command is given again.
    """
    from quantdraft.selection import SelectSettings, lines_of
    from quantdraft.selection import select as select_draft

    settings = SelectSettings.of(ks=parse_ks(ks), **options)
    selection = select_draft(settings, partial(click.echo, err=True))
    if as_json:
        click.echo((settings.output / "selection.json").read_text(encoding="utf-8").rstrip())
        return
    click.echo(lines_of(selection))
    click.echo(f"Report: {settings.output / 'report.html'}")


@main.command()
@click.option("--output", "-o", type=DIRECTORY, default=Path("demo-run"), show_default=True)
@click.option("--recipe", "-r", "names", multiple=True, help="Default: a choice of bundled ones.")
@click.option("--num-prompts", type=int, default=32, show_default=True)
@click.option("--force", is_flag=True, help="Replace an existing output.")
def demo(output: Path, names: tuple[str, ...], num_prompts: int, force: bool) -> None:
    """The whole job on the embedded pair: apply, evaluate, verdict, report, compare, export."""
    from quantdraft.demo import demo as run_demo

    run_demo(output, names, num_prompts=num_prompts, force=force, say=click.echo)


def parse_ks(text: str) -> tuple[int, ...]:
    """`4`, `1-8` or `2,4,8` as sorted numbers of speculative tokens, each in 1..16."""
    ks: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise OptionError(
                f"-k {text!r} is not a number, a range or a list. Write 4, 1-8 or 2,4,8."
            )
        ks |= set(range(int(first), int(last or first) + 1))
    if not ks or min(ks) < 1 or max(ks) > 16:
        raise OptionError(f"-k {text!r}: the number of speculative tokens lies in 1..16.")
    return tuple(sorted(ks))


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """`4`, `1-8`, `2,4,8` or a mixture, as sorted numbers from 1."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or int(first) < 1:
            raise OptionError(
                f"{option} {text!r} is not a list of numbers from 1. Write 1,8,32 or 1-17."
            )
        numbers |= set(range(int(first), int(last or first) + 1))
    if not numbers:
        raise OptionError(f"{option} {text!r} names no number: a range goes upwards.")
    return tuple(sorted(numbers))


def _optional_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    return None if text is None else parse_numbers(text, option)


def _list_engines(as_json: bool) -> None:
    from quantdraft.engines.vllm.environment import as_record, installed_vllm

    found = installed_vllm()
    if as_json:
        click.echo(json.dumps({"vllm": None if found is None else as_record(found)}, indent=1))
    elif found is None:
        click.echo("vllm  not installed: quantdraft engines install vllm")
    else:
        click.echo(f"vllm  {found.version} ({found.device_type})  {found.python}")


def _echo_applied(checkpoint: Any) -> None:
    from quantdraft.quantization import applied_lines

    for line in applied_lines(checkpoint):
        click.echo(line)


def _columns() -> int:
    """How wide lines may be: the terminal, at most what is read with ease."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def _tell(step: str) -> None:
    click.echo(f"{step} …", err=True)


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
