"""The target answers the prompts, and the answers become traffic: whole, or to be continued."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.tensors.loading import load_tokenizer, resolve_model
from quantdraft.common.files import file_sha256, require_apart
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import bar
from quantdraft.errors import OptionError, OutputError, OutputExistsError, TrafficError
from quantdraft.measure.answerers import Answering, OwnTarget, ServedTarget
from quantdraft.measure.generation import Answer
from quantdraft.traffic.jsonl import pick_items
from quantdraft.traffic.prompts import Prompt, encode_prompt, read_prompts
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic, header_line, read_traffic, response_line


def capture(
    target: str,
    prompts: Path,
    output: Path,
    *,
    sampling: Sampling,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    device: str | None = None,
    dtype: str = "auto",
    limit: int | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    target_url: str | None = None,
) -> Traffic:
    """Write the target's own responses to `prompts` to `output`, and read them back.

    Finished prompts are kept in `<output>.partial`; a run that is started again with the same
    settings continues after the last whole batch. Prompts that leave no room for `max_new_tokens`
    within the target's positions are not asked: `Traffic.skipped` names them. Memory holds one
    batch, whatever the number of prompts: token ids are made again when a prompt is asked.

    limit: ask only the first so many prompts
    target_url: of a vLLM server that serves the target; `target` then gives the tokenizer alone
    force: replace an existing output, and discard an unfinished one of other settings
    Raises OutputExistsError, OutputBusyError, OutputError, OptionError, TrafficError,
    CheckpointError, EngineError, and UndefinedMetricError where the target's logits are not finite.
    """
    _check_options(max_new_tokens, batch_size, limit)
    require_apart(output, prompts, "the file of prompts")
    with sole_writer(output):
        _check_free(output, force)
        asked = read_prompts(prompts)
        if limit is not None:
            asked = pick_items(asked, range(min(limit, len(asked))))
        path = resolve_model(target)
        tokenizer = load_tokenizer(path, trust_remote_code)
        speaker: Answering
        if target_url is None:
            speaker = OwnTarget(
                target, path, sampling, max_new_tokens, device, dtype, trust_remote_code
            )
        else:
            speaker = ServedTarget(target, path, target_url, sampling, max_new_tokens)
        indices, skipped = _fitting(asked, tokenizer, max_new_tokens, speaker.num_positions)
        header = header_line(
            sampling,
            speaker.description,
            len(indices),
            skipped,
            prompts_sha256=file_sha256(prompts),
            limit=limit,
            max_new_tokens=max_new_tokens,
        )

        def answer(batch: Sequence[int]) -> str:
            questions = [asked[index] for index in batch]
            ids = [encode_prompt(question, tokenizer) for question in questions]
            # A prompt's place in the file seeds its draws.
            seeds = [_seed(sampling.seed, index) for index in batch]
            answers = speaker.answers(ids, seeds)
            return "".join(
                _line(*each, tokenizer) for each in zip(questions, ids, answers, strict=True)
            )

        names = [asked[index].prompt_id for index in indices]
        _write_answers(
            output,
            header,
            names,
            lambda first, last: answer(indices[first:last]),
            batch_size=batch_size,
            force=force,
        )
    return read_traffic(output)


def has_captured(path: Path, prompts: Path, sampling: Sampling, max_new_tokens: int) -> bool:
    """True where a traffic file was captured from these prompts in this way."""
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
    return isinstance(header, dict) and all(header.get(key) == asked[key] for key in asked)


def _seed(seed: int, index: int) -> int:
    """A seed for one prompt: neighbouring (seed, index) pairs share nothing."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")  # torch's CPU generator uses 32 bits of it


def _line(question: Prompt, token_ids: tuple[int, ...], answer: Answer, tokenizer: Any) -> str:
    response = Response(
        prompt_id=question.prompt_id,
        prompt_token_ids=token_ids,
        response_token_ids=answer.token_ids,
        logprobs=answer.logprobs or None,
        domain=question.domain,
    )
    prompt = tokenizer.decode(list(token_ids))
    return response_line(response, prompt, tokenizer.decode(list(answer.token_ids)))


def _write_answers(
    output: Path,
    header: str,
    names: Sequence[str],
    answer: Callable[[int, int], str],
    *,
    batch_size: int,
    force: bool,
) -> None:
    """Append batch after batch to the partial file; rename it when it is whole.

    names: ids of the prompts; answer(first, last): the lines of the prompts in between
    """
    partial = output.with_name(f"{output.name}.partial")
    with _writing(partial):
        num_done = _resume(partial, header, names, batch_size, force)
        with (
            open(partial, "a", encoding="utf-8") as file,
            bar(len(names), "ask the target", "prompt", num_done) as told,
        ):
            for first in range(num_done, len(names), batch_size):
                last = min(first + batch_size, len(names))
                file.write(answer(first, last))
                file.flush()
                told(last - first)
            os.fsync(file.fileno())
        os.replace(partial, output)


def _resume(partial: Path, header: str, names: Sequence[str], batch_size: int, force: bool) -> int:
    """Leave in `partial` the header and whole batches, and return how many prompts those are.

    Only whole batches are kept, so that a resumed run forms the batches of an uninterrupted one.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "a+b") as file:
        file.seek(0)
        first = file.readline()
        if first != header.encode():
            if first.endswith(b"\n") and not force:
                raise OutputExistsError(
                    f"'{partial}' was begun with other settings (sampling, prompts, target or "
                    "lengths). Give the same ones to continue it, --force to start anew, or "
                    "another --output."
                )
            file.truncate(0)
            file.write(header.encode())
            return 0
        ends = array("Q", [len(first)])
        for name, line in zip(names, file, strict=False):
            if not _is_answer(line, name):
                break
            ends.append(ends[-1] + len(line))
        num_answers = len(ends) - 1
        is_whole = num_answers == len(names)
        num_done = num_answers if is_whole else num_answers - num_answers % batch_size
        file.truncate(ends[num_done])
    return num_done


def _is_answer(line: bytes, name: str) -> bool:
    """False of a line that a kill or a full disk cut, or that a power cut filled with zeros."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(found, dict) and found.get("prompt_id") == name


@contextlib.contextmanager
def _writing(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write '{partial}': {error.strerror or error}. What is finished is kept there; "
            "run the same command again to continue."
        ) from error


def _fitting(
    prompts: Sequence[Prompt], tokenizer: Any, max_new_tokens: int, positions: int | None
) -> tuple[array[int], list[str]]:
    """Places of the prompts that leave room for an answer; a reason for each that does not."""
    room = sys.maxsize if positions is None else positions - max_new_tokens
    fitting, skipped = array("Q"), []
    for index, prompt in enumerate(prompts):
        length = len(encode_prompt(prompt, tokenizer))
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


def _check_options(max_new_tokens: int, batch_size: int, limit: int | None) -> None:
    if max_new_tokens < 2:
        raise OptionError(f"--max-new-tokens {max_new_tokens} must be at least 2.")
    if batch_size < 1:
        raise OptionError(f"--batch-size {batch_size} must be at least 1.")
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit} must be at least 1.")


def _check_free(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise OutputExistsError(
            f"output '{output}' exists. Give another --output, or --force to replace it."
        )
