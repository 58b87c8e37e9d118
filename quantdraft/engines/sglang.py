"""SGLang: how it is told of a stand-alone draft, and what it does with one in silence.

SGLang needs a GPU and is not run here. Every flag below is a field of `ServerArgs` in
sgl-project/sglang, python/sglang/srt/server_args.py, at commit 001067f; what it loads was read at
commits 719a836 and 0104cc5 (layers/quantization/compressed_tensors).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import (
    Draft,
    Finding,
    float_mix,
    fp8_scale_name,
    misnamed_scale,
    several_groups,
    unequal_vocabulary,
    vocab_size,
)
from quantdraft.engines.support import (
    BITSANDBYTES,
    GPTQ_ODD,
    MODELOPT,
    OTHERS_FP8,
    USUAL,
    YES,
    Support,
    SupportTable,
    stored_names,
)
from quantdraft.quantize.group_sizes import LOADED, tile_problem

# Without the flag a draft is read by the target's quantization; this value says that it has none.
NOT_QUANTIZED = "unquant"
# Values of the flag that are a checkpoint's `quant_method` too.
METHODS = frozenset(("compressed-tensors", "bitsandbytes", "gptq", "awq", "fp8", "mxfp4"))
METHODS |= {"modelopt", "modelopt_fp4", "auto-round", "quark"}
LOADS = SupportTable(
    dict.fromkeys((*USUAL, *OTHERS_FP8), YES)
    | dict.fromkeys(MODELOPT, Support("no", "of ModelOpt it reads FP8 and NVFP4"))
    | {"modelopt:fp8-static": YES, "modelopt:nvfp4": Support("part", "Blackwell")}
    | dict.fromkeys(BITSANDBYTES, Support("part", "limited"))
    | {
        "int4-fp8": Support("no", "its INT4 x FP8 scheme is for experts alone"),
        "nvfp4": Support("part", "before Blackwell weight-only: inputs are not rounded"),
        "nvfp4-weight-only": Support("part", "through Marlin, not in older versions"),
        "mxfp4": Support("part", "weight-only through Marlin: inputs are not rounded"),
        "mxfp8": Support("part", "Blackwell, and not in older versions"),
    }
    | dict.fromkeys(GPTQ_ODD, Support("part", "its slow GPTQ kernel alone")),
    group_sizes=LOADED["sglang"],
)


class Sglang(Engine):
    """SGLang, told of a stand-alone draft."""

    name = "sglang"
    launch_file = "launch.sh"
    names_revision = True
    loads = LOADS
    notes = (
        "The flags were read from SGLang's sources (server_args.py at commit 001067f), not run "
        "here: compare them with `python -m sglang.launch_server --help` of your version.",
        "Without --speculative-draft-model-quantization SGLang reads the draft by the target's "
        "quantization (sglang#28196, sglang#34622): keep the flag.",
        "Watch sglang:spec_accept_length: it should match the mean acceptance length of the "
        "evaluation. A draft that is misread is accepted about never, and says nothing.",
        "A new target precision or revision needs a new evaluation.",
    )

    def launch(self, pair: LaunchPair) -> str:
        """Return the shell line that serves the target with the draft: a chain of k tokens."""
        parts = ["python", "-m", "sglang.launch_server", "--model-path", pair.target]
        if pair.revision:
            parts += ["--revision", pair.revision]
        if pair.dtype:
            parts += ["--dtype", pair.dtype]
        parts += [
            *("--speculative-algorithm", "STANDALONE"),
            *("--speculative-draft-model-path", str(pair.draft)),
            *("--speculative-num-steps", str(pair.num_speculative_tokens)),
            *("--speculative-eagle-topk", "1"),
            *("--speculative-num-draft-tokens", str(pair.num_speculative_tokens + 1)),
            *("--speculative-draft-model-quantization", draft_quantization(pair.quantization)),
        ]
        if pair.acceptance_rule == "rejection":
            parts.append("--speculative-use-rejection-sampling")
        return shlex.join(parts)

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what SGLang refuses, and what it gets wrong without a message."""
        return (
            *self.loading(draft),
            *_method(draft),
            *untiled_matrices(draft),
            *misnamed_scale(draft, fp8_scale_name(draft), "SGLang"),
            *several_groups(draft, "SGLang"),
            *_vocabulary(draft),
            *float_mix(draft),
        )


def draft_quantization(quantization: Mapping[str, Any]) -> str:
    """Return the value of --speculative-draft-model-quantization."""
    if not quantization:
        return NOT_QUANTIZED
    method = str(quantization.get("quant_method"))
    is_marlin = quantization.get("bits") in {4, 8} and bool(quantization.get("sym", True))
    if method == "gptq" and is_marlin:
        return "gptq_marlin"  # plain "gptq" forces the slow kernel
    if "modelopt:nvfp4" in stored_names(quantization):
        return "modelopt_fp4"  # plain "modelopt" reads FP8
    return method


def _method(draft: Draft) -> Iterator[Finding]:
    method = draft.quantization.get("quant_method")
    if draft.quantization and method not in METHODS:
        yield Finding(
            "refuse",
            f"--speculative-draft-model-quantization has no value for quant_method {method!r}, and "
            "without it SGLang reads the draft by the target's. Use another recipe.",
        )


def untiled_matrices(draft: Draft) -> Iterator[Finding]:
    """Yield the matrix of grouped integers for which its kernel has no tile."""
    problem = tile_problem(draft.grouped)
    if problem is not None and draft.quantization.get("quant_method") == "gptq":
        yield Finding(
            "warn",
            f"{problem}: pass --speculative-draft-model-quantization gptq, its slower kernel.",
        )
    elif problem is not None:
        yield Finding("refuse", f"{problem}. Use a recipe with one scale per row (int8, fp8).")


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft)
    if vocab_size(draft.target_config) is None:
        yield Finding(
            "warn",
            "the target's vocab_size was not read: where the draft's differs, SGLang corrupts "
            "tokens in silence (sglang#24051).",
        )
    elif unequal:
        yield Finding(
            "refuse",
            f"{unequal}: SGLang corrupts tokens in silence (sglang#24051). Export with "
            "--pad-vocab, which pads the draft's.",
        )
