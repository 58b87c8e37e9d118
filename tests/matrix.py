"""What each command makes of each architecture: `python -m tests.matrix` prints the table.

A cell is "right" (held against one prompt at a time, in float32, without a cache), "refused: …" (by
a one-line error) or "undefined: …" (a number that does not exist here, with its reason).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import NativeModel, borrow, load_native
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import QuantDraftError, UndefinedMetricError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure.generation import generate
from quantdraft.measure.live import run_live
from quantdraft.measure.replay import acceptance_probabilities, response_logits
from quantdraft.quantize.apply import apply
from quantdraft.quantize.ledger import byte_ledger
from quantdraft.traffic.responses import Response
from quantdraft.traffic.traffic import Sampling, Traffic
from quantdraft.workflows.check import Preflight, check
from tests.architectures import ARCHITECTURES, TEXT, save_pair

CPU = torch.device("cpu")
# Longer than a window, and beyond the lengths at which rotary frequencies change.
LENGTHS = (4, 21, 59)
NUM_TOKENS = 8
KS = (2, 5)
# Two orders of the same float32 sums; wrong positions or states are off by 0.1 and more.
CLOSE = 2e-4
RECIPES = ("int4", "fp8")
GREEDY = Sampling()


@dataclass(frozen=True)
class Bench:
    """One architecture's pair, and the target's own texts."""

    target_path: Path
    draft_path: Path

    @cached_property
    def target(self) -> Any:
        """The target in float32."""
        return load_model(self.target_path, torch.float32, CPU)

    @cached_property
    def draft(self) -> Any:
        """The draft in float32."""
        return load_model(self.draft_path, torch.float32, CPU)

    @cached_property
    def preflight(self) -> Preflight:
        """What `check` says."""
        return check(str(self.target_path), str(self.draft_path))

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        """The target's own texts by transformers' `generate`, one prompt at a time, no cache."""
        texts = [self._generate(prompt) for prompt in prompts()]
        pairs = enumerate(zip(prompts(), texts, strict=True))
        return tuple(Response(str(i), tuple(prompt), text) for i, (prompt, text) in pairs)

    def _generate(self, prompt: Sequence[int]) -> tuple[int, ...]:
        ids = torch.tensor([prompt])
        text = self.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            use_cache=False,
            pad_token_id=0,
        )
        return tuple(text[0, len(prompt) :].tolist())


@cache
def prompts() -> tuple[list[int], ...]:
    """Random tokens, of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randint(1, 4000, (n,), generator=generator).tolist() for n in LENGTHS)


@cache
def alike_responses() -> tuple[Response, ...]:
    """Random texts behind one beginning, longer than a window; one goes on from another's end."""
    generator = torch.Generator().manual_seed(5)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 4000, (number,), generator=generator).tolist())

    beginning = tokens(70)
    one, two, three = (beginning + tokens(number) for number in (3, 9, 14))
    answer = tokens(NUM_TOKENS)
    again = Response("again", two + answer + tokens(5), tokens(NUM_TOKENS))
    return (
        Response("one", one, tokens(NUM_TOKENS)),
        Response("two", two, answer),
        Response("three", three, tokens(NUM_TOKENS)),
        again,
    )


def checked(bench: Bench) -> None:
    """The pair fits, and no number of `check` is missing."""
    assert bench.preflight.is_compatible
    assert bench.preflight.outlooks


def ledgered(bench: Bench) -> None:
    """A step reads no more than what is stored, and the row of a table that is the head too."""
    draft = open_checkpoint(bench.draft_path)
    stored = sum(tensor.num_bytes for tensor in draft.tensors.values())
    row = 2 * TEXT["hidden_size"]
    assert 0 < byte_ledger(draft).weight_bytes <= stored + row


def captured(bench: Bench) -> None:
    """Answers are the target's own texts, alone and in a batch."""
    wanted = [response.response_token_ids for response in bench.responses]
    seeds = [0] * len(wanted)
    batched = generate(bench.target, prompts(), GREEDY, NUM_TOKENS, seeds)
    assert [answer.token_ids for answer in batched] == wanted
    for prompt, answer in zip(prompts(), batched, strict=True):
        (alone,) = generate(bench.target, [prompt], GREEDY, NUM_TOKENS, [0])
        assert alone.token_ids == answer.token_ids
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, atol=CLOSE)


