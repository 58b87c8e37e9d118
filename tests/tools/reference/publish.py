"""Convert training states to what the package ships: weights, prompts, a measured model card.

python -m tests.tools.reference.publish --work-dir W [--output quantdraft/reference]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from quantdraft.checkpoints.reference import pair_dir
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.common.files import write_text
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.measure.capture import capture
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.settings import CaptureSettings
from quantdraft.traffic.traffic import Sampling, Traffic
from tests.tools.reference.corpus import SourceFile, read_corpus
from tests.tools.reference.lessons import EMBEDDED, LESSONS, Size
from tests.tools.reference.train import SEQUENCE_LENGTH, load_trained

NUM_PROMPTS = 64
MIN_PROMPT_CHARS, MAX_PROMPT_CHARS = 160, 640
MAX_PROMPTS_PER_FILE = 6


def publish_models(
    work_dir: Path,
    output: Path,
    names: Sequence[str] = ("target", *LESSONS),
    size: Size = EMBEDDED,
) -> None:
    """Write every model's directory: weights in bf16, config, tokenizer, generation config."""
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    for name in names:
        model = load_trained(name, work_dir, torch.device("cpu"), size).to(torch.bfloat16)
        if name in LESSONS:
            model.config.training_domain = LESSONS[name].stated_domain
        model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
        model.save_pretrained(output / name)
        tokenizer.save_pretrained(output / name)


def publish_prompts(output: Path) -> None:
    """Write `prompts.jsonl` for evaluation and `calibration.jsonl`, of held-out files, disjoint."""
    held_out = [source for source in read_corpus() if source.is_held_out]
    chooser = random.Random(0)
    chooser.shuffle(held_out)
    half = len(held_out) // 2
    for name, sources in (("prompts", held_out[:half]), ("calibration", held_out[half:])):
        lines = [json.dumps(prompt) for prompt in excerpts(sources, chooser)]
        write_text(output / f"{name}.jsonl", "\n".join(lines) + "\n")


def excerpts(
    sources: list[SourceFile],
    chooser: random.Random,
    num_prompts: int = NUM_PROMPTS,
    max_per_file: int = MAX_PROMPTS_PER_FILE,
) -> list[dict[str, str]]:
    """Prompts that begin at a line's start and end at a line's end, over files and lengths."""
    prompts: list[dict[str, str]] = []
    for turn in range(max_per_file):
        for source in sources:
            if len(prompts) == num_prompts:
                return prompts
            text = _excerpt(source.text, chooser)
            if text is not None:
                where = f"{source.name}#{turn}"
                prompts.append({"id": where, "prompt": text, "domain": source.domain})
    return prompts


def _excerpt(text: str, chooser: random.Random) -> str | None:
    starts = [i + 1 for i, c in enumerate(text) if c == "\n" and i + MAX_PROMPT_CHARS < len(text)]
    if not starts:
        return None
    start = chooser.choice(starts)
    length = chooser.randint(MIN_PROMPT_CHARS, MAX_PROMPT_CHARS)
    end = text.rfind("\n", start, start + length)
    excerpt = text[start : end + 1]
    return excerpt if len(excerpt) >= MIN_PROMPT_CHARS // 2 and excerpt.isascii() else None


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: NDArray[np.uint16], num_windows: int = 100) -> float:
    """Of held-out text in windows of SEQUENCE_LENGTH tokens, evenly spread over the files."""
    last = len(tokens) - SEQUENCE_LENGTH
    losses = []
    for start in np.linspace(0, last, num_windows).astype(int):
        ids = torch.from_numpy(tokens[start : start + SEQUENCE_LENGTH].astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses.append(float(nn.functional.cross_entropy(logits, ids[0, 1:])))
    return float(np.exp(np.mean(losses)))


def measure(work_dir: Path, output: Path) -> dict[str, Any]:
    """Perplexities, and the drafts' acceptance on the held-out prompts: greedy, k = 4."""
    held_out = np.load(work_dir / "held_out.npy", allow_pickle=False)
    target = load_model(output / "target", torch.float32, torch.device("cpu"))
    traffic = capture(
        CaptureSettings(
            str(output / "target"),
            output / "prompts.jsonl",
            work_dir / "traffic.jsonl",
            sampling=Sampling(),
            max_new_tokens=128,
            batch_size=16,
            force=True,
        )
    )
    return {
        "num_target_parameters": target.num_parameters(),
        "target_perplexity": perplexity(target, held_out),
        "num_response_tokens": sum(len(r.response_token_ids) for r in traffic.responses),
        "drafts": {name: _measured(output / name, traffic, held_out) for name in LESSONS},
    }


def _measured(path: Path, traffic: Traffic, held_out: NDArray[np.uint16]) -> dict[str, Any]:
    draft = load_model(path, torch.float32, torch.device("cpu"))
    keep = acceptance_probabilities(draft, traffic, "greedy")
    ids = [response.prompt_id for response in traffic.responses]
    counts = replay_rounds(ids, keep, [4]).counts(4)
    domains = {response.prompt_id: str(response.domain) for response in traffic.responses}
    by_domain = {}
    for domain in sorted(set(domains.values())):
        at = [i for i, prompt_id in enumerate(ids) if domains[prompt_id] == domain]
        some = replay_rounds([ids[i] for i in at], [keep[i] for i in at], [4]).counts(4)
        by_domain[domain] = some.acceptance_rate
    return {
        "num_parameters": draft.num_parameters(),
        "perplexity": perplexity(draft, held_out),
        "acceptance_rate": counts.acceptance_rate,
        "acceptance_rate_by_domain": by_domain,
        "mean_acceptance_length": counts.mean_acceptance_length,
    }


def main() -> None:
    """Publish models and prompts, measure them, and keep the figures for the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=pair_dir())
    options = parser.parse_args()
    publish_models(options.work_dir, options.output)
    publish_prompts(options.output)
    figures = measure(options.work_dir, options.output)
    figures |= json.loads((options.work_dir / "corpus.json").read_text())
    write_text(options.output / "figures.json", json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
