"""Processor seconds of a replay whose texts begin alike: each beginning read once, or every time.

    python -m tests.benchmarks.replay_prefix
    python -m tests.benchmarks.replay_prefix --draft DIR --questions question.jsonl

Logs: `turns`, conversations with every answer a response, so that each text holds those before it;
`system`, single answers behind one system prompt; `strangers`, texts that share nothing, where
looking for shared beginnings is all that is added. The texts of `turns` are the model's own answers
to `--questions`, a file of MT-bench or Spec-Bench whose entries with several turns are asked, or
random tokens; the others are random. Both ways run in turns in one process, and processor seconds
count, since the machine may be shared: `ratio` is the median of neighbours' quotients. Greedy
tokens of the two ways are compared. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model, load_tokenizer
from quantdraft.measure import replay
from quantdraft.measure.generation import generate
from quantdraft.measure.near_ties import greedy_acceptance
from quantdraft.measure.shared_beginnings import SharedBeginnings
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, token_counts

Log = list[Response]
SYSTEM_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 256, 24, 48


class _Alone(SharedBeginnings):
    """Every text by itself, as before anything was shared."""

    def __init__(self, responses: Sequence[Response]) -> None:
        counts = token_counts(responses)
        self.lengths = (counts.prompt + counts.response - 1).tolist()
        self._first = (counts.prompt - 1).tolist()
        self._inside = {}


@contextmanager
def _alone() -> Iterator[None]:
    kept = replay.SharedBeginnings, replay._least_saved
    replay.SharedBeginnings, replay._least_saved = _Alone, lambda model: None  # type: ignore[misc]
    try:
        yield
    finally:
        replay.SharedBeginnings, replay._least_saved = kept  # type: ignore[misc]


def random_logs(vocab_size: int, num: int) -> dict[str, Log]:
    """Texts of random tokens; the time of a pass does not depend on what they are."""
    rng = np.random.default_rng(0)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, vocab_size, number).tolist())

    turns = []
    for place in range(num):
        text = tokens(QUESTION_TOKENS)
        for turn in range(4):
            answer = tokens(ANSWER_TOKENS)
            turns.append(Response(f"{place}/{turn}", text, answer))
            text += answer + tokens(QUESTION_TOKENS)
    system = tokens(SYSTEM_TOKENS)
    behind = [
        Response(str(place), system + tokens(QUESTION_TOKENS), tokens(ANSWER_TOKENS))
        for place in range(4 * num)
    ]
    strangers = [
        Response(str(place), tokens(4 * QUESTION_TOKENS), tokens(ANSWER_TOKENS))
        for place in range(4 * num)
    ]
    return {"turns": turns, "system": behind, "strangers": strangers}


def asked_turns(model: Any, tokenizer: Any, questions: Path, num: int) -> Log:
    """Let a model answer all turns of some conversations, as the log of a server has them."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    found: Log = []
    for row in [row for row in rows if len(row["turns"]) > 1][:num]:
        chat: list[dict[str, str]] = []
        for turn, question in enumerate(row["turns"]):
            chat.append({"role": "user", "content": question})
            asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
            prompt = tuple(asked["input_ids"])
            (answer,) = generate(model, [prompt], Sampling(), 2 * ANSWER_TOKENS, [0])
            found.append(Response(f"{row['question_id']}/{turn}", prompt, answer.token_ids))
            said = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            chat.append({"role": "assistant", "content": said})
    return found


def measured(draft: Any, log: Log, rounds: int) -> dict[str, Any]:
    """Return the seconds of both ways, their ratio, and where their greedy tokens differ."""

    def shared() -> None:
        list(replay.response_logits(draft, log))

    def alone() -> None:
        with _alone():
            list(replay.response_logits(draft, log))

    ways: tuple[Callable[[], None], ...] = (alone, shared)
    seconds: list[dict[Callable[[], None], float]] = []
    for number in range(rounds + 1):
        seconds.append({way: _timed(way) for way in (ways if number % 2 else ways[::-1])})
    timed = seconds[1:]  # the first round warms up
    root = SharedBeginnings(log).tree(replay._least_saved(draft))
    return {
        "ratio": round(median(each[alone] / each[shared] for each in timed), 2),
        "cpu_seconds_alone": round(median(each[alone] for each in timed), 2),
        "cpu_seconds_shared": round(median(each[shared] for each in timed), 2),
        "num_responses": len(log),
        "num_texts_read": sum(1 for _ in root.all_texts()),
        "num_branches": len(root.branches),
        **_differences(draft, log),
    }


def _timed(act: Callable[[], None]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def _differences(draft: Any, log: Log) -> dict[str, int]:
    """Return how many tokens a greedy draft keeps in one way alone, and those that are no ties."""
    dtype = str(draft.dtype).removeprefix("torch.")
    one = greedy_acceptance(draft, log, dtype)
    with _alone():
        other = greedy_acceptance(draft, log, dtype)
    pairs = list(zip(one, other, strict=True))
    differ = [a.probabilities != b.probabilities for a, b in pairs]
    ties = [a.is_near_tie | b.is_near_tie for a, b in pairs]
    return {
        "num_tokens": sum(len(each) for each in differ),
        "num_different": int(sum(each.sum() for each in differ)),
        "num_no_near_tie": int(
            sum((each & ~tie).sum() for each, tie in zip(differ, ties, strict=True))
        ),
    }


def main() -> None:
    """Measure every log, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draft", type=Path, default=pair_dir() / "draft")
    parser.add_argument(
        "--questions", type=Path, help="MT-bench or Spec-Bench; needs a chat model."
    )
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    draft = load_model(given.draft, torch.float32, torch.device("cpu"))
    logs = random_logs(draft.config.get_text_config().vocab_size, given.conversations)
    if given.questions is not None:
        tokenizer = load_tokenizer(given.draft)
        logs["turns"] = asked_turns(draft, tokenizer, given.questions, given.conversations)
    found = {}
    for name, log in logs.items():
        found[name] = measured(draft, log, given.rounds)
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps({"benchmark": "replay_prefix", "ratio": found["turns"]["ratio"], **found}))


if __name__ == "__main__":
    main()
