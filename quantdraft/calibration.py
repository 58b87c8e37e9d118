"""What a calibrated recipe sees: the target's own responses, chosen by seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoint import Checkpoint
from quantdraft.errors import RecipeError, TrafficError
from quantdraft.recipe import Recipe
from quantdraft.traffic import Response, read_traffic


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """The token ids to calibrate on, and where they came from."""

    samples: tuple[tuple[int, ...], ...] = ()
    record: dict[str, Any] | None = None


def calibration_data(recipe: Recipe, source: Checkpoint, path: Path | None) -> CalibrationData:
    """A seeded choice of the traffic's responses, each behind its prompt, cut to length.

    Empty for a data-free recipe. Raises RecipeError where a calibrated one got no traffic.
    """
    settings = recipe.calibration
    if settings is None:
        return CalibrationData()
    if path is None:
        raise RecipeError(
            f"recipe {recipe.name!r} is calibrated on the target's own responses and none were "
            "given. Make them with `quantdraft capture --target T --prompts P --output "
            "traffic.jsonl` and add --calibration traffic.jsonl."
        )
    from quantdraft.models import load_tokenizer

    traffic = read_traffic(path, load_tokenizer(source.path))
    order = list(range(len(traffic.responses)))
    random.Random(settings.seed).shuffle(order)
    chosen = [traffic.responses[i] for i in sorted(order[: settings.num_samples])]
    samples = tuple(_sample(response, settings.max_seq_length) for response in chosen)
    _require_known_ids(path, source, chosen)
    record = {
        "path": str(path),
        "sha256": traffic.sha256,
        "seed": settings.seed,
        "num_samples": len(samples),
        "num_tokens": sum(len(sample) for sample in samples),
        "prompt_ids": [response.prompt_id for response in chosen],
    }
    return CalibrationData(samples, record)


def _sample(response: Response, max_length: int) -> tuple[int, ...]:
    return (response.prompt_token_ids + response.response_token_ids)[:max_length]


def _require_known_ids(path: Path, source: Checkpoint, responses: list[Response]) -> None:
    vocab_size = int(source.text_config["vocab_size"])
    for response in responses:
        largest = max(response.prompt_token_ids + response.response_token_ids, default=0)
        if largest >= vocab_size:
            raise TrafficError(
                f"'{path}': prompt {response.prompt_id!r} holds token id {largest}, beyond the "
                f"draft's vocabulary of {vocab_size}. Capture it with a target that shares the "
                "draft's tokenizer."
            )
    if not responses:
        raise TrafficError(f"'{path}' holds no responses to calibrate on.")
