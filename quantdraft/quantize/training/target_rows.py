"""The target's distributions at every place of the examples, computed once and kept on the disk.

Of each the most probable tokens are kept, 6 bytes each; the mass of the rest is what lacks to 1.
A killed run goes on with the first example that is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantdraft.common.files import write_json
from quantdraft.common.resume import kept_when_refused, read_kept
from quantdraft.quantize.training.examples import Example
from quantdraft.quantize.training.losses import TargetRows

# Numbers of tokens that may be kept; the first whose rest has less than MAX_REST on average is.
NUM_KEPT = (16, 32, 64, 128, 256, 512)
MAX_REST = 0.01
NUM_TRIED = 8  # examples by which that is decided
FACTS_FILE = "target.json"


class TargetStore:
    """The kept distributions of all examples, in two flat files under one directory."""

    def __init__(self, directory: Path, examples: Sequence[Example], num_kept: int) -> None:
        rows = [each.num_rows for each in examples]
        self.num_kept = num_kept
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        shape = (int(self._starts[-1]), num_kept)
        self._ids = _open_flat(directory / "target-ids.bin", np.int32, shape)
        self._probs = _open_flat(directory / "target-probs.bin", np.float16, shape)

    def has(self, example: int) -> bool:
        """Return whether every place of the example has its distribution."""
        first, last = self._starts[example], self._starts[example + 1] - 1
        return bool(self._probs[first, 0] > 0 and self._probs[last, 0] > 0)

    def put(self, example: int, rows: TargetRows) -> None:
        """Keep the distributions of one example."""
        part = slice(self._starts[example], self._starts[example + 1])
        self._ids[part] = rows.ids.cpu().numpy()
        self._probs[part] = rows.probs.cpu().numpy()

    def rows(self, example: int) -> TargetRows:
        """Return the distributions of one example, (num_rows, num_kept)."""
        part = slice(self._starts[example], self._starts[example + 1])
        ids = torch.from_numpy(self._ids[part].astype(np.int64))
        return TargetRows(ids, torch.from_numpy(self._probs[part].astype(np.float32)))

    @property
    def mean_rest(self) -> float:
        """The mean mass of the tokens that are not kept, over all places."""
        sums = [
            float(np.clip(1 - self._probs[a:b].sum(-1, dtype=np.float32), 0, None).sum())
            for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)
        ]
        return sum(sums) / max(1, int(self._starts[-1]))


def _open_flat(path: Path, dtype: Any, shape: tuple[int, int]) -> Any:
    """Map a file of numbers, made of zeros where there is none of this size."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != size:
        with open(path, "wb") as file:
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)


def target_rows(
    directory: Path,
    key: str,
    examples: Sequence[Example],
    load: Callable[[], Any],
    vocab_size: int,
    *,
    temperature: float = 1.0,
    num_kept: int | None = None,
    advance: Callable[[float], None] = lambda number: None,
) -> TargetStore:
    """Return the target's distributions, those that an earlier run has left and the others now.

    directory: where they are kept; key: what they depend on; another key starts anew
    load: returns the target; it is called only where something is to be computed
    vocab_size: the draft's: what the target has beyond it counts to the rest
    num_kept: of the tokens; None: as many as leave the rest MAX_REST
    """
    with kept_when_refused(directory):
        directory.mkdir(parents=True, exist_ok=True)
        facts = read_kept(directory / FACTS_FILE)
        if facts.get("key") != key:
            for path in directory.glob("target-*.bin"):
                path.unlink()
            facts = {"key": key, "num_kept": num_kept}
            write_json(directory / FACTS_FILE, facts)
        model = None
        if facts["num_kept"] is None:
            model = load()
            tried = examples[:: max(1, len(examples) // NUM_TRIED)][:NUM_TRIED]
            facts["num_kept"] = choose_num_kept(model, tried, vocab_size, temperature)
            write_json(directory / FACTS_FILE, facts)
        store = TargetStore(directory, examples, min(int(facts["num_kept"]), vocab_size))
        for index, example in enumerate(examples):
            if not store.has(index):
                model = load() if model is None else model
                probs = _probabilities(model, example, vocab_size, temperature)
                found = probs.topk(store.num_kept)
                store.put(index, TargetRows(found.indices, found.values))
            advance(1)
    return store


def choose_num_kept(
    model: Any, examples: Sequence[Example], vocab_size: int, temperature: float = 1.0
) -> int:
    """Return the least of NUM_KEPT tokens beyond which the mean mass is at most MAX_REST."""
    most = min(max(NUM_KEPT), vocab_size)
    sums, number = np.zeros(most), 0
    for example in examples:
        kept = _probabilities(model, example, vocab_size, temperature).topk(most).values
        sums += kept.double().cumsum(-1).sum(0).cpu().numpy()
        number += len(kept)
    rest = 1 - sums / max(1, number)
    return next((n for n in NUM_KEPT if n <= most and rest[n - 1] <= MAX_REST), most)


@torch.inference_mode()
def _probabilities(model: Any, example: Example, vocab_size: int, temperature: float) -> Tensor:
    """Return the target's distribution at every place, (num_rows, vocab) float32."""
    ids = torch.tensor([example.token_ids[:-1]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    probs: Tensor = logits.softmax(-1)[:, :vocab_size]
    return probs


def describe(store: TargetStore) -> dict[str, Any]:
    """Return how many tokens are kept and what the others weigh, as JSON values."""
    return {"num_kept": store.num_kept, "mean_rest": round(store.mean_rest, 6)}
