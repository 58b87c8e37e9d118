"""vLLM: how it is told of a draft, and which drafts it refuses or reads wrongly.

Facts are of vLLM 0.32 and the threads named beside them; check them against the installed version.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from quantdraft.results import AcceptanceRule
from quantdraft.serving.findings import Draft, Finding, float_type, vocab_size

LAUNCH_FILE = "launch.sh"
# A draft's path that contains one of these makes vLLM pick another method than the one it is told.
METHOD_NAMES = ("eagle-", "eagle3", "dflash", "dspark")
# Formats of a draft that vLLM's CPU backend cannot run; a GPU may.
NOT_ON_CPU = {
    "W8A16": "its CPU backend does not support 8-bit weight-only (quant type uint8b128)",
    "FP8_BLOCK": "its CPU backend needs AMX for block-scaled FP8",
    "FP8_STATIC": "its CPU backend fails on static FP8 activation scales",
    "FP4": "its CPU backend has no FP4 kernel",
}
GPU_NEEDS = {
    "FP8": "FP8 activations need compute capability 8.9; older GPUs run it weight-only",
    "FP8_BLOCK": "block-scaled FP8 needs compute capability 8.9",
    "FP8_STATIC": "FP8 activations need compute capability 8.9; older GPUs run it weight-only",
    "FP4": "FP4 needs Blackwell, or runs weight-only through Marlin",
}
NOTES = (
    "The draft runs in the target's float type whatever its own config says; pin it with --dtype.",
    "Watch vllm:spec_decode_num_accepted_tokens / vllm:spec_decode_num_draft_tokens on /metrics: "
    "it should match the acceptance rate of the evaluation.",
    "A new target precision or revision needs a new evaluation.",
)


def launch(
    target: str,
    draft: Path,
    num_speculative_tokens: int,
    *,
    dtype: str | None = None,
    acceptance_rule: AcceptanceRule | None = None,
) -> str:
    """The shell line that serves `target` with `draft` at k. dtype: the target's, pinned."""
    config = speculative_config(draft, num_speculative_tokens, acceptance_rule)
    parts = ["vllm", "serve", target]
    if dtype:
        parts += ["--dtype", dtype]
    parts += ["--speculative-config", json.dumps(config, separators=(",", ":"))]
    return shlex.join(parts)


def speculative_config(
    draft: Path, num_speculative_tokens: int, acceptance_rule: AcceptanceRule | None = None
) -> dict[str, str | int]:
    """The value of --speculative-config. Only the rule `rejection` needs more than the default."""
    config: dict[str, str | int] = {
        "method": "draft_model",
        "model": str(draft),
        "num_speculative_tokens": num_speculative_tokens,
    }
    if acceptance_rule == "rejection":
        config["draft_sample_method"] = "probabilistic"
    return config


def launch_text(line: str) -> str:
    """The launch line as the content of LAUNCH_FILE."""
    note = "# The path of the draft is absolute: change it when the directory moves."
    return f"#!/bin/sh\n{note}\n{line}\n"


def check(draft: Draft) -> tuple[Finding, ...]:
    """Everything in the draft's path, config and pairing that vLLM would stumble over."""
    return (*_path(draft), *_groups(draft), *_vocabulary(draft), *_formats(draft), *_dtypes(draft))


def _path(draft: Draft) -> Iterator[Finding]:
    found = [name for name in METHOD_NAMES if name in str(draft.path).lower()]
    if found:
        yield Finding(
            "refuse",
            f"output '{draft.path}' contains {found[0]!r}: vLLM would take the draft for another "
            "method by its name. Choose another path.",
        )


def _groups(draft: Draft) -> Iterator[Finding]:
    if len(draft.groups) > 1:
        yield Finding(
            "refuse",
            f"the draft has {len(draft.groups)} quantization config groups: vLLM's draft_model "
            "loader takes one (vllm#49893). Use a recipe with one scheme, e.g. lm_head: keep.",
        )
    for group in draft.groups[:1]:
        if group.get("targets") != ["Linear"]:
            yield Finding(
                "warn",
                f"the quantization targets {group.get('targets')!r}: vLLM loads a draft under the "
                "prefix 'draft_model.', so exact names do not match. Use ['Linear'].",
            )
        if (group.get("weights") or {}).get("strategy") == "tensor":
            yield Finding(
                "warn",
                "per-tensor weight scales can be misassigned in fused qkv and gate_up layers "
                "(vllm#53122). Prefer channel or group scales.",
            )
    anchored = [name for name in draft.quantization.get("ignore") or [] if name.startswith("re:^")]
    if anchored:
        yield Finding(
            "warn",
            f"the ignore pattern {anchored[0]!r} is anchored and will not match under the prefix "
            "'draft_model.'.",
        )


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    own, target = vocab_size(draft.config), vocab_size(draft.target_config)
    if target is None:
        yield Finding("warn", "the target's vocab_size was not read: vLLM needs the draft's equal.")
    elif own != target:
        yield Finding(
            "refuse",
            f"vocab_size is {own} in the draft and {target} in the target: vLLM's draft_model "
            "needs them equal. Pad the smaller embedding and head.",
        )


def _formats(draft: Draft) -> Iterator[Finding]:
    name = draft.format
    for table, where in ((NOT_ON_CPU, "not on a CPU"), (GPU_NEEDS, "GPU")):
        if name in table:
            yield Finding("warn", f"{name} in vLLM, {where}: {table[name]}.")
    if name == "BITSANDBYTES":
        yield Finding("warn", "bitsandbytes saves memory and is slow: a draft step gets longer.")


def _dtypes(draft: Draft) -> Iterator[Finding]:
    own, target = float_type(draft.config), float_type(draft.target_config)
    if "float16" in (own, target) and own != target:
        yield Finding(
            "warn",
            f"the draft is {own or 'of unknown type'} and the target "
            f"{target or 'of unknown type'}: a forced float16 once accepted nothing (vllm#55294).",
        )
