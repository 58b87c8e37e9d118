"""Replays that are kept by content: one replay of a baseline serves every recipe on its traffic.

One file a replay, named by the hash of all that its numbers come from. A file that cannot be
verified is not used; where a directory cannot be written, the replay is kept with its run alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantdraft.checkpoints.tensors.devices import device_key
from quantdraft.common.files import cache_dir, file_sha256
from quantdraft.common.progress import say
from quantdraft.common.resume import STAGES_DIR, key_of
from quantdraft.errors import OutputError, disk_reason
from quantdraft.measure.probabilities import FileStore, open_store_at
from quantdraft.measure.settings import EvaluateSettings
from quantdraft.measure.subject import Subject
from quantdraft.record.provenance import cpu_name, device_name, model_identity, package_versions
from quantdraft.traffic.responses import Response

VARIABLE = "QUANTDRAFT_REPLAYS"  # the directory of kept replays; empty: none
SUBDIRECTORY = "replays"  # of the user's cache
MAX_BYTES = 2**30  # of all kept replays, at 8 bytes a response token
PACKAGE = Path(__file__).parent.parent


def shared_replays(settings: EvaluateSettings) -> Path | None:
    """Return where the replay of a run's baseline is kept for other runs; None: nowhere."""
    return (kept_replays_dir() if settings.keeps_replays else None) or settings.sweep_replays


def kept_replays_dir() -> Path | None:
    """Return the user's directory of kept replays; None where none is wanted, or there is no home.

    `QUANTDRAFT_REPLAYS` names another one, or is empty for none.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given) if given else None
    try:
        return cache_dir() / SUBDIRECTORY
    except ValueError:
        return None


@contextlib.contextmanager
def open_replay(
    subject: Subject, arm: str, directory: Path | None, num_tokens: Sequence[int]
) -> Iterator[FileStore]:
    """Open the numbers of one arm: what an equal replay left, or an empty file to fill.

    directory: of replays that runs share; None: the numbers are kept with the run
    num_tokens: of every response
    """
    facts = replay_facts(subject, arm)
    own = subject.run_dir / STAGES_DIR / f"keep-{arm}.f64"
    with contextlib.ExitStack() as opened:
        store = None
        if directory is not None:
            path = directory / f"{key_of(facts)[:32]}.f64"
            try:
                store = opened.enter_context(open_store_at(path, facts, num_tokens))
            except OutputError as error:
                cause = error.__cause__
                reason = disk_reason(cause) if isinstance(cause, OSError) else error
                say(f"'{directory}' cannot be written ({reason}): no replay is kept there")
            else:
                _make_room(path)
                if store.is_whole:
                    say(f"{arm}'s replay: taken from '{path}'")
        yield store or opened.enter_context(open_store_at(own, facts, num_tokens))


def replay_facts(subject: Subject, arm: str) -> dict[str, Any]:
    """Return all that the numbers of a replay come from, as JSON values; no k is among it."""
    is_drawn = subject.rule in ("rejection", "exact_match")
    sampling = {name: each for name, each in asdict(subject.sampling).items() if name != "seed"}
    return {
        "draft": model_identity(subject.draft(arm))["sha256"],
        "texts": _texts_sha256(subject.traffic.responses, has_logprobs=subject.rule == "rejection"),
        "rule": subject.rule,
        "sampling": sampling if is_drawn else None,
        "dtype": str(subject.dtype),
        "device": [device_key(subject.device), device_name(str(subject.device)), cpu_name()],
        "num_threads": torch.get_num_threads(),
        "versions": package_versions(),
        "code": _code_sha256(),
    }


def _texts_sha256(responses: Sequence[Response], *, has_logprobs: bool) -> str:
    """Return one hash over the token ids of all prompts and responses, in their order."""
    total = hashlib.sha256()
    for each in responses:
        for ids in (each.prompt_token_ids, each.response_token_ids):
            total.update(b"%d " % len(ids) + np.asarray(ids, np.int64).tobytes())
        if has_logprobs and each.logprobs is not None:
            total.update(np.asarray(each.logprobs, np.float64).tobytes())
    return total.hexdigest()


@cache
def _code_sha256() -> str:
    """Return one hash over this package's code: it changes between releases too."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{path.relative_to(PACKAGE)} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def _make_room(path: Path) -> None:
    """Mark a file as used now, and remove those that were used longest ago until all fit."""
    with contextlib.suppress(OSError):
        os.utime(path)
        stats = {file: file.stat() for file in path.parent.glob("*.f64")}
        num_bytes = sum(found.st_size for found in stats.values())
        for file in sorted(stats, key=lambda file: stats[file].st_mtime_ns):
            if num_bytes <= MAX_BYTES:
                return
            if file != path and _remove_unused(file):
                num_bytes -= stats[file].st_size


def _remove_unused(file: Path) -> bool:
    """Remove a file that no process is filling or reading; return whether it is gone."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink()
        return True
    return False
