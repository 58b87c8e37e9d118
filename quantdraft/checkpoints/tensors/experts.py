"""Load mixtures of experts with a Linear for each projection of each expert.

transformers stacks the experts of a layer in one tensor on load; there a quantized weight has no
place, and no hook rounds an expert's inputs. Within `separate_experts` its models are built, and
their files read, with the experts one by one, under the names that the files have; what is
computed stays the same. Experts that a file holds stacked are left to the library.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantdraft.checkpoints.parts import has_separate_experts
from quantdraft.errors import CheckpointError

# Conversions that only stack: undone by not stacking.
_STACKING = frozenset({"MergeModulelist", "Concatenate"})


class SeparateExperts(nn.Module):
    """The routed experts of a layer, one by one: children '0', '1', …, each with its Linears.

    It has the forward pass of the class of transformers that it stands for, `stacked`.
    """

    stacked: ClassVar[type[nn.Module]]
    sees_all_tokens: ClassVar[bool] = False  # while calibrating: every expert learns of every token

    def __init__(self, config: Any, *others: Any, **options: Any) -> None:
        super().__init__()
        with torch.device("meta"):
            template: Any = self.stacked(config, *others, **options)
        _require_known(template)
        up = template.gate_up_proj if template.has_gate else template.up_proj
        self.num_experts = len(up)
        sides = (2, 1) if template.is_transposed else (1, 2)
        width = up.shape[sides[0]] // (2 if template.has_gate else 1)
        hidden = up.shape[sides[1]]
        for index in range(self.num_experts):
            expert = nn.Module()
            for name in ("gate_proj", "up_proj") if template.has_gate else ("up_proj",):
                expert.add_module(name, nn.Linear(hidden, width, bias=template.has_bias))
            expert.add_module("down_proj", nn.Linear(width, hidden, bias=template.has_bias))
            self.add_module(str(index), expert)
        for name in [name for name, _ in template.named_parameters()]:
            delattr(template, name)
        self._is_hf_initialized = True  # transformers would fill the stacked tensors
        self.__dict__["template"] = template  # no module of the model: it has the activation alone

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of each token's experts.

        hidden_states: (tokens, hidden)
        top_k_index:   (tokens, k) int64, which experts
        top_k_weights: (tokens, k)
        """
        total = torch.zeros_like(hidden_states)
        used: Iterable[int] = range(self.num_experts)
        if not self.sees_all_tokens:
            used = sorted(set(top_k_index.flatten().tolist()))
        for index in used:
            tokens, places = torch.where(top_k_index == index)
            if self.sees_all_tokens:
                outputs = self._expert(index, hidden_states)[tokens]
            else:
                outputs = self._expert(index, hidden_states[tokens])
            weighted = outputs * top_k_weights[tokens, places, None]
            total.index_add_(0, tokens, weighted.to(total.dtype))
        return total

    def _expert(self, index: int, inputs: Tensor) -> Tensor:
        expert: Any = self._modules[str(index)]
        template = self.__dict__["template"]
        up: Tensor = expert.up_proj(inputs)
        if not template.has_gate:
            return self._down(expert, template.act_fn(up))
        halves = [expert.gate_proj(inputs), up]
        if template.is_concatenated:
            joined = torch.cat(halves, dim=-1)
        else:  # one of the gate, one of the other, in turns
            joined = torch.stack(halves, dim=-1).flatten(-2)
        return self._down(expert, template._apply_gate(joined))

    def _down(self, expert: Any, inner: Tensor) -> Tensor:
        outputs: Tensor = expert.down_proj(inner)
        return outputs


@contextmanager
def separate_experts(config: Any, tensors: Iterable[str]) -> Iterator[None]:
    """Let transformers load experts one by one while the block runs, where the files hold them so.

    tensors: the names that the files hold
    Raises CheckpointError where the library stacks them in a way that is not known here.
    """
    if not has_separate_experts(tensors):
        yield
        return
    with ExitStack() as stack:
        for modeling in _modeling_modules(config):
            for stacked in _stacked_classes(modeling):
                stack.enter_context(_replaced_class(modeling, stacked))
        for key in _conversion_keys(config):
            stack.enter_context(_replaced_conversions(key))
        yield


