"""vLLM: how it is told of a draft, and which drafts it refuses or reads wrongly.

Facts are of the source of vLLM 0.32 (model_executor/layers/quantization, kernels/linear), of its
CPU build by running it where nothing else is said, and of the threads named beside them; check
them against the installed version. No GPU ran any of it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import (
    Draft,
    Finding,
    float_mix,
    float_type,
    fp8_scale_name,
    misnamed_scale,
    unequal_vocabulary,
    vocab_size,
)
from quantdraft.engines.support import (
    BITSANDBYTES,
    FP4,
    GPTQ_ODD,
    MODELOPT_FP4,
    MODELOPT_FP8,
    MODELOPT_INTEGERS,
    OTHERS_FP8,
    USUAL,
    YES,
    Support,
    SupportTable,
)
from quantdraft.engines.vllm.measured import MeasuredVllm
from quantdraft.engines.vllm.names import unmatched_names
from quantdraft.engines.vllm.settings import speculative_config
from quantdraft.quantize.group_sizes import LOADED, tile_problem

# A draft's path that contains one of these makes vLLM pick another method than the one it is told.
METHOD_NAMES = ("eagle-", "eagle3", "dflash", "dspark")
CPU_TILE = 32  # of inputs and of outputs, in its CPU build (mixed_precision/cpu.py)
_ONE_GROUP = Support("no", "draft_model takes one config group (vllm#49893)")
_OF_MODELOPT = Support("no", "of ModelOpt it reads FP8, NVFP4 and MXFP8")
_BLACKWELL = Support("part", "Blackwell, or weight-only through Marlin")
_NO_UINT8 = Support("no", "Quant type (uint8b128) not supported")
_AVX512 = Support("yes", "its kernel needs AVX-512")
LOADS = SupportTable(
    dict.fromkeys((*USUAL, *OTHERS_FP8), YES)
    | dict.fromkeys((*FP4, "mxfp8", *MODELOPT_FP4, "modelopt:mxfp8"), _BLACKWELL)
    | dict.fromkeys(
        MODELOPT_FP8, Support("part", "from compute capability 8.0; before 8.9 weight-only")
    )
    | dict.fromkeys(MODELOPT_INTEGERS, _OF_MODELOPT)
    | dict.fromkeys(
        BITSANDBYTES, Support("part", "before 0.32, slowly; 0.32 itself has no loader for it")
    )
    | dict.fromkeys(GPTQ_ODD, Support("no", "of GPTQ it reads 4 and 8 bits"))
    | {
        "int4-fp8": Support("part", "compute capability 9.0 and no other"),
        "fbgemm_fp8:fp8": Support("part", "0.32 asks for --allow-deprecated-quantization"),
    },
    kv_cache=Support("part", "its cache is then FP8; needs compute capability 8.9"),
    several_groups=_ONE_GROUP,
    group_sizes=LOADED["vllm"],
)
# Where the CPU build does not load a format, its own message.
LOADS_ON_CPU = SupportTable(
    dict.fromkeys(USUAL, YES)
    | dict.fromkeys(MODELOPT_INTEGERS, _OF_MODELOPT)
    | dict.fromkeys(GPTQ_ODD, Support("no", "of GPTQ it reads 4 and 8 bits"))
    | dict.fromkeys(FP4, Support("no", "Marlin FP4 not available"))
    | dict.fromkeys(BITSANDBYTES, Support("no", "Unknown quantization method: bitsandbytes"))
    | {
        "int4": _AVX512,
        "gptq:int4": _AVX512,
        "gptq:int8-weight-only": _NO_UINT8,
        "int8-static": Support(
            "part", "read, not run: with AMX its kernel rounds by token, not by the stored scale"
        ),
        "int4-fp8": Support("no", "No compressed-tensors compatible scheme was found"),
        "int8-weight-only": _NO_UINT8,
        "fp8-static": Support("no", "static_scaled_fp8_quant() expected at most 0 argument(s)"),
        "fp8-block": Support("no", "needs AMX"),
        "mxfp8": Support("no", "Failed to find a kernel that can implement MXFP8"),
    },
    kv_cache=Support("part", "FP8 KV cache on CPU requires x86 with AVX-512 or AMX"),
    several_groups=_ONE_GROUP,
)
GPU_NEEDS = {
    "FP8": "FP8 activations need compute capability 8.9; older GPUs run it weight-only",
    "FP8_BLOCK": "block-scaled FP8 needs compute capability 8.9",
    "FP8_STATIC": "FP8 activations need compute capability 8.9; older GPUs run it weight-only",
}


class Vllm(Engine):
    """vLLM, told of a stand-alone draft."""

    name = "vllm"
    launch_file = "launch.sh"
    names_revision = True
    measured = MeasuredVllm()
    loads, loads_on_cpu = LOADS, LOADS_ON_CPU
    notes = (
        "The draft runs in the target's float type whatever its own config says; pin it with "
        "--dtype.",
        "Watch vllm:spec_decode_num_accepted_tokens / vllm:spec_decode_num_draft_tokens on "
        "/metrics: it should match the acceptance rate of the evaluation.",
        "A new target precision or revision needs a new evaluation.",
    )

    def launch(self, pair: LaunchPair) -> str:
        """Return the shell line that serves the target with the draft, its float type pinned."""
        config = speculative_config(pair.draft, pair.num_speculative_tokens, pair.acceptance_rule)
        parts = ["vllm", "serve", pair.target]
        if pair.revision:
            parts += ["--revision", pair.revision]
        if pair.dtype:
            parts += ["--dtype", pair.dtype]
        parts += ["--speculative-config", json.dumps(config, separators=(",", ":"))]
        return shlex.join(parts)

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return all in the draft's path, config and pairing that vLLM refuses or misreads."""
        return (
            *_path(draft),
            *self.loading(draft),
            *padded_matrices(draft),
            *_groups(draft),
            *unmatched_names(draft),
            *_asymmetric_gptq(draft),
            *misnamed_scale(draft, fp8_scale_name(draft), "vLLM"),
            *_vocabulary(draft),
            *_formats(draft),
            *float_mix(draft),
            *_pinned(draft),
        )


