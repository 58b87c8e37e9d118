"""TensorRT-LLM: a YAML file for `trtllm-serve`, PyTorch backend.

It needs a GPU and is not run here. Every key below is a field in NVIDIA/TensorRT-LLM,
tensorrt_llm/llmapi/llm_args.py, at commit 0004396; `--config` and the overlap scheduler are from
docs/source/features/speculative-decoding.md at commit 04c8822. What it loads was read from
tensorrt_llm/_torch/model_config.py at commit 008e0af and models/quant_config_utils.py at 21156a7.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import (
    Draft,
    Finding,
    float_mix,
    several_groups,
    unequal_vocabulary,
)
from quantdraft.engines.support import (
    BITSANDBYTES,
    GPTQ_ODD,
    MODELOPT_FP4,
    MODELOPT_FP8,
    OTHER_LIBRARIES,
    YES,
    Support,
    SupportTable,
)

CONFIG_FILE = "trtllm.yaml"
# The config's type is a union that is told apart by this word, and refuses any other.
DECODING_TYPE = "Draft_Target"
OLD_DECODING_TYPE = "DraftTarget"
_READ = Support("part", "its loader was read, not run")
_NO_BRANCH = Support("no", "its loader has no branch for this method")
_INT8 = Support("no", "its compressed-tensors loader takes 8 bits for FP8")
_BLACKWELL = "Blackwell, and models whose weight mapper knows compressed-tensors' names"
LOADS = SupportTable(
    {"dense": YES}
    | dict.fromkeys((*BITSANDBYTES, *OTHER_LIBRARIES, *GPTQ_ODD), _NO_BRANCH)
    | dict.fromkeys(("fp8", "fp8-block", "fp8:fp8-block"), _READ)
    | dict.fromkeys(("fp8:fp8", "fp8:fp8-static", "fbgemm_fp8:fp8"), _NO_BRANCH)
    | dict.fromkeys(("int4", "int4-fp8"), Support("no", "of 4 bits it loads NVFP4 alone"))
    | dict.fromkeys(("int8", "int8-static", "int8-weight-only"), _INT8)
    | dict.fromkeys((*MODELOPT_FP8, *MODELOPT_FP4, "modelopt:mxfp8"), _READ)
    | dict.fromkeys(("modelopt:int4", "modelopt:int4-fp8", "modelopt:int8-weight-only"), _READ)
    | dict.fromkeys(
        ("modelopt:int8", "modelopt:int8-static"),
        Support("no", "its PyTorch backend has no product for INT8 inputs"),
    )
    | {
        "fp8-static": Support("no", "it loads FP8 by row and token, or in blocks"),
        "nvfp4": Support("part", _BLACKWELL),
        "nvfp4-weight-only": Support("no", "of compressed-tensors it loads NVFP4 with inputs"),
        "mxfp4": Support("no", "its MXFP4 of compressed-tensors is for experts, weight-only"),
        "mxfp8": Support("no", "of compressed-tensors it loads FP8 by row or in blocks"),
    },
    kv_cache=Support("part", "its loader was read, not run; its cache is then FP8"),
    several_groups=Support("no", "of several groups it matches no class, such as Linear"),
)


class TensorRtLlm(Engine):
    """TensorRT-LLM, told of a stand-alone draft."""

    name = "tensorrt-llm"
    launch_file = "launch.sh"
    loads = LOADS
    notes = (
        "The keys were read from TensorRT-LLM's sources (llm_args.py at commit 0004396), not run "
        "here.",
        f"Older versions, and the manual, spell the decoding_type {OLD_DECODING_TYPE}, and call "
        "--config --extra_llm_api_options. A wrong spelling is refused at start-up.",
        "A new target precision or revision needs a new evaluation.",
    )

    def launch(self, pair: LaunchPair) -> str:
        """Return the shell line that serves the target; its YAML file names the draft."""
        config = str(pair.draft / CONFIG_FILE)
        return shlex.join(
            ["trtllm-serve", pair.target, "--backend", "pytorch", "--config", config],
        )

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what TensorRT-LLM does not load, and what it needs."""
        return (
            *self.loading(draft),
            *several_groups(draft, "TensorRT-LLM"),
            *_vocabulary(draft),
            *float_mix(draft),
        )

    def extra_files(self, pair: LaunchPair) -> dict[str, str]:
        """Return the YAML file that the launch line names."""
        config: dict[str, Any] = {"dtype": pair.dtype} if pair.dtype else {}
        config |= {
            "disable_overlap_scheduler": True,
            "speculative_config": {
                "decoding_type": DECODING_TYPE,
                "max_draft_len": pair.num_speculative_tokens,
                "speculative_model": str(pair.draft),
            },
        }
        note = f"# Older versions of TensorRT-LLM spell the decoding_type {OLD_DECODING_TYPE}.\n"
        return {CONFIG_FILE: note + yaml.safe_dump(config, sort_keys=False)}


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft)
    if unequal:
        yield Finding(
            "warn",
            f"{unequal}: TensorRT-LLM does not say what it makes of that. Export with --pad-vocab, "
            "which pads the draft's.",
        )
