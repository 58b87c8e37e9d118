"""The two dictionaries of a record that are open: what pages and commands read of them.

A key that is not listed may hold anything: it is shown as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from quantdraft.record.terms import Amount, Count, K, Ratio

if TYPE_CHECKING:
    from pydantic import BaseModel

Text = str | None
Limit = Annotated[float, Ge(0), Le(1e6)]  # of a policy
Hashes = dict[str, str] | str | None
# What each key holds; a dictionary here stands for one there, in which the same holds.
Shape = Mapping[str, Any]

MODEL: Shape = {"name": Text, "path": Text, "revision": Text, "sha256": Hashes}
STEP: Shape = dict.fromkeys(
    (
        "attention_bytes",
        "mlp_bytes",
        "head_bytes",
        "embedding_row_bytes",
        "norms_bytes",
        "other_bytes",
        "kv_bytes_per_context_token",
        "weight_bytes",
        "step_bytes",
    ),
    Count,
)


@dataclass(frozen=True)
class FreeForm:
    """A dictionary with some known keys."""

    shape: Shape

    @cached_property
    def _model(self) -> type[BaseModel]:
        return _model_of("FreeForm", self.shape)

    def problems(self, value: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
        """Yield the known keys whose values cannot be used, with what is wrong with each."""
        from pydantic import ValidationError

        try:
            self._model.model_validate(value)
        except ValidationError as error:
            for each in error.errors():
                # Of a value that may be one of several, the last part names which was tried.
                place = [str(part) for part in each["loc"] if "[" not in str(part)]
                yield ".".join((name, *place)), each["msg"]


def _model_of(name: str, shape: Shape) -> type[BaseModel]:
    from pydantic import ConfigDict, create_model

    known: dict[str, Any] = {
        key: (_model_of(key, inner) | None, None) if isinstance(inner, Mapping) else (inner, None)
        for key, inner in shape.items()
    }
    made: type[BaseModel] = create_model(
        name, __config__=ConfigDict(extra="allow", strict=True), **known
    )
    return made


LEDGER = FreeForm(
    {
        "context_length": Count,
        "baseline": STEP,
        "candidate": STEP,
        "ceiling": Ratio,
        "num_speculative_tokens": K | None,
        "cost_ratio": Amount | None,
        "largest_speedup": Ratio | None,
        "min_speedup": Ratio,
        "can_pay": bool,
        "head_options": list[dict[str, str | bool | Count]],
        "head_advice": Text,
        "sentence": Text,
    }
)
PROVENANCE = FreeForm(
    {
        "command": Text,
        "compute_dtype": Text,
        "python": Text,
        "platform": Text,
        "cpu": Text,
        "device_name": Text,
        "num_cpus": Count | None,
        "gpu": {
            "capability": Text,
            "num_multiprocessors": Count,
            "memory_bytes": Count,
            "driver": Text,
            "cuda": Text,
            "cudnn": Count | None,
        },
        "versions": dict[str, str],
        "target": MODEL,
        "baseline": MODEL,
        "candidate": MODEL,
        "policy": dict[str, Limit],
        "seeds": dict[str, Count],
        "traffic": {
            "path": Text,
            "sha256": Text,
            "num_prompts": Count,
            "num_tokens": Count,
            "sampling": dict[str, Any] | None,
            "target": dict[str, Any] | None,
            "reading": {
                "formats": dict[str, Count],
                "num_lines": Count,
                "num_used": Count,
                "left_out": list[dict[str, Any]],
                "notes": list[str],
                "warnings": list[str],
            },
        },
    }
)
