"""The target answers prompts, and the answers become traffic."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_tokenizer, resolve_model
from quantdraft.common.files import file_sha256, require_apart
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import say
from quantdraft.errors import OutputExistsError, TrafficError
from quantdraft.measure.answer_file import write_answers
from quantdraft.measure.answerers import Answerer, Progress, open_answerer
from quantdraft.measure.generation import GeneratedTokens
from quantdraft.measure.settings import CaptureSettings
from quantdraft.traffic.jsonl import pick_items
from quantdraft.traffic.ledger import Reading
from quantdraft.traffic.prompts import Prompt, encode_prompt, read_prompt_file
from quantdraft.traffic.responses import ReadSettings, Response
from quantdraft.traffic.templates import RefusedChatError, has_template
from quantdraft.traffic.traffic import Sampling, Traffic, header_line, read_traffic, response_line


def capture(settings: CaptureSettings) -> Traffic:
    """Write the target's own responses to prompts to the output, and read them back.

    Finished prompts are kept in `<output>.partial`; a run that is started again with the same
    settings continues after the last whole batch. Prompts that leave no room for `max_new_tokens`
    within the target's positions are not asked: `Traffic.skipped` names them. Memory holds one
    batch, whatever the number of prompts: token ids are made again when a prompt is asked.

    Raises OutputExistsError, OutputBusyError, OutputError, OptionError, TrafficError,
    CheckpointError, EngineError, and UndefinedMetricError where the target's logits are not finite.
    """
    settings.check()
    output = settings.output
    require_apart(output, settings.prompts, "the file of prompts")
    with sole_writer(output):
        if output.exists() and not settings.force:
            raise OutputExistsError(
                f"output '{output}' exists. Give another --output, or --force to replace it."
            )
        prompts, reading, left_out = _read_asked(settings)
        path = resolve_model(settings.target)
        open_checkpoint(path)  # what is no model is named so, not missed a tokenizer
        tokenizer = load_tokenizer(path, settings.trust_remote_code)
        answerer = open_answerer(settings, path)
        _tell_reading(reading, prompts, tokenizer)
        asked, skipped = _fitting(
            prompts, tokenizer, settings.max_new_tokens, answerer.num_positions
        )
        header = header_line(
            settings.sampling,
            answerer.description,
            len(asked),
            [*left_out, *skipped],
            prompts_sha256=file_sha256(settings.prompts),
            limit=settings.limit,
            max_new_tokens=settings.max_new_tokens,
            **_read_with(settings.read),
        )
        questions = _Questions(prompts, asked, tokenizer, answerer, settings.sampling.seed)
        write_answers(
            output,
            header,
            [prompts[index].prompt_id for index in asked],
            questions.answer,
            batch_size=answerer.num_prompts,
            force=settings.force,
        )
    return read_traffic(output)


@dataclass(frozen=True, slots=True)
class _Questions:
    """The prompts that are asked, and who answers them."""

    prompts: Sequence[Prompt]
    asked: Sequence[int]  # places in the file of prompts
    tokenizer: Any
    answerer: Answerer
    seed: int

    def answer(self, first: int, last: int, progress: Progress) -> str:
        """Return the lines of traffic of one batch: of the asked prompts from `first` to `last`."""
        places = self.asked[first:last]
        batch = [self.prompts[index] for index in places]
        ids = [encode_prompt(prompt, self.tokenizer) for prompt in batch]
        # A prompt's place in the file seeds its draws.
        seeds = [_seed(self.seed, index) for index in places]
        answers = self.answerer.answers(ids, seeds, progress)
        lines = zip(batch, ids, answers, strict=True)
        return "".join(_line(*each, self.tokenizer) for each in lines)


def has_captured(
    path: Path, prompts: Path, sampling: Sampling, max_new_tokens: int, read: ReadSettings
) -> bool:
    """Return whether a traffic file was captured from these prompts in this way."""
    try:
        with open(path, encoding="utf-8") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    asked = {
        "prompts_sha256": file_sha256(prompts),
        "sampling": asdict(sampling),
        "max_new_tokens": max_new_tokens,
    }
    if not isinstance(header, dict):
        return False
    is_same = all(header.get(key) == asked[key] for key in asked)
    return is_same and header.get("read_with") == _read_with(read).get("read_with")


def _read_asked(
    settings: CaptureSettings,
) -> tuple[Sequence[Prompt], Reading, tuple[str, ...]]:
    """Return the prompts that are asked, what they were read as, and why others are not asked."""
    prompts, reading, skipped = read_prompt_file(settings.prompts, settings.read)
    limit = settings.limit
    if limit is None:
        return prompts, reading, skipped
    return pick_items(prompts, range(min(limit, len(prompts)))), reading, skipped


def _tell_reading(reading: Reading, prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """Say what the prompts were read as; and where an instruct model is asked without its template.

    What is left out is said with the result.
    """
    say(reading.sentence)
    for warning in reading.warnings:
        say(f"warning: {warning}")
    first = next(iter(prompts), None)
    if first is not None and first.text is not None and has_template(tokenizer):
        say(
            f"warning: the prompts are plain text, as that of {first.prompt_id!r}, and are asked "
            "without the target's chat template. For a chat give 'messages', or 'turns'."
        )


def _read_with(read: ReadSettings) -> dict[str, Any]:
    """Return how the prompts were read, for the header; {} where nothing was asked for."""
    given = read.as_record()
    return {"read_with": given} if given else {}


def _seed(seed: int, index: int) -> int:
    """Return the seed of one prompt: neighbouring (seed, index) pairs share nothing."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")  # torch's CPU generator uses 32 bits of it


def _line(
    question: Prompt, token_ids: tuple[int, ...], answer: GeneratedTokens, tokenizer: Any
) -> str:
    response = Response(
        prompt_id=question.prompt_id,
        prompt_token_ids=token_ids,
        response_token_ids=answer.token_ids,
        logprobs=answer.logprobs or None,
        domain=question.domain,
        conversation=question.conversation,
    )
    prompt = tokenizer.decode(list(token_ids))
    return response_line(response, prompt, tokenizer.decode(list(answer.token_ids)))


def _fitting(
    prompts: Sequence[Prompt], tokenizer: Any, max_new_tokens: int, positions: int | None
) -> tuple[array[int], list[str]]:
    """Return the places of prompts that leave room for an answer, and reasons for the others."""
    room = sys.maxsize if positions is None else positions - max_new_tokens
    fitting, skipped = array("Q"), []
    for index, prompt in enumerate(prompts):
        try:
            length = len(encode_prompt(prompt, tokenizer))
        except RefusedChatError as error:
            skipped.append(f"prompt {prompt.prompt_id}: {error}")
            continue
        if length <= room:
            fitting.append(index)
        else:
            skipped.append(
                f"prompt {prompt.prompt_id}: {length} tokens leave no room for {max_new_tokens} "
                f"more within the target's {positions} positions"
            )
    if not fitting:
        raise TrafficError(
            f"no prompt fits. The first: {skipped[0]}. Lower --max-new-tokens, or shorten prompts."
        )
    return fitting, skipped
