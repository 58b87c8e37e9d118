"""A vLLM server that we start: how its log is read, and its environment variables."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quantdraft.engines.process import LogFormat

LOG = LogFormat(
    engine="vLLM",
    prefix=re.compile(r"^(\([\w-]+ pid=\d+\)\s*)?((ERROR|INFO|WARNING) [\d:. -]+\[[^\]]*\]\s*)?"),
    error=re.compile(r"^[\w.]*(Error|Exception): .+|^.*\berror: .+"),
    # An error that only says that another process failed; the cause stands before it.
    second_hand=(
        "initialization failed",
        "EngineDeadError",
        "stack trace",
        "root cause",
        "leaked",
        "nanobind",
    ),
)


WITHHELD = frozenset({"PYTHONPATH", "PYTHONHOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
WITHHELD |= {"VLLM_API_KEY"}
# They load code, or another model, or open routes that change the server.
WITHHELD |= {
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_LOGGING_CONFIG_PATH",
    "VLLM_MODEL_REDIRECT_PATH",
    "VLLM_PLUGINS",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_USE_MODELSCOPE",
}
# Models are local directories; torch's own ports are opened on this address.
BUILT_IN = frozenset({"cpu", "cuda"})
ALONE = {"HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1"}


def vllm_variables(prefix: Path, device_type: str) -> dict[str, str]:
    """Return the environment variables of a server; the user's own settings of vLLM are kept.

    It is told to stay on this machine whatever those say, and is given no token of the Hub.
    """
    kept = {k: v for k, v in os.environ.items() if k not in WITHHELD}
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if device_type == "cpu":
        wanted |= _cpu_variables(prefix)
    path = f"{prefix / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    if device_type in BUILT_IN:  # other devices are plugins themselves
        wanted["VLLM_PLUGINS"] = ""
    return wanted | kept | ALONE | {"PATH": path, "VIRTUAL_ENV": str(prefix)}


def _cpu_variables(prefix: Path) -> dict[str, str]:
    """Return GB of KV cache, cores for the scheduler, and the OpenMP that vLLM asks for."""
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    if (os.cpu_count() or 1) > 1:
        wanted["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "1"
    openmp = prefix / "lib" / "libiomp5.so"
    if openmp.is_file():
        wanted["LD_PRELOAD"] = str(openmp)
    return wanted
