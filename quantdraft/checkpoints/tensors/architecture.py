"""Refuse what cannot be measured as a causal language model, by its config.

Replay reads a whole text at once and several texts together: no token may see a later one, and no
text another one. Speculation takes tokens back: the state behind them must be transformers' cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantdraft.errors import CheckpointError

# Read in both directions, unless the config makes a decoder of them.
ENCODERS = {
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
# cpmant reads its prompt in both directions; transformers' doge hides no later token from a text
# without a mask.
OTHER_ORDER = {"cpmant", "diffusion_gemma", "doge", "reformer", "xlm", "xlnet"}
# Their state is in classes of their own, which do not step back; xlstm's mixes a batch's texts.
# blt's has a part for each of its models; deepseek_v4's compresses keys of several tokens into
# one; git's counts its picture among them; moshi's forgets tokens that it reads
# without a cache; openai-gpt has none.
OWN_STATE = {
    *("blt", "deepseek_v4", "git", "minimax", "moshi", "openai-gpt", "recurrent_gemma"),
    *("rwkv", "xlstm"),
}
# Heads of Gemma 4: they read their target's hidden states and its keys.
OF_A_TARGET = {"gemma4_assistant", "gemma4_unified_assistant"}
# Whose modules ask transformers' cache for the length of some layer with attention.
HYBRIDS = {
    "bamba",
    "granitemoehybrid",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
}
WITHOUT_KEYS = {"linear_attention", "mamba", "mlp", "moe"}
HELP = "Use a causal language model that predicts the next token from the ones before it."


def require_causal(config: Any, path: Path) -> None:
    """Raise CheckpointError for a transformers config of no causal language model."""
    why = _fault_of_parts(config) or _fault(config)
    if why is not None:
        raise CheckpointError(f"'{path}' cannot be measured: {why}")


def _fault_of_parts(config: Any) -> str | None:
    """Return why the config's models are not one of text, or None; no text config is needed."""
    kind = config.model_type
    if config.is_encoder_decoder:  # some have two models of text, and then no text config
        return f"{kind} has an encoder and a decoder. {HELP}"
    if isinstance(config.get_text_config(), dict):
        return f"its config.json has a 'text_config', and a {kind} has none. {HELP}"
    return None


def _fault(config: Any) -> str | None:
    text, kind = config.get_text_config(), config.model_type
    kinds = {kind, text.model_type}
    if kinds & ENCODERS and not getattr(config, "is_decoder", False):
        return f"{kind} reads in both directions. {HELP}"
    if kinds & OTHER_ORDER:
        return f"{kind} does not predict tokens one after another. {HELP}"
    if kinds & OF_A_TARGET:
        return (
            f"{kind} reads the hidden states and the keys of its target, and does not run without "
            f"it. {HELP}"
        )
    if getattr(type(config), "is_encoder_decoder", False) or kind == "trocr":
        return (
            f"a decoder of {kind} counts the positions of its tokens by its own cache, so that "
            f"texts of different lengths cannot be read together. {HELP}"
        )
    return _fault_of_state(text, kind, kinds) or _fault_of_library(config, text)


def _fault_of_state(text: Any, kind: str, kinds: set[str]) -> str | None:
    """Return why transformers' cache of the config's layers is of no use, or None."""
    if kinds & HYBRIDS and not _attention_layers(text):
        return (
            f"transformers cannot run {kind} without a layer of attention. Use a model with one, "
            "or one of another architecture."
        )
    if kinds & OWN_STATE:
        return (
            f"transformers keeps the state of {kind} in a form that cannot step back, as "
            "speculation must. Use a model of another architecture."
        )
    return None


def _attention_layers(text: Any) -> list[str]:
    """Return the kinds of a hybrid's layers that keep keys and values."""
    kinds = getattr(text, "layers_block_type", None) or getattr(text, "layer_types", None) or ()
    return [each for each in kinds if each not in WITHOUT_KEYS]


def _fault_of_names(config: Any) -> str | None:
    """Return why 'model_type' and 'architectures' are of two models, or None.

    transformers goes by the first, engines by the second.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    own, others = NAMES.get(config.model_type), set(NAMES.values())
    for name in config.architectures or ():
        if own is not None and name != own and name in others - {own}:
            return (
                f"its config.json contradicts itself: its model_type {config.model_type!r} is "
                f"transformers' {own}, its architectures name {name}, which engines run. Keep the "
                "one that it was trained as."
            )
    return None


def _fault_of_library(config: Any, text: Any) -> str | None:
    """Return why transformers' class for causal language models does not load the config."""
    from transformers import AutoModelForCausalLM

    kind = config.model_type
    if type(config) in AutoModelForCausalLM._model_mapping:
        return _fault_of_names(config)
    if text is not config and type(text) in AutoModelForCausalLM._model_mapping:
        return (
            f"transformers loads {kind} with its other senses alone. Save its language model "
            f"({text.model_type}) as a checkpoint of its own."
        )
    return f"transformers has no causal language model for {kind}. {HELP}"