def _path(draft: Draft) -> Iterator[Finding]:
    found = [name for name in METHOD_NAMES if name in str(draft.path).lower()]
    if found:
        yield Finding(
            "refuse",
            f"output '{draft.path}' contains {found[0]!r}: vLLM would take the draft for another "
            "method by its name. Choose another path.",
        )


def padded_matrices(draft: Draft) -> Iterator[Finding]:
    """Yield matrices of grouped integers that some of its builds do not multiply by."""
    problem = tile_problem(draft.grouped)
    if problem is not None:
        yield Finding(
            "warn",
            f"{problem}: vLLM 0.32 pads the matrix, at a cost in speed; older versions do not load "
            "it (llm-compressor#1489).",
        )
    odd = [name for name, sizes in draft.grouped.items() if any(n % CPU_TILE for n in sizes)]
    if odd:
        yield Finding(
            "warn",
            f"INT4 in vLLM, not on a CPU: its sizes are multiples of {CPU_TILE}, and '{odd[0]}' is "
            f"of {' by '.join(map(str, draft.grouped[odd[0]]))}.",
        )


def _groups(draft: Draft) -> Iterator[Finding]:
    if len(draft.groups) > 1:
        yield Finding(
            "refuse",
            f"the draft has {len(draft.groups)} quantization config groups: vLLM's draft_model "
            "loader takes one (vllm#49893). Use a recipe with one scheme, e.g. lm_head: keep.",
        )
    for group in draft.groups[:1]:
        if (group.get("weights") or {}).get("strategy") == "tensor":
            yield Finding(
                "warn",
                "per-tensor weight scales can be misassigned in fused qkv and gate_up layers "
                "(vllm#53122). Prefer channel or group scales.",
            )


def _asymmetric_gptq(draft: Draft) -> Iterator[Finding]:
    own = draft.quantization
    if own.get("quant_method") == "gptq" and not own.get("sym", True):
        yield Finding(
            "refuse",
            "vLLM 0.32 reads symmetric GPTQ alone ('sym': true), and the draft's has zero points. "
            "Quantize it again with sym=True.",
        )


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft)
    if vocab_size(draft.target_config) is None:
        yield Finding("warn", "the target's vocab_size was not read: vLLM needs the draft's equal.")
    elif unequal:
        yield Finding(
            "refuse",
            f"{unequal}: vLLM's draft_model needs them equal. Export with --pad-vocab, which pads "
            "the draft's.",
        )


def _formats(draft: Draft) -> Iterator[Finding]:
    name, on_cpu = draft.format, LOADS_ON_CPU.of_checkpoint(draft.quantization)
    if on_cpu.level == "no" and len(draft.groups) < 2:  # several are refused
        yield Finding("warn", f"{name} in vLLM, not on a CPU: {on_cpu.note}.")
    is_modelopts = str(draft.quantization.get("quant_method")).startswith("modelopt")
    if name in GPU_NEEDS and not is_modelopts:  # its loader has no older GPUs
        yield Finding("warn", f"{name} in vLLM, GPU: {GPU_NEEDS[name]}.")


def _pinned(draft: Draft) -> Iterator[Finding]:
    if draft.target_config is not None and float_type(draft.target_config) is None:
        yield Finding("warn", "the target's float type was not read: pin it with --dtype.")
