"""Train the embedded models: a tokenizer, a target, and drafts distilled from that target.

    python -m tests.tools.reference.train tokenizer --work-dir W
    python -m tests.tools.reference.train target --work-dir W
    python -m tests.tools.reference.train responses --work-dir W
    python -m tests.tools.reference.train draft --work-dir W
    python -m tests.tools.reference.train draft-shallow --work-dir W
    python -m tests.tools.reference.train draft-library --work-dir W

A draft learns on text of two kinds: a quarter is the corpus, and three quarters the target's own
greedy responses to beginnings of the corpus, which is what it will be asked to imitate. What one
draft does otherwise than the others is in LESSONS.

Seeded, resumable (a killed run goes on from its last checkpoint) and device-agnostic: bf16 autocast
where the hardware multiplies bf16, float32 elsewhere. Raising or lowering `--tokens` of a running
plateau is allowed: the learning rate falls over the last 40 % of whatever the budget is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tools.reference.corpus import SourceFile, corpus_hash, read_corpus
from tests.tools.reference.lessons import (
    EMBEDDED,
    LESSONS,
    VOCAB_SIZE,
    Size,
    model_config,
    taught_domains,
)
from tests.tools.reference.muon import orthogonalized_step

END_OF_TEXT = "<|endoftext|>"
SEQUENCE_LENGTH = 512
SEQUENCES_PER_STEP = 12
MUON_LR, ADAM_LR = 0.02, 3e-3
WARMUP_STEPS = 40
NUM_RESPONSES, RESPONSE_PROMPT_LENGTH, RESPONSE_BATCH = 1024, 160, 64
DECAY_SHARE = 0.4
SAVE_EVERY_S = 120.0
MIN_TIMED_STEPS = 5  # the first ones are slow


def train_tokenizer(
    work_dir: Path, vocab_size: int = VOCAB_SIZE, corpus: Path | None = None
) -> None:
    """A byte-level BPE of so many tokens, trained on the training part only.

    corpus: a folder of sources; None: this Python's library
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = read_corpus() if corpus is None else read_corpus(corpus)
    texts = [source.text for source in sources if not source.is_held_out]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(work_dir / "tokenizer")
    _encode_corpus(fast, sources, work_dir)


def _encode_corpus(
    tokenizer: PreTrainedTokenizerFast, sources: Sequence[SourceFile], work_dir: Path
) -> None:
    parts: dict[str, list[int]] = {"train": [], "held_out": []}
    parts |= {f"train-{domain}": [] for domain in taught_domains()}
    for source in sources:
        ids = [0, *tokenizer(source.text)["input_ids"]]
        parts["held_out" if source.is_held_out else "train"] += ids
        if not source.is_held_out and source.domain in taught_domains():
            parts[f"train-{source.domain}"] += ids
    for name, ids in parts.items():
        np.save(work_dir / f"{name}.npy", np.array(ids, dtype=np.uint16), allow_pickle=False)
    summary = {
        "corpus_sha256": corpus_hash(list(sources)),
        "num_files": len(sources),
        "num_tokens": {name: len(ids) for name, ids in parts.items()},
    }
    (work_dir / "corpus.json").write_text(json.dumps(summary, indent=1))
    print(summary)


def write_responses(
    work_dir: Path,
    device: torch.device,
    size: Size = EMBEDDED,
    until: float = math.inf,
    number: int | None = None,
) -> bool:
    """The target's greedy text after beginnings of training windows: (NUM_RESPONSES, length).

    Every finished batch is kept. False where `until` (of time.monotonic) came first.
    """
    number = number or NUM_RESPONSES
    target = load_trained("target", work_dir, device, size)
    tokens = np.load(work_dir / "train.npy", allow_pickle=False)
    starts = np.random.default_rng(1).integers(0, len(tokens) - SEQUENCE_LENGTH, number)
    parts = [work_dir / f"responses-{at}.npy" for at in range(0, number, RESPONSE_BATCH)]
    for index, part in enumerate(parts):
        if part.exists():
            continue
        if time.monotonic() > until:
            return False
        at = index * RESPONSE_BATCH
        prompts = np.stack(
            [tokens[s : s + RESPONSE_PROMPT_LENGTH] for s in starts[at : at + RESPONSE_BATCH]]
        )
        with _autocast(device), torch.inference_mode():
            rows = target.generate(
                torch.from_numpy(prompts.astype(np.int64)).to(device),
                do_sample=False,
                max_new_tokens=SEQUENCE_LENGTH - RESPONSE_PROMPT_LENGTH,
                min_new_tokens=SEQUENCE_LENGTH - RESPONSE_PROMPT_LENGTH,
            ).cpu()
        beside = part.with_suffix(".tmp.npy")
        np.save(beside, rows.numpy().astype(np.uint16), allow_pickle=False)
        os.replace(beside, part)
        print(f"responses {at + len(rows)}/{number}", flush=True)
    responses = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
    np.save(work_dir / "responses.npy", responses, allow_pickle=False)
    for part in parts:
        part.unlink()
    return True


