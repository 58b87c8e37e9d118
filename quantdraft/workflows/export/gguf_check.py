"""Try an exported GGUF in llama.cpp's own server: the proof of the export.

Where the server is built, it serves the target's GGUF with the draft's. A draft that it does
not load or never asks is not exported. Left out: speed, which one short run does not measure.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from quantdraft.checkpoints.reference import embedded_prompts
from quantdraft.engines.llamacpp.gguf import GgufConversion, convert
from quantdraft.engines.llamacpp.server import DIRECTORY_VARIABLE, PROGRAM, find_server
from quantdraft.engines.llamacpp.trial import MAX_TOKENS, Speculation, load_and_speculate
from quantdraft.errors import CheckpointError, EngineError
from quantdraft.workflows.export.target import Target

NUM_PROMPTS = 4  # of the embedded pair
# A larger target is not converted for the proof alone: it takes as much disk again, and minutes.
MAX_TARGET_BYTES = 16 * 2**30
TARGET_TYPE = "auto"  # 16 bits, as it is stored
WITHOUT_PROOF = "Not proven: whether llama.cpp loads the GGUF was not tried"


@dataclass(frozen=True, slots=True)
class ServerTrial:
    """What the server did, for the model card, and the warnings for the user."""

    seen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def try_server(conversion: GgufConversion, draft: Path, target: Target, k: int) -> ServerTrial:
    """Serve `draft`, a GGUF file, beside the target, and say what its server counted.

    Where that cannot be tried (no server, no target here, one that is not served) a warning says
    why. Raises EngineError when the server refuses the draft or leaves it unused.
    """
    if find_server(conversion.llamacpp) is None:
        return _untried(
            f"no {PROGRAM} is built in '{conversion.llamacpp}', named by ${DIRECTORY_VARIABLE} or "
            "on PATH"
        )
    with tempfile.TemporaryDirectory(prefix="quantdraft-target-") as directory:
        try:
            served = _target_file(target, conversion.llamacpp, Path(directory))
            found = load_and_speculate(
                served,
                draft,
                prompts=embedded_prompts(NUM_PROMPTS),
                num_speculative_tokens=k,
                llamacpp=conversion.llamacpp,
            )
        except (EngineError, CheckpointError) as error:
            return _untried(str(error))
    if not found.loaded:
        raise EngineError(
            f"llama.cpp does not use this draft: {found.error}. Nothing was written; --no-proof "
            "writes it all the same."
        )
    return ServerTrial((trial_sentence(found, target, k),), tuple(_doubts(found)))


def trial_sentence(found: Speculation, target: Target, k: int) -> str:
    """Return what the server counted, on which texts, in a sentence."""
    assert found.accepted is not None
    assert found.proposed is not None
    parts = [
        f"{PROGRAM} {found.version} loaded it beside `{target.name}` and speculated, greedily, "
        f"k = {k}, on {found.num_prompts} embedded prompts of Python source (not your traffic), "
        f"up to {MAX_TOKENS} tokens each",
        f"{found.accepted} of {found.proposed} proposed tokens accepted "
        f"({found.accepted / found.proposed:.1%})",
    ]
    if found.rounds:
        length = 1 + found.accepted / found.rounds
        parts.append(f"{found.rounds} rounds, mean acceptance length {length:.2f}")
    parts.append(
        f"{found.num_equal_texts} of {found.num_prompts} texts are the target's own, token by token"
    )
    return "; ".join(parts) + "."


def _doubts(found: Speculation) -> list[str]:
    doubts = []
    if found.accepted == 0:
        doubts.append(f"llama.cpp accepted none of {found.proposed} proposed tokens.")
    if not found.text_equal:
        doubts.append(
            "with the draft, llama.cpp wrote another text than the target alone: a near-tie, which "
            "other batch sizes round another way, or a fault. Compare the two on your prompts."
        )
    return doubts


def _target_file(target: Target, llamacpp: Path | None, directory: Path) -> Path:
    """Return the target's GGUF, or make one in `directory`. Raises EngineError without one."""
    path = Path(target.name)
    if path.is_file():
        return path
    if target.config is None or llamacpp is None:
        raise EngineError(f"the target '{target.name}' is no GGUF file on this machine")
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if size > MAX_TARGET_BYTES:
        raise EngineError(
            f"the target '{target.name}' is too large to be converted for it "
            f"({size / 2**30:.0f} GiB); give its GGUF file as --target"
        )
    return convert(GgufConversion(path, TARGET_TYPE, llamacpp, "target"), directory)


def _untried(reason: str) -> ServerTrial:
    return ServerTrial(warnings=(f"{WITHOUT_PROOF}: {reason.rstrip('.')}.",))
