"""llama.cpp as it is measured: GGUF files of all models, its servers, and its rounds.

Its convention differs from the others' in the last round alone: it never proposes more tokens than
are still wanted less one, and with one token left it takes a plain step that is no round. Holds
with --spec-draft-p-min 0 and --spec-draft-n-min 0 (else it stops proposing where the draft is in
doubt, and drops short proposals).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.engines.findings import float_type
from quantdraft.engines.llamacpp.candidate import candidate_checkpoint, gguf_of
from quantdraft.engines.llamacpp.client import LlamacppClient
from quantdraft.engines.llamacpp.gguf import (
    FULL_PRECISION,
    GgufConversion,
    cached_gguf,
    require_sources,
)
from quantdraft.engines.llamacpp.server import (
    DIRECTORY_VARIABLE,
    PASSED_ON,
    device_type,
    require_server,
    start_server,
    version,
)
from quantdraft.engines.measured import Installation, MeasuredEngine, ServerPlan
from quantdraft.engines.process import Server
from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.errors import OptionError
from quantdraft.record import AcceptanceRule
from quantdraft.record.step_bytes import Ledger
from quantdraft.traffic.traffic import Sampling

SERVER_BYTES = 10**9  # of one server, besides its weights
# By GGUF type, what llama.cpp rounds the inputs of a product to.
INPUT_TYPES = {"f16": "float16", "bf16": "bfloat16", "q8_0": "int8", "q4_0": "int8"}


class LlamacppInstallation(Installation):
    """One built llama.cpp, with the user's arguments of its servers."""

    server_bytes = SERVER_BYTES

    def __init__(self, llamacpp: Path | None, arguments: tuple[str, ...] = ()) -> None:
        self.llamacpp, self.arguments = llamacpp, arguments
        self.program = require_server(llamacpp)
        self.version, self.device_type = version(self.program), device_type(self.program)

    def float_types(self, asked: str, target: Checkpoint) -> tuple[str, ...]:
        """Return the type that is asked for, or in which the target is stored."""
        stored = float_type(target.config)
        return (asked,) if asked != "auto" else (stored if stored in FULL_PRECISION else "float32",)

    def model_file(self, checkpoint: Checkpoint, dtype: str) -> Path:
        """Return the GGUF of a model: the candidate's own, or one of floats, made once."""
        own = gguf_of(checkpoint)
        if own is not None:
            return own.file
        if checkpoint.quantization is not None:
            raise OptionError(
                f"llama.cpp: '{checkpoint.path}' is quantized, and its GGUF is made from full "
                "precision alone. Give the model that it was made from."
            )
        sources = require_sources(self.llamacpp)
        return cached_gguf(GgufConversion(checkpoint.path, FULL_PRECISION[dtype], sources, "model"))

    def start(
        self, plan: ServerPlan, draft: Path | None, log: Path
    ) -> AbstractContextManager[Server]:
        """Start one server, not yet healthy; `draft` None: the target alone."""
        return start_server(self.program, plan, draft, log, self.arguments)


class MeasuredLlamacpp(MeasuredEngine):
    """How llama.cpp is served and counted on this machine."""

    title = "llama.cpp"
    passed_on = PASSED_ON

    def open(self, settings: ServingSettings) -> LlamacppInstallation:
        """Return the built llama.cpp. Raises EngineError without one, OptionError for settings."""
        if settings.spec:
            raise OptionError("--engine-spec: llama.cpp has none. Use --engine-args.")
        PASSED_ON.require(settings.args)
        return LlamacppInstallation(_directory(settings), settings.args)

    def client(self, url: str) -> LlamacppClient:
        """Return a client of a running server."""
        return LlamacppClient(url)

    def refusal(self, rule: AcceptanceRule, sampling: Sampling) -> str | None:
        """Return why llama.cpp is not measured by this rule, or None."""
        if sampling.is_greedy:
            return None
        return (
            f"--engine llamacpp is measured greedily, and the traffic was sampled at temperature "
            f"{sampling.temperature}. Capture it at temperature 0."
        )

    def candidate(self, name: str, baseline: str | None, settings: ServingSettings) -> str:
        """Return a checkpoint with the weights of the candidate's GGUF, dequantized.

        name: a GGUF file or a directory that holds one; or a checkpoint, whose GGUF is made from
            the full-precision draft with as many bits, as `export` does. A draft in floats is
            converted as it is.
        """
        return candidate_checkpoint(name, baseline, _directory(settings))

    def served_ledger(self, checkpoint: Checkpoint) -> Ledger | None:
        """Return what a step reads of the candidate's GGUF."""
        own = gguf_of(checkpoint)
        return None if own is None else own.ledger

    def input_types(self, checkpoint: Checkpoint) -> frozenset[str]:
        """Return the type to which llama.cpp rounds the inputs of the candidate's products."""
        own = gguf_of(checkpoint)
        found = None if own is None else INPUT_TYPES.get(own.gguf_type)
        return frozenset() if found is None else frozenset({found})

    def replay_type(self, checkpoint: Checkpoint, dtype: str) -> str:
        """Return the float type of replay: weights of a GGUF are not rounded once more."""
        return dtype if gguf_of(checkpoint) is None else "float32"

    def num_round_tokens(self, num_tokens: int, is_cut: bool) -> int:
        """Return all but the last of an answer that the length limit ended."""
        return max(1, num_tokens - 1) if is_cut else num_tokens


def _directory(settings: ServingSettings) -> Path | None:
    named = os.environ.get(DIRECTORY_VARIABLE)
    return settings.path or (Path(named) if named else None)
