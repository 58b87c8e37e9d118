"""A tiny real pair, made once a session: a target, and a draft that is the target with noise."""

from __future__ import annotations

import functools
import gc
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Kernels that tests choose are remembered for the session, and neither read nor change the user's.
os.environ["QUANTDRAFT_CHOICES"] = tempfile.mkdtemp(prefix="quantdraft-choices-")

# A run's replays are its own; tests of what is kept between runs name a directory.
os.environ["QUANTDRAFT_REPLAYS"] = ""

VOCAB_SIZE = 512


@dataclass(frozen=True)
class Pair:
    """Directories of a target, of a draft that often agrees with it, and a file of prompts."""

    target: Path
    draft: Path
    prompts: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip, and say so, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Llama, hidden 256, 2 layers, untrained: its text has no sense, its arithmetic is real."""
    root = tmp_path_factory.mktemp("pair")
    save_tokenizer(root / "target")
    save_tokenizer(root / "draft")
    save_target(root / "target", seed=0)
    save_noisy(root / "target", root / "draft", noise=0.06)
    write_prompts(root / "prompts.jsonl", 12)
    return Pair(root / "target", root / "draft", root / "prompts.jsonl")


@pytest.fixture(autouse=True, scope="module")
def frozen_heap() -> None:
    """What the imports left is not walked through at every collection: timing collects often."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials, passes before a step and the machine's limits are few: how fast is not the point."""
    from quantdraft.engines.kernels import book, choice
    from quantdraft.measure.latency import loaded, opened, roofline

    for module in (book, choice, loaded):
        monkeypatch.setattr(module, "NUM_VOTES", 1)
    monkeypatch.setattr(loaded, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(opened, "NUM_REHEARSALS", 1)
    monkeypatch.setattr(opened, "NUM_IN_A_ROW", 1)
    monkeypatch.setattr(roofline, "BUFFER_BYTES", {"cpu": 16 << 20})
    monkeypatch.setattr(roofline, "NUM_PASSES", 3)
    monkeypatch.setattr(roofline, "MAX_MATRIX_S", 0.02)


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation ends with its record: its pages are drawn where a test reads them."""
    from quantdraft.workflows import evaluate

    monkeypatch.setattr(evaluate, "write_report", lambda evaluation, run_dir: None)


@pytest.fixture(scope="session")
def architecture_pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Path]]:
    """Return what gives the target and the draft of a tiny pair by its architecture's name.

    The directories are made once a session: tests read them and never write to them.
    """
    root = tmp_path_factory.mktemp("architectures")

    @functools.cache
    def pair(name: str) -> tuple[Path, Path]:
        from tests.architectures import save_pair

        return save_pair(name, root / name)

    return pair


def save_tokenizer(directory: Path, order: int = 1) -> None:
    """A byte-level tokenizer of VOCAB_SIZE tokens; `order` -1 numbers them backwards."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = [f"<unused{i}>" for i in range(VOCAB_SIZE - len(alphabet) - 1)]
    names = ["<end>", *[*alphabet, *filler][::order]]
    tokenizer = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(directory)


def save_target(directory: Path, seed: int) -> None:
    """Weights wide enough apart that argmaxes are no near-ties."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def save_noisy(source: Path, directory: Path, noise: float) -> None:
    """The source with relative noise on every weight: a draft that agrees in part."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = noise * parameter.std() if parameter.ndim > 1 else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    model.to(torch.bfloat16).save_pretrained(directory)


def write_prompts(path: Path, num_prompts: int) -> None:
    """Prompts of different lengths and two domains."""
    import json

    with open(path, "w", encoding="utf-8") as file:
        for index in range(num_prompts):
            prompt = f"prompt {index}: " + "def f(x): return x\n" * (1 + index % 3)
            domain = "even" if index % 2 == 0 else "odd"
            file.write(json.dumps({"prompt": prompt, "domain": domain}) + "\n")


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the library notes where no progress is shown."""
    caplog.set_level(logging.INFO, logger="quantdraft")
    return caplog
