"""The target answers the prompts, and the answers become traffic: whole, or to be continued."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from quantdraft.checkpoint import open_checkpoint
from quantdraft.errors import OptionError, OutputError, OutputExistsError, TrafficError
from quantdraft.files import file_sha256
from quantdraft.generation import Answer, generate
from quantdraft.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve_model
from quantdraft.prompts import Prompt, encode_prompts, read_prompts
from quantdraft.traffic import (
    Response,
    Sampling,
    Traffic,
    header_line,
    read_traffic,
    response_line,
)


@dataclass(frozen=True, slots=True)
class _Question:
    """A prompt as the target sees it; `index`, its place in the prompt file, seeds its draws."""

    index: int
    prompt: Prompt
    token_ids: tuple[int, ...]


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
    progress: bool | None = None,
    trust_remote_code: bool = False,
) -> Traffic:
    """Write the target's own responses to `prompts` to `output`, and read them back.

    Finished prompts are kept in `<output>.partial`; a run that is started again with the same
    settings continues after the last whole batch. Prompts that leave no room for `max_new_tokens`
    within the target's positions are not asked: `Traffic.skipped` names them.

    limit: ask only the first so many prompts
    force: replace an existing output, and discard an unfinished one
    progress: show a bar on stderr; None: when stderr is a terminal
    Raises OutputExistsError, OutputError, OptionError, TrafficError, CheckpointError.
    """
    _check_options(max_new_tokens, batch_size, limit)
    _check_free(output, force)
    asked = read_prompts(prompts)[:limit]
    model_path, on = resolve_model(target), pick_device(device)
    tokenizer = load_tokenizer(model_path, trust_remote_code)
    token_ids = encode_prompts(asked, tokenizer)
    model = load_model(model_path, pick_dtype(dtype, on), on, trust_remote_code)
    questions, skipped = _fitting(asked, token_ids, max_new_tokens, model)
    header = header_line(
        sampling,
        describe_target(target, model_path, model),
        len(questions),
        skipped,
        prompts_sha256=file_sha256(prompts),
        limit=limit,
        max_new_tokens=max_new_tokens,
    )

    def answer(batch: Sequence[_Question]) -> str:
        ids = [question.token_ids for question in batch]
        seeds = [_seed(sampling.seed, question.index) for question in batch]
        answers = generate(model, ids, sampling, max_new_tokens, seeds)
        return "".join(
            _line(question, answer, tokenizer)
            for question, answer in zip(batch, answers, strict=True)
        )

    _write_answers(
        output, header, questions, answer, batch_size=batch_size, force=force, progress=progress
    )
    return read_traffic(output)


def describe_target(target: str, path: Path, model: Any) -> dict[str, Any]:
    """What a traffic header says of the model: name, revision, float type, hash of the weights."""
    return {
        "name": target,
        "revision": open_checkpoint(path).revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": _weights_sha256(path),
    }


def _seed(seed: int, index: int) -> int:
    """A seed for one prompt: neighbouring (seed, index) pairs share nothing."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")  # torch's CPU generator uses 32 bits of it


def _line(question: _Question, answer: Answer, tokenizer: Any) -> str:
    response = Response(
        prompt_id=question.prompt.prompt_id,
        prompt_token_ids=question.token_ids,
        response_token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        domain=question.prompt.domain,
    )
    prompt = tokenizer.decode(list(question.token_ids))
    return response_line(response, prompt, tokenizer.decode(list(answer.token_ids)))


def _write_answers(
    output: Path,
    header: str,
    questions: Sequence[_Question],
    answer: Callable[[Sequence[_Question]], str],
    *,
    batch_size: int,
    force: bool,
    progress: bool | None,
) -> None:
    """Append batch after batch to the partial file; rename it when it is whole."""
    partial = output.with_name(f"{output.name}.partial")
    with _writing(partial):
        num_done = _resume(partial, header, len(questions), batch_size, force)
        hidden = None if progress is None else not progress
        with (
            open(partial, "a", encoding="utf-8") as file,
            tqdm(
                total=len(questions),
                initial=num_done,
                unit="prompt",
                desc="capture",
                file=sys.stderr,
                disable=hidden,
            ) as bar,
        ):
            for start in range(num_done, len(questions), batch_size):
                batch = questions[start : start + batch_size]
                file.write(answer(batch))
                file.flush()
                bar.update(len(batch))
            os.fsync(file.fileno())
        os.replace(partial, output)


def _resume(partial: Path, header: str, num_questions: int, batch_size: int, force: bool) -> int:
    """Leave in `partial` the header and whole batches, and return how many prompts those are.

    Only whole batches are kept, so that a resumed run forms the batches of an uninterrupted one.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if force or not partial.exists() else partial.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    if not whole:
        partial.write_text(header, encoding="utf-8")
        return 0
    if whole[0] != header.encode():
        raise OutputExistsError(
            f"'{partial}' was begun with other settings (sampling, prompts, target or lengths). "
            "Give the same ones to continue it, --force to start anew, or another --output."
        )
    num_answers = len(whole) - 1
    num_done = (
        num_answers if num_answers == num_questions else num_answers - num_answers % batch_size
    )
    os.truncate(partial, sum(len(line) for line in whole[: num_done + 1]))
    return num_done


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
    prompts: Sequence[Prompt], token_ids: Sequence[tuple[int, ...]], max_new_tokens: int, model: Any
) -> tuple[list[_Question], list[str]]:
    """The prompts that leave room for an answer, and a reason for each that does not."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = sys.maxsize if positions is None else positions - max_new_tokens
    questions, skipped = [], []
    for index, (prompt, ids) in enumerate(zip(prompts, token_ids, strict=True)):
        if len(ids) <= room:
            questions.append(_Question(index, prompt, ids))
        else:
            skipped.append(
                f"prompt {prompt.prompt_id}: {len(ids)} tokens leave no room for {max_new_tokens} "
                f"more within the target's {positions} positions"
            )
    if not questions:
        raise TrafficError(
            f"no prompt fits. The first: {skipped[0]}. Lower --max-new-tokens, or shorten prompts."
        )
    return questions, skipped


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


def _weights_sha256(path: Path) -> str:
    """One hash over the names and hashes of the safetensors files."""
    total = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        # The Hub's cache names a large file by its SHA-256; hashing 800 GB again takes long.
        cached = file.resolve().name
        is_digest = len(cached) == 64 and set(cached) <= set("0123456789abcdef")
        digest = cached if is_digest else file_sha256(file)
        total.update(f"{file.name} {digest}\n".encode())
    return total.hexdigest()