def replayed(bench: Bench) -> None:
    """Batch mates change nothing, nor does reading in one pass, nor what texts have in common."""
    _require_alone(bench.draft, bench.responses)
    _require_alone(bench.draft, alike_responses())


def _require_alone(draft: Any, responses: Sequence[Response]) -> None:
    together = {span.prompt: span.logits for span in response_logits(draft, responses)}
    for index, response in enumerate(responses):
        ids = torch.tensor([response.prompt_token_ids + response.response_token_ids[:-1]])
        with torch.inference_mode():
            alone = draft(input_ids=ids, use_cache=False).logits[0, -len(together[index]) :]
        torch.testing.assert_close(together[index], alone.float(), atol=CLOSE, rtol=CLOSE)


def decoded(bench: Bench) -> None:
    """The live loop writes the target's text, in the rounds that replay counts."""
    _require_rounds(bench, bench.draft, _native(bench.target_path), _native(bench.draft_path))


def _native(path: Path) -> NativeModel:
    return load_native(stored_weights(open_checkpoint(path)), torch.float32, CPU)


def _require_rounds(
    bench: Bench, replayed_by: Any, target: NativeModel, draft: NativeModel
) -> None:
    traffic = Traffic(bench.responses, GREEDY)
    alone = [
        acceptance_probabilities(replayed_by, replace(traffic, responses=(each,)), "greedy")[0]
        for each in bench.responses
    ]
    ids = [response.prompt_id for response in bench.responses]
    for k in KS:
        batch_size = len(ids) if k == KS[0] else 1
        live = run_live(
            target,
            draft,
            traffic,
            num_speculative_tokens=k,
            rule="greedy",
            batch_size=batch_size,
        )
        assert [prompt.text for prompt in live] == ["identical"] * len(ids)
        wanted = replay_rounds(ids, alone, [k]).num_drafts[0].tolist()
        assert [prompt.run.num_drafts for prompt in live] == wanted


def applied(bench: Bench, recipe: str) -> None:
    """The quantized draft is replayed as alone; its live loop counts the same rounds.

    Replay is held in float64: in float32 two orders of a sum may round an input to two numbers of
    FP8, a step of 1/8 apart. Wrong scales, positions and states are as wrong in float64.
    """
    with tempfile.TemporaryDirectory() as name:
        candidate = apply(recipe, str(bench.draft_path), Path(name) / "candidate")
        model = load_model(candidate.path, torch.float32, CPU)
        _require_rounds(bench, model, borrow(bench.target), borrow(model))
        is_wide = model.config.model_type != "xglm"  # its masks have no place in float64
        _require_alone(model.double() if is_wide else model, bench.responses)


def timed(bench: Bench, recipe: str) -> None:
    """The quantized draft runs on this machine's kernels."""
    with tempfile.TemporaryDirectory() as name:
        _native(apply(recipe, str(bench.draft_path), Path(name) / "candidate").path)


COMMANDS: dict[str, Callable[[Bench], None]] = {
    "check": checked,
    "ledger": ledgered,
    "capture": captured,
    "replay": replayed,
    "live loop": decoded,
    **{f"apply {name}": lambda bench, name=name: applied(bench, name) for name in RECIPES},
    **{f"time {name}": lambda bench, name=name: timed(bench, name) for name in RECIPES},
}


def outcome(command: str, bench: Bench) -> str:
    """Return a cell of the table; raises AssertionError for what is wrong."""
    try:
        COMMANDS[command](bench)
    except UndefinedMetricError as error:
        return f"undefined: {error}"
    except QuantDraftError as error:
        return f"refused: {error}"
    return "right"


def main(names: Sequence[str]) -> None:
    """Print one line a cell that is not right, and the table."""
    rows = [("architecture", *COMMANDS)]
    for name in names or ARCHITECTURES:
        root = Path(tempfile.mkdtemp(prefix="matrix."))
        bench = Bench(*save_pair(name, root))
        cells = []
        for command in COMMANDS:
            try:
                cell = outcome(command, bench)
            except Exception as error:
                cell = f"WRONG: {type(error).__name__} {str(error).splitlines()[:1]}"
            if cell != "right":
                print(f"{name}, {command}: {cell}", flush=True)
            cells.append(cell.partition(":")[0])
        rows.append((name, *cells))
        shutil.rmtree(root)
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
