"""Choose the samples of a calibrated recipe: token ids, by seed, the same for every backend.

The default is the target's own responses, which the draft has to imitate; a file
of texts or a data set of the Hub is there to compare them with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.common.files import file_sha256
from quantdraft.errors import MissingPackageError, RecipeError, TrafficError
from quantdraft.quantize.recipe import Calibration, Recipe
from quantdraft.record.wording import counted
from quantdraft.traffic.jsonl import located_entries, pick_items
from quantdraft.traffic.parts import (
    HALF,
    Part,
    calibration_part,
    conversation_of,
    place_of,
    split_part,
)
from quantdraft.traffic.responses import ReadSettings, Response
from quantdraft.traffic.traffic import Traffic, read_traffic

# Texts taken from a data set before the choice: enough to choose from, little to download.
HUB_POOL = 16


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """The token ids to calibrate on, and where they came from."""

    samples: tuple[tuple[int, ...], ...] = ()
    record: dict[str, Any] | None = None
    note: str | None = None  # of traffic: which part of it was taken, and what is left to judge on


class _Sample(NamedTuple):
    name: str
    token_ids: tuple[int, ...]


class _Pool(NamedTuple):
    """All samples to choose from, what identifies them, and what to say of them."""

    samples: Sequence[_Sample]
    origin: dict[str, Any]
    note: str | None = None


class _Responses(Sequence[_Sample]):
    """Responses as samples, made when they are asked for: large traffic stays on the disk."""

    def __init__(self, responses: Sequence[Response]) -> None:
        self.responses = responses

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, at: Any) -> Any:
        response = self.responses[at]
        token_ids = response.prompt_token_ids + response.response_token_ids
        return _Sample(response.prompt_id, token_ids)


def calibration_data(
    recipe: Recipe, source: Checkpoint, path: Path | None, read: ReadSettings | None = None
) -> CalibrationData:
    """Return a seeded choice of samples, cut to length; empty for a data-free recipe.

    path: what `--calibration` gave: traffic, or for source 'file' the JSON lines.
    read: how a log is read
    Raises RecipeError where a calibrated recipe got nothing to calibrate on.
    """
    settings = recipe.calibration
    if settings is None:
        return CalibrationData()
    pool, origin, note = _read_pool(recipe, settings, source, path, read or ReadSettings())
    order = list(range(len(pool)))
    random.Random(settings.seed).shuffle(order)
    chosen = [pool[i] for i in sorted(order[: settings.num_samples])]
    samples = tuple(sample.token_ids[: settings.max_seq_length] for sample in chosen)
    _require_known_ids(str(origin.get("path") or origin.get("dataset")), source, chosen)
    record = origin | {
        "source": settings.source,
        "seed": settings.seed,
        "num_samples": len(samples),
        "num_tokens": sum(len(sample) for sample in samples),
        "prompt_ids": [sample.name for sample in chosen],
    }
    return CalibrationData(samples, record, note)


def taking_all(recipe: Recipe) -> Recipe:
    """Return a recipe that is calibrated on a file of its own, where it does not say its share."""
    settings = recipe.calibration
    if settings is None or settings.share is not None:
        return recipe
    return recipe.model_copy(update={"calibration": settings.model_copy(update={"share": 1.0})})


def _read_pool(
    recipe: Recipe,
    settings: Calibration,
    source: Checkpoint,
    path: Path | None,
    read: ReadSettings,
) -> _Pool:
    """Return all samples to choose from, and what identifies them."""
    from quantdraft.checkpoints.tensors.loading import load_tokenizer

    if settings.source == "hub":
        _require_consent(recipe, settings, path)
        return _Pool(*_read_hub(settings, load_tokenizer(source.path)))
    if settings.source == "file" and path is None and settings.path is not None:
        path = Path(settings.path)
    if path is None:
        raise RecipeError(_missing_text(recipe, settings))
    tokenizer = load_tokenizer(source.path)
    if settings.source == "file":
        return _Pool(*_read_texts(path, settings.column, tokenizer))
    return _part_of_traffic(settings, path, read_traffic(path, tokenizer, read))


def _part_of_traffic(settings: Calibration, path: Path, traffic: Traffic) -> _Pool:
    """Return the responses of the conversations that a recipe may see of a traffic.

    They are half of them, so that the same file is judged on by the other half; all of a file that
    `quantdraft traffic --split` wrote, and of one that holds a single conversation.
    """
    origin: dict[str, Any] = {"path": str(path), "sha256": traffic.sha256}
    if traffic.read_with:
        origin["read_with"] = traffic.read_with
    if traffic.reading is not None:
        origin["reading"] = traffic.reading.as_record()
    written = split_part(path, traffic.sha256) if settings.share is None else None
    share = 1.0 if written is not None else HALF if settings.share is None else settings.share
    part = None
    if share < 1:
        part = calibration_part(traffic.responses, share, traffic.sha256)
    responses = traffic.responses
    if part is not None:
        places = map(place_of, map(conversation_of, responses))
        kept = [at for at, place in enumerate(places) if part.holds(place)]
        responses = pick_items(responses, kept)
    if part is not None:
        origin["part"] = part.as_record()
    if written is not None:
        origin["split"] = written.as_record()
    is_all = part is None and settings.num_samples >= len(responses)
    return _Pool(_Responses(responses), origin, _part_note(path, part, written, is_all))


def _part_note(path: Path, part: Part | None, written: Part | None, is_all: bool) -> str | None:
    """Return what `evaluate` will be able to judge on; None where nothing needs to be known."""
    if part is not None:
        rest = part.num_in_file - part.num_conversations
        return (
            f"calibrated on {counted(part.num_conversations, 'conversation')} of '{path}'; the "
            f"other {rest:,} are left for `evaluate --traffic` of the same file. To take all: "
            "--set calibration.share=1."
        )
    if written is not None:
        return f"calibrated on '{path}', one part of a traffic: judge on its other parts."
    if is_all:
        return (
            f"all of '{path}' is calibrated on: `evaluate` refuses the file then. Judge on another."
        )
    return None


def _read_texts(path: Path, column: str, tokenizer: Any) -> tuple[list[_Sample], dict[str, Any]]:
    """Read the texts of a JSON lines file."""
    texts = []
    for found in located_entries(path):
        if not isinstance(found.entry.get(column), str):
            raise TrafficError(f"{path}:{found.place}: has no text under {column!r}.")
        texts.append((found.place, found.entry[column]))
    origin = {"path": str(path), "sha256": file_sha256(path), "column": column}
    return list(_tokenize_texts(texts, tokenizer)), origin


def _read_hub(settings: Calibration, tokenizer: Any) -> tuple[list[_Sample], dict[str, Any]]:
    """Return the first rows of a data set of the Hub, of which the samples are chosen.

    Rows are streamed: the whole set is not downloaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            f"calibration on the data set {settings.dataset!r} needs the package 'datasets': "
            "pip install 'quantdraft[llmcompressor]'"
        ) from error
    try:
        rows = datasets.load_dataset(settings.dataset, split=settings.split, streaming=True)
        first = list(rows.take(HUB_POOL * settings.num_samples))
    except Exception as error:  # the Hub client raises many kinds; all mean: not available
        raise TrafficError(
            f"the data set {settings.dataset!r} (split {settings.split!r}) is not available "
            f"({type(error).__name__}). Check the name, the network, and HF_TOKEN."
        ) from error
    if not first or not isinstance(first[0].get(settings.column), str):
        columns = ", ".join(first[0]) if first else "no rows"
        raise TrafficError(
            f"the data set {settings.dataset!r} has no text under {settings.column!r}. "
            f"It has: {columns}."
        )
    rows_read = [(f"row {i}", row.get(settings.column)) for i, row in enumerate(first)]
    texts = [(name, text) for name, text in rows_read if isinstance(text, str)]
    origin = {
        "dataset": settings.dataset,
        "split": settings.split,
        "column": settings.column,
        "num_rows_read": len(first),
    }
    return list(_tokenize_texts(texts, tokenizer)), origin


