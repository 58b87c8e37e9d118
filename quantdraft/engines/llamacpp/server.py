"""llama-server: where it is, how it is told what to serve, and how its log is read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from quantdraft.engines.llamacpp.gguf import built_tool
from quantdraft.engines.measured import ServerPlan
from quantdraft.engines.process import LogFormat, Server, free_port, running
from quantdraft.engines.server_arguments import PassedOn, long_names, short_names
from quantdraft.errors import EngineError

PROGRAM = "llama-server"
DIRECTORY_VARIABLE = "QUANTDRAFT_LLAMACPP"
VERSION = re.compile(r"^version: (.+)$", re.MULTILINE)
VERSION_SECONDS = 60.0
DEVICE = re.compile(r"^\s+([A-Za-z]+)\d+: ", re.MULTILINE)
MIN_CONTEXT = 512
# Caches of keys and values, and attention, without rounding.
IN_FLOAT32 = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
DRAFT_IN_FLOAT32 = ["-ctkd", "f32", "-ctvd", "f32"]
# An option or a key that the user's shell holds for another server, and tokens of the Hub.
WITHHELD = ("LLAMA_ARG_", "LLAMA_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PASSED_ON = PassedOn(
    "llama.cpp",
    long_names("""
        batch-size cache-type-k cache-type-k-draft cache-type-v cache-type-v-draft cpu-mask
        cpu-mask-batch cpu-moe cpu-moe-draft cpu-range cpu-range-batch cpu-strict
        cpu-strict-batch ctx-size ctx-size-draft defrag-thold device device-draft direct-io fit
        flash-attn gpu-layers gpu-layers-draft kv-offload kv-unified log-verbosity main-gpu mlock
        mmap n-cpu-moe n-cpu-moe-draft n-gpu-layers n-gpu-layers-draft numa op-offload
        override-tensor override-tensor-draft poll poll-batch prio prio-batch repack
        spec-draft-device spec-draft-ngl spec-draft-threads split-mode swa-full tensor-split
        threads threads-batch threads-batch-draft threads-draft ubatch-size verbose verbosity
        warmup""")
    | short_names("""
        b C Cr Crb c cd cmoe cmoed ctk ctkd ctv ctvd dev devd dio fa fit kvo kvu lv mg ncmoe ncmoed
        ngl ngld nkvo nr ot otd sm t tb tbd td ts ub v"""),
    ("GGML_", "LLAMA_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_PRELOAD"),
)
LOG = LogFormat(
    engine=PROGRAM,
    # "0.00.123.456 E srv    load_model: ", with or without the time and the level
    prefix=re.compile(r"^(\d[\d.]*\s+)?(?:[IWED]\s+)?"),
    error=re.compile(r"^.*\b(error|failed|not compatible|unknown model|must match)\b.*", re.I),
    second_hand=(
        "failed to load model '",
        "failed to load model,",
        "failed to load draft model",
        "_impl: failed to load model",
        "exiting due to model loading error",
        "cleaning up before exit",
    ),
)


def speculative_arguments(draft: Path, num_speculative_tokens: int) -> list[str]:
    """Return the arguments that make llama-server speculate with a GGUF draft, k tokens a round.

    A constant k: --spec-draft-p-min 0 never cuts a proposal short for the draft's doubt, and
    --spec-draft-n-min 0 throws no short one away.
    """
    return [
        *("-md", str(draft), "--spec-type", "draft-simple"),
        *("--spec-draft-n-max", str(num_speculative_tokens)),
        *("--spec-draft-n-min", "0", "--spec-draft-p-min", "0"),
        *("-ngld", "99", "-ctkd", "f16", "-ctvd", "f16"),
    ]


def find_server(llamacpp: Path | None = None) -> Path | None:
    """Return llama-server of a directory, of $QUANTDRAFT_LLAMACPP, or of PATH; None without one."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    for directory in (llamacpp, Path(named) if named else None):
        found = built_tool(directory, PROGRAM) if directory is not None else None
        if found is not None:
            return found
    on_path = shutil.which(PROGRAM)
    return Path(on_path) if on_path else None


def require_server(llamacpp: Path | None = None) -> Path:
    """Return what `find_server` finds. Raises EngineError where there is none."""
    found = find_server(llamacpp)
    if found is None:
        raise EngineError(
            f"no {PROGRAM} found: build llama.cpp (cmake -B build && cmake --build build --target "
            f"{PROGRAM}) and name its directory, or put {PROGRAM} on PATH."
        )
    return found


def version(server: Path) -> str:
    """Return the server's build number and commit. Raises EngineError where it cannot be run."""
    text = _run(server, "--version")
    found = VERSION.search(text)
    if found is None:
        last = (text.strip() or "nothing").splitlines()[-1]
        raise EngineError(f"'{server}' is no {PROGRAM}: it says {last!r} to --version.")
    return found.group(1).strip()


def llamacpp_variables() -> dict[str, str]:
    """Return the environment of a server: the user's, without what would change what is served."""
    return {name: text for name, text in os.environ.items() if not name.startswith(WITHHELD)}


def llamacpp_command(
    server: Path, plan: ServerPlan, draft: Path | None, port: int, arguments: Iterable[str] = ()
) -> list[str]:
    """Return the command line of one server: one request at a time, on the loopback.

    draft: None for the target alone
    arguments: the user's own, after ours: the last one counts
    """
    command = [
        *(str(server), "-m", str(plan.target)),
        *("-c", str(max(MIN_CONTEXT, plan.max_model_len)), "-np", "1"),
        *("--metrics", "--no-webui"),
        *("--cache-ram", "0"),  # a prompt that comes twice is computed twice
    ]
    if draft is not None:
        command += speculative_arguments(draft, plan.num_speculative_tokens)
    if plan.dtype == "float32":
        command += IN_FLOAT32 if draft is None else [*IN_FLOAT32, *DRAFT_IN_FLOAT32]
    # Last, so that nothing the user added opens it to others.
    return [*command, *arguments, "--host", "127.0.0.1", "--port", str(port)]


def start_server(
    program: Path, plan: ServerPlan, draft: Path | None, log: Path, arguments: Iterable[str] = ()
) -> AbstractContextManager[Server]:
    """Start one llama-server on a free port of the loopback, not yet healthy."""
    port = free_port()
    command = llamacpp_command(program, plan, draft, port, arguments)
    return running(command, port, log, llamacpp_variables(), LOG)


def device_type(server: Path) -> str:
    """Return where the server's build computes: "cpu", or the kind of its first other device."""
    listed = _run(server, "--list-devices")
    found = DEVICE.search(listed)
    return found.group(1).lower() if found else "cpu"


def _run(server: Path, option: str) -> str:
    try:
        done = subprocess.run(
            [str(server), option],
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"'{server}' could not be run: {error}.") from error
    return done.stdout + done.stderr
