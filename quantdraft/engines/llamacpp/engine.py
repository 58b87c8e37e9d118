"""llama.cpp: GGUF alone, made from the full-precision draft, and a candidate of its own.

Flags are those of ggml-org/llama.cpp, common/arg.cpp, at commit 0c1e570 (which llama-cpp-python
0.3.36 carries); what it loads is that of its converter there (conversion/base.py), read, and run on
GPTQ of 4 bits, AWQ, FP8 in blocks, AutoFP8, FBGEMM, ModelOpt's NVFP4 and INT4. How a GGUF is made
is `quantdraft.engines.llamacpp.gguf`'s.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from quantdraft.checkpoints.dense_view import says_cache
from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import Draft, Finding, unequal_vocabulary
from quantdraft.engines.llamacpp.measured import MeasuredLlamacpp
from quantdraft.engines.llamacpp.server import speculative_arguments
from quantdraft.engines.support import (
    BITSANDBYTES,
    MODELOPT_FP4,
    MODELOPT_INTEGERS,
    Support,
    SupportTable,
)

# Two vocabularies may differ by as many tokens; beyond that the server leaves the draft unused.
MAX_VOCABULARY_DIFFERENCE = 128
# Of its converter, which makes GGUF files of the candidate's own weights, dequantized.
_CONVERTED = Support("part", "through its converter, to GGUF")
_NO_BRANCH = Support("no", "its converter has no branch for this method")
_OF_MODELOPT = Support("no", "of ModelOpt its converter reads FP8 by weight or row, and NVFP4")
LOADS = SupportTable(
    dict.fromkeys(
        ("dense", "int4", "int8", "fp8", "fp8-block", "nvfp4", "nvfp4-weight-only"), _CONVERTED
    )
    | dict.fromkeys(
        ("gptq:int2", "gptq:int4", "gptq:int8-weight-only", "fp8:fp8-block"), _CONVERTED
    )
    | dict.fromkeys(("modelopt:fp8", "modelopt:fp8-static", *MODELOPT_FP4), _CONVERTED)
    | dict.fromkeys(("modelopt:fp8-block", *MODELOPT_INTEGERS, "modelopt:mxfp8"), _OF_MODELOPT)
    | dict.fromkeys(("awq:int4", *BITSANDBYTES, "fbgemm_fp8:fp8"), _NO_BRANCH)
    | dict.fromkeys(
        ("fp8-static", "int8-static"), Support("no", "its converter knows no scales of inputs")
    )
    | dict.fromkeys(
        ("mxfp4", "mxfp8"),
        Support("no", "its converter has no branch for this layout of compressed-tensors"),
    )
    | dict.fromkeys(
        ("fp8:fp8", "fp8:fp8-static"),
        Support("part", "scales named weight_scale_inv alone"),
    )
    | {
        "gptq:int3": Support("no", "its converter reads GPTQ of 2, 4 and 8 bits"),
        "int4-fp8": Support("part", "through its converter, to GGUF; inputs are not rounded"),
        "int8-weight-only": Support("no", "its converter takes packed weights in groups alone"),
    },
    kv_cache=Support("no", "its converter needs a config group of weights"),
    several_groups=Support(
        "no", "its converter takes one config group, of grouped or per-row weights"
    ),
)


class Llamacpp(Engine):
    """llama.cpp, told of a draft in a GGUF file."""

    name = "llamacpp"
    launch_file = "launch.sh"
    loads = LOADS
    measured = MeasuredLlamacpp()
    notes = (
        "The GGUF is another quantization than the candidate it stands beside: its acceptance and "
        "speed are its own and were not measured. Judge it with llama.cpp's own counters "
        "(--metrics: llamacpp:spec_decode_num_accepted_tokens_total over "
        "llamacpp:spec_decode_num_draft_tokens_total).",
        "The draft's KV cache stays f16: q4_0 halved acceptance, q8_0 once took it from 99 % to 0 "
        "(llama.cpp#15039, llama.cpp#25725).",
        "The verdict on a draft belongs to one precision of the target: the same draft gained 55 % "
        "beside an F16 target and lost 45 % beside a Q4_K_M one (llama.cpp#10594).",
        "The flags were read from llama.cpp's sources (common/arg.cpp at commit 0c1e570).",
    )

    def launch(self, pair: LaunchPair) -> str:
        """Return the shell line that serves the target; `pair.draft` is the GGUF file."""
        return shlex.join(
            [
                *("llama-server", "-m", pair.target),
                *speculative_arguments(pair.draft, pair.num_speculative_tokens),
            ]
        )

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what llama.cpp needs of the pair; the candidate's own format is not read."""
        return (*_vocabulary(draft), *_cache(draft))


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft, MAX_VOCABULARY_DIFFERENCE)
    if unequal:
        yield Finding(
            "warn",
            f"{unequal}: beyond a difference of {MAX_VOCABULARY_DIFFERENCE} tokens llama-server "
            "serves without the draft, and only its log says so.",
        )


def _cache(draft: Draft) -> Iterator[Finding]:
    if says_cache(draft.quantization):
        yield Finding("warn", "the candidate's quantized KV cache is not carried over: it is f16.")