class TrainingRun:
    """One model on its way: weights, optimizer state and position, saved as safetensors."""

    def __init__(
        self,
        name: str,
        work_dir: Path,
        max_tokens: int,
        device: torch.device,
        size: Size = EMBEDDED,
        max_seconds: float | None = None,
        sequences_per_step: int | None = None,
    ) -> None:
        """max_seconds: of training in all calls together; the tokens are then those that fit."""
        torch.manual_seed(0)
        self.name, self.work_dir, self.device = name, work_dir, device
        self.size, self.max_seconds = size, max_seconds
        self.width = sequences_per_step or SEQUENCES_PER_STEP
        self.model = LlamaForCausalLM(model_config(name, size)).to(device)
        self.teacher = None if name == "target" else load_trained("target", work_dir, device, size)
        if self.teacher is not None:
            _start_from(self.model, self.teacher, size.layers_of(name))
        self.stacks = _matrices_by_shape(self.model)
        in_stacks = {id(p) for stack in self.stacks for p in stack}
        rest = [p for p in self.model.parameters() if id(p) not in in_stacks]
        self.adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
        self.momenta = [torch.zeros((len(s), *s[0].shape), device=device) for s in self.stacks]
        domain = None if name == "target" else LESSONS[name].domain
        part = "train" if domain is None else f"train-{domain}"
        self.tokens = np.load(work_dir / f"{part}.npy", allow_pickle=False)
        self.responses = None
        if self.teacher is not None and domain is None:
            self.responses = np.load(work_dir / "responses.npy", allow_pickle=False)
        self.num_steps = max_tokens // (SEQUENCE_LENGTH * self.width)
        self.step = 0
        self.trained_s = 0.0
        self._resume()
        self._fit_budget()

    @property
    def state_path(self) -> Path:
        """Where the run is saved, and resumed from."""
        return self.work_dir / f"{self.name}-state.safetensors"

    def _resume(self) -> None:
        if not self.state_path.exists():
            return
        state = load_file(self.state_path)
        self.step = int(state.pop("step"))
        self.trained_s = float(state.pop("trained_s"))
        self.model.load_state_dict(
            {k[6:]: v for k, v in state.items() if k.startswith("model.")}, strict=False
        )
        self.momenta = [state[f"momentum.{i}"].to(self.device) for i in range(len(self.momenta))]
        for i, parameter in enumerate(self.adam.param_groups[0]["params"]):
            if self.step == 0:  # stopped before the optimizer had a state
                break
            self.adam.state[parameter] = {
                key: state[f"adam.{i}.{key}"].to(self.device) for key in ("exp_avg", "exp_avg_sq")
            } | {"step": state[f"adam.{i}.step"]}
        print(f"resumed {self.name} at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state: dict[str, Tensor] = {
            "step": torch.tensor(self.step),
            "trained_s": torch.tensor(self.trained_s),
        }
        state |= {f"model.{k}": v for k, v in self.model.named_parameters()}
        state |= {f"momentum.{i}": m for i, m in enumerate(self.momenta)}
        for i, parameter in enumerate(self.adam.param_groups[0]["params"]):
            state |= {f"adam.{i}.{k}": v for k, v in self.adam.state[parameter].items()}
        beside = self.state_path.with_suffix(".tmp")
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, beside)
        os.replace(beside, self.state_path)

    def batch(self, step: int) -> Tensor:
        """(sequences a step, SEQUENCE_LENGTH) int64; a function of the step alone."""
        num_windows = (len(self.tokens) - 1) // SEQUENCE_LENGTH
        at = step * self.width
        rows = []
        for i in range(at, at + self.width):
            epoch, index = divmod(i, num_windows)
            order = np.random.default_rng(epoch).permutation(num_windows)
            # Each epoch cuts its windows elsewhere, so that no token is always a first one.
            start = int(order[index]) * SEQUENCE_LENGTH + (epoch * 131) % SEQUENCE_LENGTH
            start = min(start, len(self.tokens) - SEQUENCE_LENGTH)
            rows.append(self._window(i, start).astype(np.int64))
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _window(self, i: int, start: int) -> NDArray[np.uint16]:
        """Window i: of the corpus, or for a draft three of four of the target's own text."""
        if self.responses is not None and i % 4 != 0:
            row: NDArray[np.uint16] = self.responses[(i - i // 4 - 1) % len(self.responses)]
            return row
        window: NDArray[np.uint16] = self.tokens[start : start + SEQUENCE_LENGTH]
        return window

    def loss(self, ids: Tensor) -> Tensor:
        """Cross entropy: with the text for the target, with the target's choices for the draft."""
        with _autocast(self.device):
            logits = self.model(input_ids=ids).logits
            if self.teacher is None:
                flat = logits[:, :-1].reshape(-1, self.size.vocab_size).float()
                return nn.functional.cross_entropy(flat, ids[:, 1:].reshape(-1))
            with torch.no_grad():
                wanted = (
                    self.teacher(input_ids=ids).logits.reshape(-1, self.size.vocab_size).float()
                )
        flat = logits.reshape(-1, self.size.vocab_size).float()
        return nn.functional.cross_entropy(flat, _softened(wanted))

    def _fit_budget(self) -> None:
        """Set the number of steps to those that fit into the time, by those done so far."""
        if self.max_seconds is not None and self.step >= MIN_TIMED_STEPS:
            self.num_steps = round(self.step * self.max_seconds / self.trained_s)

    def train(self, until: float = math.inf) -> bool:
        """Go on from the last state to the end of the budget, saving every SAVE_EVERY_S.

        False where `until` (of time.monotonic) came first: the state is saved, for another call.
        """
        started, saved = time.monotonic(), time.monotonic()
        trained_before, first_step = self.trained_s, self.step
        running = math.nan
        while self.step < self.num_steps and time.monotonic() < until:
            loss = self.loss(self.batch(self.step))
            torch.autograd.backward(loss)
            self._update(learning_rate_scale(self.step, self.num_steps))
            self.step += 1
            now = time.monotonic()
            self.trained_s = trained_before + now - started
            self._fit_budget()
            value = float(loss.detach())
            running = value if math.isnan(running) else 0.95 * running + 0.05 * value
            if self.step % 20 == 0:
                per_s = (self.step - first_step) * self.width * SEQUENCE_LENGTH
                rate = per_s / (now - started)
                print(
                    f"{self.name} step {self.step}/{self.num_steps} loss {running:.3f} "
                    f"{rate:.0f} tokens/s {self.trained_s:.0f} s",
                    flush=True,
                )
            if now - saved > SAVE_EVERY_S:
                self.save()
                saved = now
        self.save()
        return self.step >= self.num_steps

    def _update(self, scale: float) -> None:
        for stack, momentum in zip(self.stacks, self.momenta, strict=True):
            orthogonalized_step(stack, momentum, lr=MUON_LR * scale)
        self.adam.param_groups[0]["lr"] = ADAM_LR * scale
        self.adam.step()
        self.model.zero_grad(set_to_none=True)


def _softened(target_logits: Tensor) -> Tensor:
    """What the draft imitates: half the target's distribution, half its argmax.

    A greedy round is accepted or not by the argmax alone. (rows, vocab) float32, in and out.
    """
    wanted = target_logits.softmax(-1).mul_(0.5)
    rows = torch.arange(len(wanted), device=wanted.device)
    wanted[rows, target_logits.argmax(-1)] += 0.5
    return wanted


def learning_rate_scale(step: int, num_steps: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last DECAY_SHARE of the steps."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    left = (num_steps - step) / max(1.0, DECAY_SHARE * num_steps)
    return min(warm, 1.0, left)


def _matrices_by_shape(model: nn.Module) -> list[list[nn.Parameter]]:
    stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "layers" in name:
            stacks.setdefault(tuple(parameter.shape), []).append(parameter)
    return list(stacks.values())


def _autocast(device: torch.device) -> AbstractContextManager[None]:
    has_bf16 = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16)


def load_trained(
    name: str, work_dir: Path, device: torch.device, size: Size = EMBEDDED
) -> LlamaForCausalLM:
    """A model of the pair as its last state in `work_dir` has it, float32, in eval mode."""
    model = LlamaForCausalLM(model_config(name, size))
    state = load_file(work_dir / f"{name}-state.safetensors")
    model.load_state_dict(
        {k[6:]: v for k, v in state.items() if k.startswith("model.")}, strict=False
    )
    return model.to(device).eval()


def _start_from(draft: LlamaForCausalLM, target: LlamaForCausalLM, layers: tuple[int, ...]) -> None:
    draft.model.embed_tokens.load_state_dict(target.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())
    for layer, source in zip(draft.model.layers, layers, strict=True):
        layer.load_state_dict(target.model.layers[source].state_dict())


def main() -> None:
    """Train one part of the pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["tokenizer", "target", "responses", *LESSONS])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=9_000_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    if options.what == "tokenizer":
        train_tokenizer(options.work_dir)
    elif options.what == "responses":
        write_responses(options.work_dir, device)
    else:
        TrainingRun(options.what, options.work_dir, options.tokens, device).train()


if __name__ == "__main__":
    main()
