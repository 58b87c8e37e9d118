"""Draft heads in vLLM and SGLang: launch lines, and what each engine refuses or misreads.

vLLM's methods were read from vLLM 0.32 (config/speculative.py), SGLang's from its sources of late
2026; SGLang is not run here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from quantdraft.checkpoints.heads.captures import captured_layers, mask_token
from quantdraft.checkpoints.heads.families import engine_method
from quantdraft.checkpoints.heads.head import DraftHead
from quantdraft.checkpoints.heads.maps import target_ids
from quantdraft.engines import sglang
from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import Draft, Finding, float_mix
from quantdraft.engines.sglang import draft_quantization
from quantdraft.engines.vllm import engine as vllm
from quantdraft.engines.vllm.engine import METHOD_NAMES

# vLLM takes these methods at their word; of another it asks the path first.
METHODS_BY_WORD = frozenset({"eagle3", "dflash", "dspark"})
NOTES = (
    "A draft head was not replayed: its acceptance is what the engine counts "
    "(vllm:spec_decode_num_accepted_tokens / …_num_draft_tokens, sglang:spec_accept_length). "
    "Compare it with the full-precision head's on the same prompts.",
    "A head belongs to the one target it was trained for, in the revision it was trained on.",
)


class HeadEngine(Engine):
    """vLLM or SGLang, launched with a draft head."""

    notes = NOTES

    def __init__(self, head: DraftHead, engine: Engine) -> None:
        self.head, self.name, self.launch_file = head, engine.name, engine.launch_file
        self.loads = engine.loads

    def launch(self, pair: LaunchPair) -> str:
        """Return the shell line that serves the target with this head."""
        return _vllm_line(self.head, pair) if self.name == "vllm" else _sglang_line(self.head, pair)

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what the engine refuses, or gets wrong without a message."""
        is_vllm = self.name == "vllm"
        own = _vllm_findings if is_vllm else _sglang_findings
        return (
            *self.loading(draft),
            *(vllm.padded_matrices if is_vllm else sglang.untiled_matrices)(draft),
            *own(self.head, draft),
            *_pairing(self.head, draft),
            *float_mix(draft),
        )


def head_engine(head: DraftHead, engine: Engine) -> HeadEngine:
    """Return the engine as it serves a head. Raises OptionError where it serves none such."""
    engine_method(head.family.name, engine.name)
    return HeadEngine(head, engine)


def head_speculative_config(head: DraftHead, pair: LaunchPair) -> dict[str, Any]:
    """Return the value of vLLM's --speculative-config for a head."""
    config: dict[str, Any] = {
        **engine_method(head.family.name, "vllm"),
        "model": str(pair.draft),
        "num_speculative_tokens": pair.num_speculative_tokens,
    }
    if head.config.get("speculators_model_type") == "peagle":
        config["parallel_drafting"] = True
    if pair.acceptance_rule == "rejection":
        config["draft_sample_method"] = "probabilistic"
    return config


def _vllm_line(head: DraftHead, pair: LaunchPair) -> str:
    config = json.dumps(head_speculative_config(head, pair), separators=(",", ":"))
    dtype = ["--dtype", pair.dtype] if pair.dtype else []
    return shlex.join(["vllm", "serve", pair.target, *dtype, "--speculative-config", config])


def _sglang_line(head: DraftHead, pair: LaunchPair) -> str:
    parts = ["python", "-m", "sglang.launch_server", "--model-path", pair.target]
    if pair.dtype:
        parts += ["--dtype", pair.dtype]
    parts += [
        *("--speculative-algorithm", engine_method(head.family.name, "sglang")["algorithm"]),
        *("--speculative-draft-model-path", str(pair.draft)),
        *_sglang_lengths(head, pair.num_speculative_tokens),
        "--speculative-draft-model-quantization",
        draft_quantization(pair.quantization),
    ]
    return shlex.join(parts)


