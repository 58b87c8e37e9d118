"""How a vLLM server is told what to serve: its arguments, and its speculative config.

The config's keys are those of the installed version; another is refused before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantdraft.common.documents import parse_json
from quantdraft.engines.measured import ServerPlan
from quantdraft.engines.server_arguments import PassedOn, long_names, short_names
from quantdraft.engines.vllm.environment import Environment
from quantdraft.errors import OptionError, nearest
from quantdraft.record import AcceptanceRule

SERVED_NAME = "target"
SYNTHETIC = "synthetic"
PASSED_ON = PassedOn(
    "vLLM",
    long_names("""
        allow-deprecated-quantization async-scheduling attention-backend block-size
        cp-kv-cache-interleave-size cpu-distributed-timeout-seconds cpu-offload-gb
        cudagraph-capture-sizes decode-context-parallel-size device-memory-utilization
        disable-cascade-attn disable-custom-all-reduce disable-hybrid-kv-cache-manager
        disable-nccl-for-dp-synchronization disable-sliding-window distributed-timeout-seconds
        enable-chunked-prefill enable-expert-parallel enable-flashinfer-autotune enforce-eager
        gpu-memory-utilization kv-cache-dtype kv-cache-memory-bytes language-model-only
        limit-mm-per-prompt linear-backend mamba-backend mamba-block-size mamba-cache-dtype
        mamba-cache-mode mamba-ssm-cache-dtype max-cudagraph-capture-size
        max-num-batched-tokens max-num-seqs max-parallel-loading-workers mm-processor-cache-gb
        moe-backend num-gpu-blocks-override numa-bind numa-bind-cpus numa-bind-nodes
        optimization-level performance-mode pipeline-parallel-size prefill-context-parallel-size
        quantization safetensors-load-strategy skip-mm-profiling swap-space tensor-parallel-size
        uvicorn-log-level""")
    | short_names("tp pp dcp pcp ep q O0 O1 O2 O3"),
    ("VLLM_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_PRELOAD", "NCCL_", "TORCH"),
)
# They name another draft, another target, or how many tokens: `evaluate` has options for these.
OWN_KEYS = frozenset({"model", "revision", "code_revision", "num_speculative_tokens"})
OWN_KEYS |= {"draft_load_config", "draft_model_config", "target_model_config"}


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` settings as a dict; a value that is JSON is read as such."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise OptionError(f"--engine-spec {pair!r}: write KEY=VALUE.")
        try:
            found[key] = parse_json(text)
        except ValueError:
            found[key] = text
    return found


def require_users_keys(keys: Iterable[str]) -> None:
    """Raise OptionError for a key of the speculative config that `evaluate` sets itself."""
    for key in keys:
        if key in OWN_KEYS:
            raise OptionError(
                f"--engine-spec {key}: the draft is the candidate, and -k and --engine-k say how "
                "many tokens it proposes. Leave it out."
            )


def require_known_keys(keys: Iterable[str], environment: Environment) -> None:
    """Raise OptionError for a key that the installed version's speculative config lacks."""
    known = environment.speculative_keys
    for key in keys:
        if key not in known:
            hint = nearest(key, known) or f" It knows {', '.join(known)}."
            raise OptionError(
                f"vLLM {environment.version} has no speculative setting {key!r}.{hint}"
            )


def require_possible(speculative: Mapping[str, Any], environment: Environment) -> None:
    """Raise OptionError for settings that are known and yet do not run on this build."""
    if is_synthetic(speculative) and environment.device_type == "cpu":
        raise OptionError(
            f"vLLM {environment.version} has no synthetic acceptance on a CPU "
            '("Synthetic acceptance not supported with CPU sampling"). Leave out '
            "rejection_sample_method."
        )


def is_synthetic(speculative: Mapping[str, Any]) -> bool:
    """Return True when the engine is told how much to accept, whatever the draft proposes."""
    return speculative.get("rejection_sample_method") == SYNTHETIC


def speculative_config(
    draft: Path, num_speculative_tokens: int, acceptance_rule: AcceptanceRule | None = None
) -> dict[str, str | int]:
    """Return the value of --speculative-config. Only `rejection` needs more than the default."""
    config: dict[str, str | int] = {
        "method": "draft_model",
        "model": str(draft),
        "num_speculative_tokens": num_speculative_tokens,
    }
    if acceptance_rule == "rejection":
        config["draft_sample_method"] = "probabilistic"
    return config


def vllm_command(
    environment: Environment,
    plan: ServerPlan,
    draft: Path | None,
    port: int,
    speculative: Mapping[str, Any],
    arguments: Iterable[str] = (),
) -> list[str]:
    """Return the command line of one server.

    draft: None for the target alone
    speculative, arguments: the user's own keys of the speculative config, which win, and arguments
    """
    command = [
        *(environment.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(plan.target)),
        *("--served-model-name", SERVED_NAME),
        *("--dtype", plan.dtype),
        *("--seed", str(plan.seed)),
        *("--max-model-len", str(plan.max_model_len)),
        *("--generation-config", "vllm"),  # the request alone says how to sample
        "--no-enable-prefix-caching",  # a prompt that comes twice is computed twice
        *_sizes(environment.device_type, plan),
    ]
    if draft is not None:
        plain = speculative_config(draft, plan.num_speculative_tokens, plan.rule)
        config = {**plain, "max_model_len": plan.max_model_len, **speculative}
        command += ["--speculative-config", json.dumps(config)]
    # Last, so that nothing the user added opens it to others.
    return [*command, *arguments, "--host", "127.0.0.1", "--port", str(port)]


def _sizes(device_type: str, plan: ServerPlan) -> list[str]:
    if device_type == "cpu":
        # Compilation needs a C++ compiler and minutes; every arm goes without.
        tokens = max(1024, plan.max_model_len)
        return ["--max-num-seqs", "8", "--max-num-batched-tokens", str(tokens), "--enforce-eager"]
    sizes = ["--max-num-seqs", "8"]
    if plan.memory_share is not None:
        sizes += ["--gpu-memory-utilization", f"{plan.memory_share:.3f}"]
    return sizes
