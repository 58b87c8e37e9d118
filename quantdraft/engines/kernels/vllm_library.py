"""vLLM's compiled operators, where its build for CUDA is installed in this environment.

Of the package nothing but the shared library is needed: a folder `vllm` that holds it will do.
It is loaded without the package: `import vllm` sets variables of the environment and changes
torch's compiler. Operators have the arguments that the wheel of vLLM 0.32 declares; one
that is declared with another number of them is not called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from quantdraft.errors import NoKernelError

READ_VERSION = "0.32"
# The library that declares operators for CUDA, and that of builds for a CPU.
LIBRARIES = ("_C_stable_libtorch", "_C")
NUM_ARGUMENTS = {
    "gptq_marlin_repack": 5,
    "marlin_gemm": 16,
    "machete_prepack_B": 4,
    "machete_mm": 10,
    "cutlass_scaled_mm": 6,
    "cutlass_scaled_mm_supports_block_fp8": 1,
}


def vllm_operators(*names: str) -> list[Callable[..., Any]]:
    """Return operators of vLLM's by name; NoKernelError with what is missing for one of them."""
    fault = vllm_fault(names)
    if fault is not None:
        raise NoKernelError(fault)
    return [getattr(torch.ops._C, name) for name in names]


@functools.cache
def vllm_fault(names: tuple[str, ...]) -> str | None:
    """Return why one of vLLM's operators cannot be called here, or None."""
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return f"vLLM's products need its build for CUDA here: pip install 'vllm=={READ_VERSION}.*'"
    fault = _load(Path(found.submodule_search_locations[0]))
    if fault is not None:
        return fault
    for name in names:
        declared = _num_arguments(name)
        if declared is None:
            return f"vLLM {_version()} has no {name}: it needs the build for CUDA"
        if declared != NUM_ARGUMENTS[name]:
            return (
                f"vLLM {_version()} declares {name} with {declared} arguments, "
                f"{READ_VERSION} with {NUM_ARGUMENTS[name]}"
            )
    return None


def _load(package: Path) -> str | None:
    """Load the libraries in a package's folder; return why none of them could be."""
    faults = []
    for name in LIBRARIES:
        for path in sorted(package.glob(f"{name}.*so")):
            try:
                torch.ops.load_library(path)  # type: ignore[no-untyped-call]
            except (OSError, RuntimeError) as error:
                reason = str(error.__cause__ or error).splitlines() or ["no reason given"]
                faults.append(f"{path.name}: {reason[0]}")
            else:
                return None
    return f"vLLM {_version()} has no library that can be loaded ({'; '.join(faults) or 'none'})"


def _num_arguments(name: str) -> int | None:
    """Return how many arguments an operator takes; None where it is not declared."""
    operator = getattr(torch.ops._C, name, None)
    return None if operator is None else len(operator.default._schema.arguments)


def _version() -> str:
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "?"
