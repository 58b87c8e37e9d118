"""The C files beside this one as a shared library: compiled once, by the machine's own compiler.

It lies in the user's cache under a name made of sources and flags, so that a new version never
meets an old library. What a machine lacks for it is a ValueError that says what.
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

import torch

DIRECTORY = Path(__file__).parent
FLAGS = ("-O3", "-mavx2", "-mfma", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
COMPILE_SECONDS = 120


@lru_cache(maxsize=1)
def c_library() -> ctypes.CDLL:
    """The functions of the C files, which run on torch's own threads.

    Raises ValueError where the CPU, the compiler, the cache or torch's build is not fit for them.
    """
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx2") and capabilities.get("fma3", capabilities.get("fma", True))):
        raise ValueError("this CPU has no AVX2 and FMA")
    try:
        _share_threads()
        return ctypes.CDLL(str(_built()))
    except OSError as error:
        raise ValueError(f"it could not be built: {error}") from error


def _built() -> Path:
    """The shared library, compiled unless these very sources were before."""
    sources = sorted(DIRECTORY.glob("*.c"))
    path = _cache_dir() / f"kernels-{_digest([*sources, *sorted(DIRECTORY.glob('*.h'))])}.so"
    if path.is_file():
        return path
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ValueError("there is no C compiler (cc, gcc or $CC) to build it with")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = [str(Path(directory) / f"{source.stem}.o") for source in sources]
        for source, compiled in zip(sources, made, strict=True):
            _run([compiler, *FLAGS, str(source), "-o", compiled])
        linked = Path(directory) / "linked.so"
        # Without -fopenmp: its functions are to come from the threads that torch runs.
        _run([compiler, "-shared", *made, "-o", str(linked)])
        linked.replace(path)
    return path


def _digest(files: list[Path]) -> str:
    """Sixteen characters that change with the files and the flags."""
    contents = b"".join(file.name.encode() + file.read_bytes() for file in files)
    return hashlib.sha256(contents + " ".join(FLAGS).encode()).hexdigest()[:16]


def _cache_dir() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantdraft"
    except RuntimeError as error:  # a user without a home
        raise ValueError(f"there is no directory to build it in: {error}") from error


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        text = getattr(error, "stderr", None) or b"it took too long"
        raise ValueError(f"the C compiler failed: {text.decode(errors='replace')[:200]}") from error


def _share_threads() -> None:
    """Make torch's OpenMP visible: a second pool of threads would fight it for the cores."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    runtimes = [
        path for path in loaded if Path(path).name.startswith(("libgomp", "libomp", "libiomp5"))
    ]
    if not runtimes:
        raise ValueError("this build of torch has no OpenMP to share")
    ctypes.CDLL(sorted(runtimes)[0], ctypes.RTLD_GLOBAL)