def _sglang_lengths(head: DraftHead, k: int) -> list[str]:
    """Return the flags for k tokens a round: a chain of k steps, or one pass over a block.

    DFlash's block begins with a token that is known already; DSpark's does not.
    """
    if head.family.name == "dflash":
        return ["--speculative-dflash-block-size", str(k + 1)]
    if head.family.name == "dspark":
        return ["--speculative-dspark-block-size", str(k)]
    return [
        *("--speculative-num-steps", str(k)),
        *("--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(k + 1)),
    ]


def _vllm_findings(head: DraftHead, draft: Draft) -> Iterator[Finding]:
    method = engine_method(head.family.name, "vllm")["method"]
    path = str(draft.path).lower()
    found = [name for name in METHOD_NAMES if name in path]
    if method not in METHODS_BY_WORD and found:
        yield Finding(
            "refuse",
            f"output '{draft.path}' contains {found[0]!r}: vLLM would take this {method} head for "
            "another method by its name. Choose another path.",
        )
    if method == "mtp" and head.is_speculators:
        yield Finding(
            "refuse",
            "vLLM 0.32 does not read MTP heads in the speculators format: put the head's tensors "
            "back into the target's checkpoint (speculators' stitcher) before quantizing it.",
        )
    if method == "dspark":
        yield Finding(
            "warn",
            "vLLM 0.32 runs dspark with its second model runner only: set "
            "VLLM_USE_V2_MODEL_RUNNER=1 where it is not the default.",
        )
    if len(draft.groups) > 1:
        yield Finding("warn", "several quantization schemes in one head: not seen to load in vLLM.")
    if target_ids(head) is not None and head.vocab_size == head.target_vocab_size:
        yield Finding(
            "refuse",
            "'d2t' is stored and the draft's vocabulary is the target's: vLLM 0.32 has no place "
            "for the map and stops. Store the head without 'd2t' and 't2d'.",
        )
    if method in {"dflash", "dspark"} and mask_token(head.config) is None:
        yield Finding("refuse", f"the config names no mask_token_id, which {method} needs.")


def _sglang_findings(head: DraftHead, draft: Draft) -> Iterator[Finding]:
    if head.family.name == "dspark" and head.is_speculators:
        yield Finding(
            "refuse",
            "SGLang does not read DSpark heads in the speculators format, whose positions are off "
            "by one for it (sglang#30261).",
        )
    has_layers = any(name.startswith(("layers.", "model.layers.")) for name in head.tensors)
    if head.family.name == "eagle3" and has_layers:
        yield Finding(
            "warn",
            "the decoder layer is called 'layers.0': SGLang's EAGLE-3 loader knew 'midlayer' only, "
            "and left out what it did not know. Check sglang:spec_accept_length.",
        )
    if head.family.name == "eagle3":
        yield from _sglang_output_head(head)


def _sglang_output_head(head: DraftHead) -> Iterator[Finding]:
    """Yield where SGLang's EAGLE-3 loader takes its output head from another place."""
    is_tied = head.layer_config.get("tie_word_embeddings") is True
    if is_tied and head.has_own_head:
        yield Finding(
            "refuse",
            "tie_word_embeddings is true: SGLang takes the embedding for the output head, and "
            "leaves the stored lm_head out. Set it to false in the head's config.json.",
        )
    elif not is_tied and not head.has_own_head and head.has_draft_vocabulary:
        yield Finding(
            "refuse",
            "there is no lm_head and the config has a draft_vocab_size: SGLang then computes with "
            "an output head of random numbers (sglang#27829). Remove draft_vocab_size from the "
            "head's config.json, and SGLang takes the target's head.",
        )


def _pairing(head: DraftHead, draft: Draft) -> Iterator[Finding]:
    """Yield sizes that must agree with the target's, where its config was read."""
    target = draft.target_config or {}
    target = target.get("text_config") or target
    sizes = {"hidden_size": head.target_hidden_size, "vocab_size": head.target_vocab_size}
    for key, own in sizes.items():
        if own and target.get(key) and own != target[key]:
            yield Finding(
                "refuse" if key == "hidden_size" else "warn",
                f"{key} is {own} in the head and {target[key]} in the target: it was trained "
                "for another one.",
            )
    captured = captured_layers(head.config)
    problem = captured.problem(target.get("num_hidden_layers")) if captured else None
    if problem:
        yield Finding("refuse", f"{problem}. It was trained for another one.")
    if target.get("vocab_size"):
        yield from _ids_outside(head, int(target["vocab_size"]))


def _ids_outside(head: DraftHead, rows: int) -> Iterator[Finding]:
    """Yield ids of the head for which the target has no row."""
    ids = target_ids(head)
    if ids is not None and int(ids.max(initial=0)) >= rows:
        yield Finding(
            "refuse",
            f"'d2t' leads to id {int(ids.max())}, and vocab_size is {rows} in the target: it was "
            "trained for another one.",
        )
    mask = mask_token(head.config)
    if mask is not None and not head.has_own_embedding and mask[1] >= rows:
        yield Finding(
            "refuse",
            f"{mask[0]} is {mask[1]}, and vocab_size is {rows} in the target, whose embedding this "
            "head reads.",
        )
