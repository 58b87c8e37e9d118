"""Check from the files of a target and a draft whether they fit; no model is loaded.

Tokens are compared by id: two vocabularies of one size may still mean different things. One fault
does not show in files: embedding rows that were permuted under an unchanged tokenizer. The
acceptance then collapses, and the evaluation raises an alarm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint, require_tokenizer
from quantdraft.checkpoints.configs import read_generation_config
from quantdraft.checkpoints.dense_view import dense_view, says_cache, stored_modules
from quantdraft.checkpoints.frequencies import frequencies_note
from quantdraft.checkpoints.vocabulary import Vocabulary, read_vocabulary
from quantdraft.checkpoints.weights import FLOAT_DTYPES, TensorInfo
from quantdraft.errors import PairingError

Level = Literal["error", "warning", "info"]

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHAPES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "head_dim": "head size",
    "intermediate_size": "MLP size",
}
# A short text with what tokenizers split differently: digits, capitals, spaces, other scripts.
_PROBE = "def f(x1):\n    return 1234567 + HTTPServer2  # naïve “quotes”, 日本語\n\n\t\tend"


@dataclass(frozen=True, slots=True)
class PairingFinding:
    """One line of `quantdraft check`. `code` is stable; the message says what to do."""

    code: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class _Side:
    """The facts in one model's files. `config` is the language model's own part."""

    checkpoint: Checkpoint
    config: dict[str, Any]
    dense: dict[str, TensorInfo]  # the float tensors that its files stand for
    special_token_ids: dict[str, tuple[int, ...]]
    vocabulary: Vocabulary

    @property
    def tokens(self) -> dict[int, str]:
        """What each token id means."""
        return self.vocabulary.tokens

    @property
    def model_type(self) -> str:
        """Family and generation, as transformers names them."""
        return str(self.checkpoint.config.get("model_type", "unknown"))

    @property
    def float_types(self) -> frozenset[str]:
        """Float types of what is not quantized, as safetensors spells them; scales are left out."""
        stored = self.checkpoint.tensors
        return FLOAT_DTYPES & {stored[name].dtype for name in self.dense if name in stored}

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights, however they are packed; scales are none of them."""
        return sum(math.prod(tensor.shape) for tensor in self.dense.values())


def check_pairing(target_path: Path, draft_path: Path) -> tuple[PairingFinding, ...]:
    """Compare a target with a draft: vocabulary, special tokens, family, size, shapes, float types.

    Raises CheckpointError when one of the directories holds no config, tokenizer or weights.
    """
    target, draft = _read_side(target_path), _read_side(draft_path)
    findings = (
        *_compare_tokens(target, draft),
        *_compare_splitting(target, draft),
        *_compare_embeddings(target, draft),
        *_compare_special_tokens(target, draft),
        *_compare_families(target, draft),
        *_compare_sizes(target, draft),
        *_compare_float_types(target, draft),
        *_compare_context(target, draft),
        *_list_formats(target, draft),
        *_rotary_notes(target, draft),
        *_side_by_side(target, draft),
    )
    order: tuple[Level, ...] = ("error", "warning", "info")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.level)))


def is_compatible(findings: Iterable[PairingFinding]) -> bool:
    """Return True when no finding is an error; a reader judges the warnings."""
    return all(finding.level != "error" for finding in findings)


def require_compatible(target_path: Path, draft_path: Path) -> tuple[PairingFinding, ...]:
    """Return the findings of a pair without errors; raise PairingError with the first error."""
    findings = check_pairing(target_path, draft_path)
    for finding in findings:
        if finding.level == "error":
            raise PairingError(finding.message)
    return findings


def _warning(code: str, message: str) -> PairingFinding:
    return PairingFinding(code, "warning", message)


def _info(code: str, message: str) -> PairingFinding:
    return PairingFinding(code, "info", message)


