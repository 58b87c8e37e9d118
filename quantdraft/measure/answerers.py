"""The targets that answer prompts: a model in this process, or one that vLLM serves.

A target that needs several GPUs or machines is served by an engine; what is captured from it is
token ids alone. Its log-probabilities would be those before temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint, stored_end_token_ids
from quantdraft.checkpoints.configs import num_positions
from quantdraft.checkpoints.tensors.devices import pick_device, pick_dtype
from quantdraft.checkpoints.tensors.loading import load_model, require_loadable
from quantdraft.checkpoints.weights import weight_files
from quantdraft.common.files import file_sha256
from quantdraft.engines.measured import Request
from quantdraft.engines.native.model import NativeModel, decoder_fault, load_native
from quantdraft.engines.native.session import decoding_mode
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.engines.vllm.client import VllmClient
from quantdraft.errors import NoKernelError
from quantdraft.measure.continuous_batch import USUAL_ROWS, generate_in_turns
from quantdraft.measure.generation import GeneratedTokens, generate
from quantdraft.measure.settings import CaptureSettings
from quantdraft.record.provenance import weights_sha256

Progress = Callable[[int], None]  # is told how many more prompts have been answered
PREFILL_ROWS = (64, 256)  # usual lengths of prompts, for which kernels are chosen too
# Prompts for each row of a batch that are given to the native engine at once: the more, the fewer
# rows stand idle at the end; a killed run loses no more than these.
TURNS = 4
USUAL_BATCH = 8  # of transformers' modules, and of requests to a server, where nobody says


class Answerer(Protocol):
    """A target that answers batches of prompts."""

    @property
    def num_prompts(self) -> int:
        """Return how many prompts `answers` takes at a time."""

    @property
    def description(self) -> dict[str, Any]:
        """Return what a traffic header says of it."""

    @property
    def num_positions(self) -> int | None:
        """Return the most tokens of a prompt and its answer together; None: there is no limit."""

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], progress: Progress
    ) -> Sequence[GeneratedTokens]:
        """Return one answer to each prompt's token ids."""


class OwnTarget:
    """A model in this process: on the native engine, or as the transformers library's modules."""

    def __init__(self, settings: CaptureSettings, path: Path) -> None:
        self.settings, self.path = settings, path
        self.checkpoint = open_checkpoint(path)
        self.device = pick_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.native = self._load_native()
        if self.native is None:
            self.model = load_model(path, self.dtype, self.device, settings.trust_remote_code)

    @property
    def description(self) -> dict[str, Any]:
        """Name, revision, float type, hash of the weights; and whether code of its own was run."""
        described = {
            "name": self.settings.target,
            "revision": self.checkpoint.revision,
            "dtype": str(self.dtype).removeprefix("torch."),
            "weights_sha256": _weights_sha256(self.path),
        }
        return described | ({"trust_remote_code": True} if self.settings.trust_remote_code else {})

    @property
    def num_positions(self) -> int | None:
        """The positions by the model's config."""
        return num_positions(self.checkpoint.text_config)

    @property
    def num_prompts(self) -> int:
        """One batch; on the native engine several, so that a row which ends takes a next one."""
        given = self.settings.batch_size
        return given or USUAL_BATCH if self.native is None else TURNS * (given or USUAL_ROWS)

    def answers(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], progress: Progress
    ) -> Sequence[GeneratedTokens]:
        """Generate answers to all prompts."""
        given = self.settings
        if self.native is None:
            found = generate(self.model, prompts, given.sampling, given.max_new_tokens, seeds)
            progress(len(prompts))
            return found
        return generate_in_turns(
            self.native,
            prompts,
            given.sampling,
            given.max_new_tokens,
            seeds,
            batch_size=given.batch_size,
            mode=decoding_mode(self.native, self.device),
            progress=progress,
        )

    def _load_native(self) -> NativeModel | None:
        """Load the model on the project's decoder; None where its kernels might change a text.

        What cannot be exact is known before anything is loaded: kernels of a quantized format round
        their inputs, and in float32 near-ties fall as the sums of float32 say.
        """
        if self.settings.trust_remote_code:
            return None
        require_loadable(self.checkpoint)
        try:
            source = stored_weights(self.checkpoint)
            is_rounded = self.dtype == torch.float32 and bool(source.formats)
            if is_rounded or decoder_fault(source) is not None:
                return None
            rows = (self.settings.batch_size or USUAL_ROWS, *PREFILL_ROWS)
            native = load_native(source, self.dtype, self.device, rows)
        except NoKernelError:
            return None
        return native if native.is_exact or self.dtype != torch.float32 else None


class ServedTarget:
    """A target behind a vLLM server's completions by token ids; raises EngineError."""

    def __init__(self, settings: CaptureSettings, path: Path, url: str) -> None:
        self.settings, self.path, self.client = settings, path, VllmClient(url)
        self.num_positions = self.client.num_positions()
        self.ends = stored_end_token_ids(open_checkpoint(path))

    @property
    def num_prompts(self) -> int:
        """One batch."""
        return self.settings.batch_size or USUAL_BATCH

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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], progress: Progress
    ) -> Sequence[GeneratedTokens]:
        """Ask all prompts at once: the server makes its own batches of them."""
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            found = list(pool.map(self._answer, prompts, seeds))
        progress(len(prompts))
        return found

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
