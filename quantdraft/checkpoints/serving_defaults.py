"""What an engine takes from a target's directory unless it is told otherwise, and replay does not.

vLLM's server reads these sampling parameters from generation_config.json for requests that do not
set them (`--generation-config auto`, its default; `ModelConfig.get_diff_sampling_param`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from quantdraft.checkpoints.configs import GENERATION_FILE, read_generation_config
from quantdraft.checkpoints.pairing import PairingFinding
from quantdraft.common.documents import read_bounded, read_json_object

MAX_TEMPLATE_BYTES = 1 << 24
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # what vLLM uses without it
OPTIONS = {"temperature": "--temperature", "top_k": "--top-k", "top_p": "--top-p"}
SWITCH = "enable_thinking"


def serving_defaults(target_path: Path) -> Iterator[PairingFinding]:
    """Yield warnings for what vLLM would do by default that a replay of greedy text does not."""
    settings = read_generation_config(target_path)
    penalty = settings.get("repetition_penalty")
    if isinstance(penalty, (int, float)) and penalty != 1:
        yield PairingFinding(
            "repetition-penalty",
            "warning",
            f"'{target_path}': {GENERATION_FILE} has repetition_penalty {penalty}, which vLLM "
            "applies to every request that sets none: its text and acceptance are then others than "
            "replay's. Serve with --generation-config vllm, or send repetition_penalty 1.",
        )
    found = {
        name: value
        for name, neutral in NEUTRAL.items()
        if isinstance(value := settings.get(name), (int, float)) and value != neutral
    }
    if found.get("top_k") == -1:  # vLLM's other word for no limit
        del found["top_k"]
    if found:
        named = ", ".join(f"{name} {value}" for name, value in found.items())
        options = " ".join(f"{OPTIONS[name]} {found[name]}" for name in OPTIONS if name in found)
        yield PairingFinding(
            "sampling-defaults",
            "warning",
            f"'{target_path}': {GENERATION_FILE} has {named}, with which vLLM samples requests "
            "that do not say: capture as it is served"
            + (f" (`capture {options}`)" if options else "")
            + ", or serve with --generation-config vllm.",
        )
    if SWITCH in _chat_template(target_path):
        yield PairingFinding(
            "thinking",
            "warning",
            f"'{target_path}': its chat template has {SWITCH}, which decides the prompt's last "
            "tokens. Tell `capture` and `evaluate` what is served: --chat-template-kwargs "
            f"'{{\"{SWITCH}\": false}}' (or true).",
        )


def _chat_template(directory: Path) -> str:
    """Return the text of a tokenizer's chat templates; "" where it has none."""
    texts = []
    file = directory / "chat_template.jinja"
    if file.is_file():
        with contextlib.suppress(ValueError):  # whoever writes prompts by it says so
            texts.append(read_bounded(file, MAX_TEMPLATE_BYTES))
    config = directory / "tokenizer_config.json"
    if config.is_file():
        texts.append(str(read_json_object(config).get("chat_template") or ""))
    return "\n".join(texts)