def _compare_tokens(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    shared = target.tokens.keys() & draft.tokens.keys()
    different = sorted(id_ for id_ in shared if target.tokens[id_] != draft.tokens[id_])
    if different:
        yield _tokens_finding(target, draft, different, len(shared))
    else:
        message = f"all {len(shared)} shared token ids mean the same token."
        yield _info("vocabulary-equal", message)
    yield from _compare_one_side(target, draft, "target", "the draft can never propose them")
    yield from _compare_one_side(draft, target, "draft", "the target never accepts them")


def _tokens_finding(target: _Side, draft: _Side, ids: list[int], num_shared: int) -> PairingFinding:
    example = (
        f"id {ids[0]} is {target.tokens[ids[0]]!r} in target '{target.checkpoint.path}' and "
        f"{draft.tokens[ids[0]]!r} in draft '{draft.checkpoint.path}'"
    )
    if set(ids) <= target.vocabulary.added_ids & draft.vocabulary.added_ids:
        # Later generations of a family give names to tokens that earlier ones reserved.
        return _warning(
            "special-tokens-renamed",
            f"{len(ids)} special tokens have other names: {example}. Text is not affected; check "
            "that both chat templates write the same tokens.",
        )
    return PairingFinding(
        "vocabulary-mismatch",
        "error",
        f"{len(ids)} of {num_shared} token ids mean different tokens: {example}. "
        "Use a draft trained with the target's tokenizer.",
    )


def _compare_one_side(
    side: _Side, other: _Side, name: str, effect: str
) -> Iterator[PairingFinding]:
    extra = sorted(side.tokens.keys() - other.tokens.keys())
    if extra:
        yield _warning(
            f"vocabulary-{name}-only",
            f"{len(extra)} tokens exist only in the {name} (first: id {extra[0]}, "
            f"{side.tokens[extra[0]]!r}): {effect}. Harmless while the traffic has none of them.",
        )


def _compare_splitting(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    """Compare how a sample text is split: equal ids with other merges give other sequences."""
    if target.tokens != draft.tokens:
        return
    if target.vocabulary.encode(_PROBE) != draft.vocabulary.encode(_PROBE):
        yield _warning(
            "tokenization-differs",
            "the tokenizers have one vocabulary but split or frame a sample text differently: the "
            "draft may have been trained on other token sequences. Compare both tokenizer.json.",
        )


def _compare_embeddings(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    for name, side in (("target", target), ("draft", draft)):
        yield from _check_embedding(name, side)
    ours, theirs = target.config.get("vocab_size"), draft.config.get("vocab_size")
    if ours and theirs and ours != theirs:
        yield _warning(
            "vocab-size",
            f"vocab_size is {ours} in the target and {theirs} in the draft. vLLM demands equal "
            "sizes for a draft model and SGLang may corrupt tokens: pad the smaller embedding and "
            f"head to {max(ours, theirs)} rows before serving.",
        )


def _check_embedding(name: str, side: _Side) -> Iterator[PairingFinding]:
    rows = side.config.get("vocab_size")
    if rows is None or not side.tokens:
        return
    highest = max(side.tokens)
    if highest >= rows:
        yield _warning(
            f"{name}-embedding-too-small",
            f"the {name}'s tokenizer has ids up to {highest}, its embedding {rows} rows: ids from "
            f"{rows} on cannot be embedded. Is the tokenizer the one it was trained with?",
        )
    elif rows > highest + 1:
        yield _info(
            f"{name}-embedding-padded",
            f"the {name}'s embedding is padded: {rows} rows for {highest + 1} token ids.",
        )


def _compare_special_tokens(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    for key in _SPECIAL_TOKENS:
        ours, theirs = target.special_token_ids[key], draft.special_token_ids[key]
        if ours == theirs:
            continue
        # Only the end token decides which tokens exist; padding is never part of the text.
        level: Level = "info" if key == "pad_token_id" else "warning"
        yield PairingFinding(
            key.replace("_token_id", "-token"),
            level,
            f"{key} is {_ids_text(ours)} in the target and {_ids_text(theirs)} in the draft. The "
            "target's is used; copy the target's generation_config.json if the draft agrees.",
        )


def _compare_families(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    if target.model_type == draft.model_type:
        yield _info("family", f"both are of model type {target.model_type!r}.")
        return
    yield _warning(
        "family",
        f"target is of model type {target.model_type!r}, draft of {draft.model_type!r}: another "
        "family or generation, trained on other data. Expect lower acceptance, and measure it.",
    )


def _compare_sizes(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    ratio = target.num_parameters / max(1, draft.num_parameters)
    sizes = (
        f"target {target.num_parameters / 1e6:,.1f}M, draft {draft.num_parameters / 1e6:,.1f}M "
        f"parameters, {ratio:.1f} to 1"
    )
    if ratio <= 1:
        yield _warning("size-ratio", f"{sizes}. The draft is not smaller; were they swapped?")
    else:
        yield _info("size-ratio", f"{sizes}. Usual are 10 to 30.")


def _compare_float_types(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    ours, theirs = target.float_types, draft.float_types
    shown = f"stored float types: target {_join_names(ours)}, draft {_join_names(theirs)}"
    if {"F16", "BF16"} <= ours | theirs:
        yield _warning(
            "float-types",
            f"{shown}. vLLM runs the draft in the target's type, and a bfloat16 model forced to "
            "float16 can be silently never accepted. Store both in one type.",
        )
    else:
        yield _info("float-types", f"{shown}.")


def _compare_context(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    ours = target.config.get("max_position_embeddings")
    theirs = draft.config.get("max_position_embeddings")
    if ours and theirs and theirs < ours:
        yield _warning(
            "context-length",
            f"the draft knows {theirs} positions, the target {ours}: beyond {theirs} tokens "
            "speculation does not work. Limit the engine's max_model_len, or the traffic.",
        )


def _rotary_notes(*sides: _Side) -> Iterator[PairingFinding]:
    for side in sides:
        note = frequencies_note(side.checkpoint.name, side.config)
        if note is not None:
            yield _warning("rotary-frequencies", note)


def _list_formats(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    """Say which formats the files hold: what replay dequantizes, and whether it rounds inputs."""
    for word, side in (("target", target), ("draft", draft)):
        modules = stored_modules(side.checkpoint)
        found = Counter((each.fmt.library, each.fmt.name, each.fmt.activations) for each in modules)
        rows = [
            f"{number} {'layer' if number == 1 else 'layers'} in {name} by {library}"
            + ("" if inputs is None else f", inputs rounded to {inputs}")
            for (library, name, inputs), number in found.items()
        ]
        if says_cache(side.checkpoint.quantization):
            rows.append("keys and values in a quantized cache")
        if rows:
            yield _info(f"{word}-formats", f"the {word} is quantized: {'; '.join(rows)}.")


def _side_by_side(target: _Side, draft: _Side) -> Iterator[PairingFinding]:
    rows = [
        f"{word} {target.config[key]} / {draft.config[key]}"
        for key, word in _SHAPES.items()
        if target.config.get(key) is not None and draft.config.get(key) is not None
    ]
    if rows:
        yield _info("shapes", f"target / draft: {', '.join(rows)}.")


def _join_names(values: Iterable[str]) -> str:
    return "+".join(sorted(values)) or "none"


def _ids_text(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids)) or "not set"


def _read_side(path: Path) -> _Side:
    checkpoint = open_checkpoint(path)
    require_tokenizer(checkpoint)
    return _Side(
        checkpoint=checkpoint,
        config=checkpoint.text_config,
        dense=dense_view(checkpoint),
        special_token_ids=_special_token_ids(checkpoint),
        vocabulary=read_vocabulary(path),
    )


def _special_token_ids(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return ids by config key: from the generation config where it has them, as engines do."""
    generation = read_generation_config(checkpoint.path)
    config = checkpoint.config | checkpoint.text_config
    found = {key: generation.get(key, config.get(key)) for key in _SPECIAL_TOKENS}
    return {
        key: tuple(sorted(ids if isinstance(ids, list) else [ids])) if ids is not None else ()
        for key, ids in found.items()
    }
