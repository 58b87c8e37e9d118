"""The targets that answer prompts: a model in this process, or one that vLLM serves.

A target that needs several GPUs or machines is served by an engine; what is captured from it is
token ids alone. Its log-probabilities would be those before temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from quantdraft.checkpoints.checkpoint import open_checkpoint, stored_end_token_ids
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.tensors.devices import pick_device, pick_dtype
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.checkpoints.weights import weight_files
from quantdraft.common.files import file_sha256
from quantdraft.engines.measured import Request
from quantdraft.engines.vllm.client import VllmClient
from quantdraft.measure.generation import GeneratedTokens, generate
from quantdraft.measure.settings import CaptureSettings
from quantdraft.record.provenance import weights_sha256


class Answerer(Protocol):
    """A target that answers batches of prompts."""

    @property
    def description(self) -> dict[str, Any]:
        """Return what a traffic header says of it."""

    @property
    def num_positions(self) -> int | None:
        """Return the most tokens of a prompt and its answer together; None: there is no limit."""

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> Sequence[GeneratedTokens]:
        """Return one answer to each prompt's token ids."""


class OwnTarget:
    """A model of the transformers library, in this process."""

    def __init__(self, settings: CaptureSettings, path: Path) -> None:
        self.settings, self.path = settings, path
        on = pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, on)
        self.model = load_model(path, dtype, on, settings.trust_remote_code)

    @property
    def description(self) -> dict[str, Any]:
        """Name, revision, float type, hash of the weights; and whether code of its own was run."""
        described = {
            "name": self.settings.target,
            "revision": open_checkpoint(self.path).revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights_sha256": _weights_sha256(self.path),
        }
        return described | ({"trust_remote_code": True} if self.settings.trust_remote_code else {})

    @property
    def num_positions(self) -> int | None:
        """The positions by the model's config."""
        return num_positions(self.model.config.get_text_config().to_dict())

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> Sequence[GeneratedTokens]:
        """Generate answers to all prompts in one batch."""
        given = self.settings
        return generate(self.model, prompts, given.sampling, given.max_new_tokens, seeds)


class ServedTarget:
    """A target behind a vLLM server's completions by token ids; raises EngineError."""

    def __init__(self, settings: CaptureSettings, path: Path, url: str) -> None:
        self.settings, self.path, self.client = settings, path, VllmClient(url)
        self.num_positions = self.client.num_positions()
        self.ends = stored_end_token_ids(open_checkpoint(path))

    @property
    def description(self) -> dict[str, Any]:
        """The tokenizer's source, and what the server says of itself; there are no weights."""
        return {
            "name": self.settings.target,
            "revision": open_checkpoint(self.path).revision,
            "dtype": None,
            "weights_sha256": None,
            "served": {"engine": f"vllm {self.client.version()}", "model": self.client.model},
        }

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> Sequence[GeneratedTokens]:
        """Ask all prompts at once: the server makes its own batches of them."""
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            return list(pool.map(self._answer, prompts, seeds))

    def _answer(self, prompt: Sequence[int], seed: int) -> GeneratedTokens:
        request = Request(
            prompt_token_ids=tuple(prompt),
            max_tokens=self.settings.max_new_tokens,
            sampling=self.settings.sampling,
            seed=seed,
            stop_token_ids=self.ends,
        )
        return GeneratedTokens(self.client.complete(request).token_ids, ())


def open_answerer(settings: CaptureSettings, path: Path) -> Answerer:
    """Load the target, or connect to the server that serves it.

    path: the directory of the target, or of its tokenizer
    """
    if settings.target_url is None:
        return OwnTarget(settings, path)
    return ServedTarget(settings, path, settings.target_url)


def _weights_sha256(path: Path) -> str:
    """Return one hash over the names and hashes of the files that hold the weights."""
    hashes = {}
    for name in weight_files(path):
        # The Hub's cache names a large file by its SHA-256; hashing 800 GB again takes long.
        cached = (path / name).resolve().name
        is_digest = len(cached) == 64 and set(cached) <= set("0123456789abcdef")
        hashes[name] = cached if is_digest else file_sha256(path / name)
    return weights_sha256(hashes)