def _require_consent(recipe: Recipe, settings: Calibration, path: Path | None) -> None:
    """Raise RecipeError unless the user names the data set too: no recipe alone downloads."""
    if str(path) != settings.dataset:
        raise RecipeError(
            f"recipe {recipe.name!r} is calibrated on the Hub's data set {settings.dataset!r}, "
            f"which would be downloaded: add --calibration {settings.dataset} to allow it."
        )


def _tokenize_texts(texts: list[tuple[str, str]], tokenizer: Any) -> Iterator[_Sample]:
    for name, text in texts:
        token_ids = tuple(tokenizer(text)["input_ids"])
        if token_ids:
            yield _Sample(name, token_ids)


def _missing_text(recipe: Recipe, settings: Calibration) -> str:
    if settings.source == "file":
        return (
            f"recipe {recipe.name!r} is calibrated on a file of texts and none was given. Add "
            f'--calibration FILE, JSON lines with a text under "{settings.column}".'
        )
    return (
        f"recipe {recipe.name!r} is calibrated on the target's own responses and none were "
        "given. Make them with `quantdraft capture --target T --prompts P --output "
        "traffic.jsonl` and add --calibration traffic.jsonl."
    )


def _require_known_ids(origin: str, source: Checkpoint, samples: list[_Sample]) -> None:
    vocab_size = int(source.text_config["vocab_size"])
    for sample in samples:
        largest = max(sample.token_ids, default=0)
        if largest >= vocab_size:
            raise TrafficError(
                f"'{origin}': prompt {sample.name!r} holds token id {largest}, beyond the "
                f"draft's vocabulary of {vocab_size}. Capture it with a target that shares the "
                "draft's tokenizer."
            )
    if not samples:
        raise TrafficError(f"'{origin}' holds no sample to calibrate on.")
