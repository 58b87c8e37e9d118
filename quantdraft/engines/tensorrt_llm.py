"""TensorRT-LLM: a YAML file for `trtllm-serve`, PyTorch backend.

It needs a GPU and is not run here. Every key below is a field in NVIDIA/TensorRT-LLM,
tensorrt_llm/llmapi/llm_args.py, at commit 0004396; `--config` and the overlap scheduler are from
docs/source/features/speculative-decoding.md at commit 04c8822.
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
    FP4,
    FP8,
    INTEGERS,
    MODELOPT,
    NO,
    YES,
    Support,
    SupportTable,
    stored_names,
)

CONFIG_FILE = "trtllm.yaml"
# The config's type is a union that is told apart by this word, and refuses any other.
DECODING_TYPE = "Draft_Target"
OLD_DECODING_TYPE = "DraftTarget"
BY_MODELOPT = Support("part", "its own checkpoints, by ModelOpt")
LOADS = SupportTable(
    dict.fromkeys((*INTEGERS, *BITSANDBYTES), NO)
    | dict.fromkeys((*FP8, "gptq:int4"), Support("part"))
    | dict.fromkeys((*FP4, "awq:int4"), BY_MODELOPT)
    | dict.fromkeys((*MODELOPT, "fp8:fp8-block"), Support("part"))
    | dict.fromkeys(("fp8:fp8", "fp8:fp8-static", "fbgemm_fp8:fp8"), NO)
    | {"dense": YES}
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
            *(_modelopt(draft) or self.loading(draft)),
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


def _modelopt(draft: Draft) -> list[Finding]:
    """Return a refusal for a format that is read from ModelOpt's checkpoints, and is another's."""
    quantization = draft.quantization
    is_modelopts = quantization.get("quant_method") == "modelopt"
    if is_modelopts or LOADS.of_checkpoint(quantization) != BY_MODELOPT:
        return []
    return [
        Finding(
            "refuse",
            f"TensorRT-LLM loads {', '.join(stored_names(quantization))} from ModelOpt's own "
            "checkpoints alone: quantize the draft with ModelOpt.",
        )
    ]


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft)
    if unequal:
        yield Finding(
            "warn",
            f"{unequal}: TensorRT-LLM does not say what it makes of that. Export with --pad-vocab, "
            "which pads the draft's.",
        )
