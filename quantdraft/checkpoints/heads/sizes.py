"""Whether the tensors of a head have the shapes that its config gives, each of them.

A head has no class in transformers that would miss a tensor, so the layers are looked through
here: what vLLM 0.32 and SGLang build for EAGLE-3, DFlash and DSpark heads of ordinary attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from quantdraft.checkpoints.heads.captures import (
    EAGLE3_LAYERS,
    captured_layers,
    mask_token,
    num_captured,
    reads_no_layers,
)
from quantdraft.checkpoints.heads.families import PREFIX
from quantdraft.checkpoints.heads.head import DraftHead
from quantdraft.checkpoints.stored_formats import HEAD

LAYER = r"((?:.*\.)?(?:midlayer|layers\.\d+))\."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# A module is there by its weight, in floats or as any library packs it.
WEIGHTS = ("weight", "weight_packed", "qweight")
Shape = tuple[int | None, ...]  # None: any


def size_problems(head: DraftHead) -> Iterator[str]:
    """Yield the tensors that are not there, or not in the shape that the config gives."""
    yield from _vocabulary_problems(head)
    if head.family.name == "mtp":
        return
    yield from _mask_problems(head)
    captured = captured_layers(head.config)
    problem = captured.problem(head.config.get("num_target_layers")) if captured else None
    yield from [problem] if problem else _fc_problems(head)
    yield from _layer_problems(head)


def _vocabulary_problems(head: DraftHead) -> Iterator[str]:
    draft, whole = head.vocab_size, head.target_vocab_size
    if not whole:
        return
    field = "draft_vocab_size" if head.has_draft_vocabulary else "vocab_size"
    if draft > whole:
        yield f"draft_vocab_size is {draft}, above vocab_size, {whole}"
    if draft < whole and not head.has_own_head:
        yield (
            f"draft_vocab_size is {draft}, vocab_size {whole}, and there is no '{HEAD}.weight': "
            "the target's head has rows for every id, not for these"
        )
    for name, info in head.tensors.items():
        is_head = re.fullmatch(rf"{PREFIX}({HEAD}|shared_head\.head)\.(weight|weight_packed)", name)
        if is_head and info.shape[:1] != (draft,):
            yield f"{name!r} has {info.shape[0]} rows, and {field} is {draft}"
        is_table = re.fullmatch(PREFIX + r"embed_tokens\.weight", name)
        if is_table and info.shape[:1] != (whole,):
            yield f"{name!r} has {info.shape[0]} rows, and vocab_size is {whole}"


def _mask_problems(head: DraftHead) -> Iterator[str]:
    found, rows = mask_token(head.config), head.target_vocab_size
    if found is None or not rows:
        return
    field, token = found
    if type(token) is not int or not 0 <= token < rows:
        yield f"{field} is {token!r}, and vocab_size is {rows}: the id is of no row"


def _fc_problems(head: DraftHead) -> Iterator[str]:
    if reads_no_layers(head.config):
        return
    config = head.layer_config
    hidden = int(config.get("hidden_size") or 0)
    width = int(head.config.get("target_hidden_size") or config.get("target_hidden_size") or hidden)
    by_default = int(config.get("num_hidden_layers") or 0)
    number, said = num_captured(
        head.config, EAGLE3_LAYERS if head.family.name == "eagle3" else by_default
    )
    for name, info in head.tensors.items():
        if re.fullmatch(PREFIX + r"fc\.weight", name) and hidden and number:
            expected = (hidden, number * width)
            if info.shape != expected:
                yield (
                    f"{name!r} has the shape {list(info.shape)}, not {list(expected)}: it takes "
                    f"the outputs of {number} layers ({said}) of {width} values each"
                )


def _layer_problems(head: DraftHead) -> Iterator[str]:
    config = head.layer_config
    layers = sorted({m.group(1) for name in head.tensors if (m := re.match(LAYER, name))})
    number = config.get("num_hidden_layers")
    if number and len(layers) != number:
        yield f"num_hidden_layers is {number}, and the tensors are of {len(layers)} layers"
        return
    is_latent = any("kv_a_proj" in name for name in head.tensors)  # its names are others
    for layer in layers:
        own = {n.removeprefix(f"{layer}."): n for n in head.tensors if n.startswith(f"{layer}.")}
        for module in _modules(own, is_latent, _norms(head, is_first=layer == layers[0])):
            if not any(f"{module}.{weight}" in own for weight in WEIGHTS):
                yield f"there is no '{layer}.{module}.weight'"
        yield from _wrong_shapes(head, layer, is_latent)


def _norms(head: DraftHead, *, is_first: bool) -> tuple[str, ...]:
    """Return the norms of a layer. EAGLE-3's first takes the embedding and the features apart."""
    if head.family.name == "eagle3":
        own = ("input_layernorm", "hidden_norm") if is_first else ()
        return (*own, "post_attention_layernorm")
    return ("input_layernorm", "post_attention_layernorm")


def _modules(own: Mapping[str, str], is_latent: bool, norms: tuple[str, ...]) -> Iterator[str]:
    """Yield the modules that a layer has to have; experts have names of their own."""
    if not is_latent and any(".k_proj." in f".{name}" for name in own):
        yield from (f"self_attn.{name}" for name in ATTENTION)
    if any(name.startswith(tuple(f"mlp.{each}." for each in MLP)) for name in own):
        yield from (f"mlp.{name}" for name in MLP)
    yield from norms


def _wrong_shapes(head: DraftHead, layer: str, is_latent: bool) -> Iterator[str]:
    expected = _layer_shapes(head, is_latent)
    for module, shape in expected.items():
        info = head.tensors.get(f"{layer}.{module}.weight")
        if info is None or (len(info.shape) == len(shape) and _agree(info.shape, shape)):
            continue
        wanted = [("any" if size is None else size) for size in shape]
        yield (
            f"'{layer}.{module}.weight' has the shape {list(info.shape)}, and the config's sizes "
            f"give {wanted}"
        )


def _agree(found: tuple[int, ...], expected: Shape) -> bool:
    return all(size in (None, own) for own, size in zip(found, expected, strict=True))


def _layer_shapes(head: DraftHead, is_latent: bool) -> dict[str, Shape]:
    """Return the shapes of a layer's modules, as far as the config gives them."""
    config = head.layer_config
    hidden, inter = config.get("hidden_size"), config.get("intermediate_size")
    inter = inter if isinstance(inter, int) else None
    shapes: dict[str, Shape] = {
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm", "hidden_norm"), (hidden,)),
    }
    heads = config.get("num_attention_heads")
    if is_latent or not hidden or not heads:
        return shapes
    size = config.get("head_dim") or hidden // heads
    kv_rows = (config.get("num_key_value_heads") or heads) * size
    rows: dict[str, Shape] = {
        "self_attn.q_proj": (heads * size, None),
        "self_attn.k_proj": (kv_rows, None),
        "self_attn.v_proj": (kv_rows, None),
        "self_attn.o_proj": (hidden, heads * size),
    }
    return shapes | rows
