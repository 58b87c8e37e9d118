"""The C files beside this one as a shared library: compiled once, by the machine's own compiler,
for the fastest instruction set that this CPU has.

It lies in the user's cache under a name made of sources and flags, so a new version never
uses an old library. A ValueError says what a machine lacks for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from quantdraft.common.files import cache_dir

DIRECTORY = Path(__file__).parent
FLAGS = ("-O3", "-mavx2", "-mfma", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
COMPILE_SECONDS = 120
VARIABLE = "QUANTDRAFT_INSTRUCTIONS"  # names the set to use where the fastest is not wanted


class InstructionSet(NamedTuple):
    """The CPU capabilities of a set, as torch names them, and the compiler flags that use it."""

    capabilities: tuple[str, ...]
    flags: tuple[str, ...]


# The fastest first. A kernel's name ends in the name of its set.
INSTRUCTION_SETS = {
    "avx512": InstructionSet(
        ("avx2", "avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni"),
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    ),
    "avx_vnni": InstructionSet(("avx2", "avx_vnni"), ("-mavxvnni",)),
    "avx2": InstructionSet(("avx2",), ()),
}


def c_library() -> ctypes.CDLL:
    """Return the functions of the C files, which run on torch's own threads.

    Raises ValueError where the CPU, the compiler, the cache or torch's build is not fit for them.
    """
    return _load_fastest(os.environ.get(VARIABLE))[1]


def instruction_set() -> str:
    """Return the name of the set that the C files are compiled for; raises as `c_library` does."""
    return _load_fastest(os.environ.get(VARIABLE))[0]


def available_sets() -> list[str]:
    """Return the names of the sets that this CPU has, the fastest first."""
    capabilities = torch.cpu.get_capabilities()
    if not capabilities.get("fma3", capabilities.get("fma", True)):
        return []
    return [
        name
        for name, each in INSTRUCTION_SETS.items()
        if all(capabilities.get(capability) for capability in each.capabilities)
    ]


@lru_cache(maxsize=len(INSTRUCTION_SETS) + 1)
def _load_fastest(wanted: str | None) -> tuple[str, ctypes.CDLL]:
    """Return the first set that the compiler knows, or the wanted one, and its functions."""
    names = [name for name in available_sets() if wanted in (None, name)]
    if not names:
        raise ValueError(f"this CPU has no {'AVX2 and FMA' if wanted is None else wanted}")
    _share_threads()
    for name in names[:-1]:
        try:
            return name, _load(name)
        except ValueError:  # an older compiler, perhaps
            continue
    return names[-1], _load(names[-1])


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(_build(INSTRUCTION_SETS[name].flags)))
    except OSError as error:
        raise ValueError(f"it could not be built: {error}") from error


def _build(more_flags: tuple[str, ...] = ()) -> Path:
    """Return the shared library, compiled unless these sources were compiled before."""
    sources, flags = sorted(DIRECTORY.glob("*.c")), (*FLAGS, *more_flags)
    files = [*sources, *sorted(DIRECTORY.glob("*.h"))]
    path = cache_dir() / f"kernels-{_digest(files, flags)}.so"
    if path.is_file():
        return path
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ValueError("there is no C compiler (cc, gcc or $CC) to build it with")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = [str(Path(directory) / f"{source.stem}.o") for source in sources]
        for source, compiled in zip(sources, made, strict=True):
            _run_compiler([compiler, *flags, str(source), "-o", compiled])
        linked = Path(directory) / "linked.so"
        # Without -fopenmp: its functions are to come from the threads that torch runs.
        _run_compiler([compiler, "-shared", *made, "-o", str(linked)])
        linked.replace(path)
    return path


def _digest(files: list[Path], flags: tuple[str, ...]) -> str:
    """Return sixteen characters that change with the files and the flags."""
    contents = b"".join(file.name.encode() + file.read_bytes() for file in files)
    return hashlib.sha256(contents + " ".join(flags).encode()).hexdigest()[:16]


def _run_compiler(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        text = getattr(error, "stderr", None) or b"it took too long"
        raise ValueError(f"the C compiler failed: {text.decode(errors='replace')[:200]}") from error


def _share_threads() -> None:
    """Make torch's OpenMP visible: a second pool of threads would compete for the cores."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise ValueError(f"the loaded libraries cannot be listed: {error}") from error
    loaded = {line.split()[-1] for line in maps.splitlines()}
    runtimes = [
        path for path in loaded if Path(path).name.startswith(("libgomp", "libomp", "libiomp5"))
    ]
    if not runtimes:
        raise ValueError("this build of torch has no OpenMP to share")
    ctypes.CDLL(sorted(runtimes)[0], ctypes.RTLD_GLOBAL)