@contextmanager
def every_token_to_every_expert() -> Iterator[None]:
    """Let each expert compute all tokens, so that calibration reaches the rarely used ones."""
    SeparateExperts.sees_all_tokens = True
    try:
        yield
    finally:
        SeparateExperts.sees_all_tokens = False


def _require_known(template: Any) -> None:
    names = {name for name, _ in template.named_parameters()}
    known = {"gate_up_proj", "up_proj", "down_proj"}
    known |= {f"{name}_bias" for name in known}
    if names - known or "down_proj" not in names or list(template.buffers()):
        raise CheckpointError(
            f"transformers' {type(template).__name__} holds {', '.join(sorted(names))}: experts "
            "that are quantized one by one are not read for this architecture."
        )


def _modeling_modules(config: Any) -> list[Any]:
    """Return the library's modules with the classes of a config's model and of its text model."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    found = {}
    for each in (config, config.get_text_config()):
        for mapping in (AutoModelForCausalLM._model_mapping, MODEL_MAPPING):
            if type(each) in mapping:
                name = mapping[type(each)].__module__
                found[name] = sys.modules[name]
    return list(found.values())


def _stacked_classes(modeling: Any) -> list[type[nn.Module]]:
    """Return a module's classes that compute stacked experts: transformers marks them."""
    return [
        each
        for each in vars(modeling).values()
        if isinstance(each, type) and issubclass(each, nn.Module) and hasattr(each, "_apply_gate")
    ]


@contextmanager
def _replaced_class(modeling: Any, stacked: type[nn.Module]) -> Iterator[None]:
    """Put a class in the place of a library's module's own.

    The library's `register_patch_mapping` would import all of its modules, and what they need.
    """
    name = stacked.__name__
    setattr(modeling, name, type(f"Separate{name}", (SeparateExperts,), {"stacked": stacked}))
    try:
        yield
    finally:
        setattr(modeling, name, stacked)


def _conversion_keys(config: Any) -> list[str]:
    """Return the keys under which the library may keep what it converts on load."""
    types = [config.model_type, config.get_text_config().model_type]
    return list(dict.fromkeys([*(config.architectures or ()), *types]))


@contextmanager
def _replaced_conversions(key: str) -> Iterator[None]:
    from transformers import conversion_mapping

    known = conversion_mapping.get_checkpoint_conversion_mapping(key)
    if known is None:
        yield
        return
    replaced = [each for one in known for each in _unstacked(one)]
    conversion_mapping.register_checkpoint_conversion_mapping(key, replaced, overwrite=True)
    try:
        yield
    finally:
        conversion_mapping.register_checkpoint_conversion_mapping(key, known, overwrite=True)
        conversion_mapping.USER_REGISTERED_MAPPINGS.discard(key)


def _unstacked(conversion: Any) -> list[Any]:
    """Return what reads the same tensors one by one: renames in place of a stacking conversion."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    targets = [re.sub(r".*\bexperts\.", "", t) for t in conversion.target_patterns]
    is_stacking = isinstance(conversion, WeightConverter) and any(
        re.search(r"\bexperts\.\*\.", source) for source in conversion.source_patterns
    )
    if not is_stacking:
        return [conversion]
    operations = {type(each).__name__ for each in conversion.operations}
    names = {"gate_up_proj": ["gate_proj", "up_proj"]}.get(targets[0], targets)
    if not operations <= _STACKING or len(names) != len(conversion.source_patterns):
        raise CheckpointError(
            f"transformers makes {', '.join(conversion.target_patterns)} by "
            f"{', '.join(sorted(operations))}: experts that are quantized one by one are not read "
            "for this architecture."
        )
    renames = []
    for source, name in zip(conversion.source_patterns, names, strict=True):
        stored = source.split("*.")[-1].removesuffix("$").removesuffix(".weight")
        if stored != name:
            renames.append(
                WeightRenaming(rf"\.experts\.(\d+)\.{re.escape(stored)}\.", rf".experts.\1.{name}.")
            )
    return renames
