"""vLLM as it is measured: an installation, its servers, and what counts as one of its rounds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.measured import Installation, MeasuredEngine, ServerPlan
from quantdraft.engines.process import Server, free_port, running
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.engines.vllm import settings as own
from quantdraft.engines.vllm.client import VllmClient
from quantdraft.engines.vllm.environment import Environment, find_vllm
from quantdraft.engines.vllm.server import LOG, vllm_variables
from quantdraft.record import AcceptanceRule
from quantdraft.traffic.traffic import Sampling

# Of one server without its weights: three processes with torch in each, and 1 GB of KV cache.
CPU_SERVER_BYTES, CUDA_SERVER_BYTES = 3 * 10**9, 4 * 10**9


class VllmInstallation(Installation):
    """One installed vLLM, with the user's settings of its servers."""

    def __init__(
        self,
        environment: Environment,
        speculative: Mapping[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.environment, self.arguments = environment, arguments
        self.speculative: Mapping[str, Any] = dict(speculative or {})
        self.version, self.device_type = environment.version, environment.device_type
        self.server_bytes = CPU_SERVER_BYTES if self.device_type == "cpu" else CUDA_SERVER_BYTES
        self.is_synthetic = own.is_synthetic(self.speculative)

    def float_types(self, asked: str, target: Checkpoint) -> tuple[str, ...]:
        """Return the type asked for; on a CPU float32 first, in which counters are exact."""
        if asked != "auto":
            return (asked,)
        if self.device_type == "cpu":
            return ("float32", "bfloat16")
        from quantdraft.checkpoints.tensors.devices import gpu_float_type

        return (gpu_float_type(),)

    def start(
        self, plan: ServerPlan, draft: Path | None, log: Path
    ) -> AbstractContextManager[Server]:
        """Start one server, not yet healthy; `draft` None: the target alone."""
        port, environment = free_port(), self.environment
        command = own.vllm_command(environment, plan, draft, port, self.speculative, self.arguments)
        variables = vllm_variables(environment.prefix, self.device_type)
        return running(command, port, log, variables, LOG)


class MeasuredVllm(MeasuredEngine):
    """How vLLM is served and counted on this machine."""

    title = "vLLM"
    passed_on = own.PASSED_ON

    def open(self, settings: ServingSettings) -> VllmInstallation:
        """Return the installed vLLM. Raises EngineError without one, OptionError for settings."""
        own.PASSED_ON.require(settings.args)
        found = find_vllm(settings.path)
        speculative = own.parse_pairs(settings.spec)
        own.require_users_keys(speculative)
        own.require_known_keys(speculative, found)
        own.require_possible(speculative, found)
        return VllmInstallation(found, speculative, settings.args)

    def client(self, url: str) -> VllmClient:
        """Return a client of a running server."""
        return VllmClient(url)

    def refusal(self, rule: AcceptanceRule, sampling: Sampling) -> str | None:
        """Return why vLLM does not decode by this rule, or None."""
        if rule == "exact_match":
            return "vLLM has no acceptance rule 'exact_match'. Use greedy_draft."
        return None
