"""transformers: assisted generation with a fixed k. It imports nothing of transformers itself.

What it loads was read from transformers 5.17 (quantizers/, integrations/finegrained_fp8.py); the
formats that recipes make were run with it on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantdraft.engines.engine import Engine, LaunchPair
from quantdraft.engines.findings import Draft, Finding, misnamed_scale, unequal_vocabulary
from quantdraft.engines.support import (
    FP4,
    GPTQ_ODD,
    MODELOPT,
    OTHER_LIBRARIES,
    OTHERS_FP8,
    USUAL,
    YES,
    Support,
    SupportTable,
)
from quantdraft.quantize.group_sizes import LOADED

_SNIPPET = '''\
"""Generate with a quantized draft: python launch.py "Your prompt"."""

import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Paths are relative to this script, which may be called from anywhere. TARGET=PATH python launch.py
# takes a target that lies elsewhere.
OTHER = os.environ.get("TARGET", "")
OTHER = os.path.abspath(OTHER) if os.path.exists(OTHER) else OTHER
os.chdir(os.path.dirname(os.path.abspath(__file__)))
TARGET = {target!r}
DRAFT = {draft!r}
NUM_SPECULATIVE_TOKENS = {k}

TARGET = OTHER or TARGET
if TARGET.startswith((".", "/")) and not os.path.exists(TARGET):
    sys.exit(f"launch.py: there is no target at {{os.path.abspath(TARGET)}}: set TARGET=PATH")

device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(TARGET)
target = AutoModelForCausalLM.from_pretrained(TARGET, dtype={dtype}).to(device)
draft = AutoModelForCausalLM.from_pretrained(DRAFT, dtype={dtype}).to(device)

# Assisted generation reads these from the draft. A constant k, never cut short by confidence.
draft.generation_config.num_assistant_tokens = NUM_SPECULATIVE_TOKENS
draft.generation_config.num_assistant_tokens_schedule = "constant"
draft.generation_config.assistant_confidence_threshold = 0.0

prompt = tokenizer(sys.argv[1], return_tensors="pt").to(device)
output = target.generate(
    **prompt, assistant_model=draft, do_sample={do_sample}, max_new_tokens=256
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
'''
LOADS = SupportTable(
    dict.fromkeys((*USUAL, *OTHERS_FP8), YES)
    | dict.fromkeys(MODELOPT, Support("no", "it has no reader for ModelOpt and drops the scales"))
    | dict.fromkeys(
        ("fp8:fp8", "fp8:fp8-static"),
        Support("part", "one scale per weight under its own names alone (weight_scale_inv)"),
    )
    | {"fbgemm_fp8:fp8": Support("part", "with fbgemm-gpu, from compute capability 9.0")}
    | dict.fromkeys((*FP4, "mxfp8"), Support("part", "unpacks the weights"))
    | dict.fromkeys(
        (*OTHER_LIBRARIES, *GPTQ_ODD), Support("yes", "needs gptqmodel and accelerate")
    ),
    group_sizes=LOADED["transformers"],
    kv_cache=Support("part", "rounds keys and values, and stores them in full"),
)


class Transformers(Engine):
    """The transformers library, told of an assistant."""

    name = "transformers"
    launch_file = "launch.py"
    loads = LOADS
    notes = (
        "Assisted generation takes one prompt at a time (batch 1).",
        "k is fixed here: by default transformers changes it while it runs and stops a proposal "
        "early by the draft's own confidence.",
    )

    def launch(self, pair: LaunchPair) -> str:
        """Return a Python script that generates with the target and the draft at a fixed k."""
        return _SNIPPET.format(
            target=pair.target,
            draft=str(pair.draft),
            k=pair.num_speculative_tokens,
            dtype=f"torch.{pair.dtype}" if pair.dtype else '"auto"',
            do_sample=pair.acceptance_rule not in {None, "greedy"},
        )

    def check(self, draft: Draft) -> tuple[Finding, ...]:
        """Return what transformers refuses, and where it is no evidence for speed."""
        return (
            *self.loading(draft),
            *_formats(draft),
            *(_no_blocks(draft) or misnamed_scale(draft, "weight_scale_inv", "transformers")),
            *_vocabulary(draft),
        )

    def launch_text(self, line: str, target: str) -> str:
        """Return the script itself."""
        return line


def _formats(draft: Draft) -> Iterator[Finding]:
    method = str(draft.quantization.get("quant_method", ""))
    if method == "compressed-tensors":
        yield Finding(
            "warn",
            "transformers unpacks compressed-tensors weights to the full float type at the first "
            "forward: the acceptance is the format's, the speed is not.",
        )
    if method == "gptq":
        yield Finding("warn", "transformers runs GPTQ through gptqmodel and optimum: install both.")


def _no_blocks(draft: Draft) -> list[Finding]:
    """Return a refusal of FP8 whose config names no blocks: transformers would take 128 by 128."""
    quantization = draft.quantization
    if quantization.get("quant_method") != "fp8" or "weight_block_size" in quantization:
        return []
    return [
        Finding(
            "refuse",
            "its FP8 config has no 'weight_block_size' (AutoFP8's and vLLM's has none), and "
            "transformers then reads scales of blocks of 128 by 128, which it does not have. Serve "
            "it with vLLM or SGLang, or make the draft with `apply --recipe fp8`.",
        )
    ]


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    unequal = unequal_vocabulary(draft)
    if unequal:
        yield Finding(
            "warn",
            f"{unequal}: pass both tokenizers to generate() and transformers translates between "
            "them, at a cost in acceptance. Or export with --pad-vocab, which pads the draft's.",
        )
