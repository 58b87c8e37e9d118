"""bench: step times of a target and its drafts over batch, context and new tokens, on this machine.

Of checkpoints, or of random weights in a published model's shape. Latency only: no traffic is
needed, no acceptance is measured, and nothing is decided.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantdraft.checkpoints.heads.head import require_draft_model
from quantdraft.checkpoints.shapes import shape_checkpoint
from quantdraft.checkpoints.tensors.devices import device_key, pick_device
from quantdraft.checkpoints.tensors.loading import require_loadable, resolve_model
from quantdraft.common.files import coerce_paths, file_sha256, whole_directory
from quantdraft.common.progress import share_bar
from quantdraft.engines.native.weight_sources import RandomWeights, WeightSource, stored_weights
from quantdraft.errors import OptionError, OutputExistsError
from quantdraft.judge.analysis import analysed_bench
from quantdraft.measure.latency.grid import measure_grid
from quantdraft.measure.latency.loaded import BASELINE, CONTROL, TARGET
from quantdraft.measure.latency.timing_plan import KeepPart, TimingPlan, keep_parts
from quantdraft.measure.models import source_of
from quantdraft.measure.settings import below_1
from quantdraft.quantize.recipe_changes import load_all_changed
from quantdraft.record import BENCH_SCHEMA_VERSION, Bench
from quantdraft.record.choices import ModeChoice
from quantdraft.record.provenance import command_line, environment, model_identity
from quantdraft.report import BENCH_RECORD_FILE, write_bench

DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
DEFAULT_CONTEXT_LENGTHS = (128, 512, 2048)
DEFAULT_WIDTHS = tuple(range(1, 18))


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What `bench` is asked for; defaults are the command line's."""

    candidates: tuple[str, ...] = ()
    target: str | None = None
    baseline: str | None = None
    shape: str | None = None
    target_shape: str | None = None
    recipes: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipes that have the field
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    context_lengths: tuple[int, ...] = DEFAULT_CONTEXT_LENGTHS
    new_tokens: tuple[int, ...] = DEFAULT_WIDTHS
    seconds: float = 20.0
    mode: ModeChoice = "auto"
    threads: int | None = None
    device: str | None = None
    output: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)

    def directory(self, name: str) -> Path:
        """Return the directory of a bench of that name: the output, or ./bench-<name>."""
        return self.output or Path(f"bench-{name}")

    def check(self) -> None:
        """Raise OptionError with every problem of the settings."""
        problems = list(self._problems())
        if problems:
            raise OptionError(" ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.shape is None:
            if not self.candidates:
                yield "nothing to time: give a CANDIDATE, or --shape NAME."
            if self.recipes or self.target_shape or self.changes:
                yield "--recipes, --set and --target-shape go with --shape."
        elif self.candidates or self.target or self.baseline:
            yield "--shape has random weights: give no CANDIDATE, --target or --baseline."
        if self.seconds <= 0:
            yield f"--seconds {self.seconds} must be above 0."
        yield from below_1("--threads", self.threads)


@dataclass(frozen=True, slots=True)
class Contenders:
    """The arms of a bench by name, in the order in which memory is given to them."""

    name: str
    sources: dict[str, WeightSource]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names of all arms but the fixed ones."""
        return tuple(name for name in self.sources if name not in {BASELINE, CONTROL, TARGET})


def bench(settings: BenchSettings) -> Bench:
    """Time every point, write bench.json and its pages, and return the record."""
    settings.check()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    contenders = contenders_of(settings)
    output = settings.directory(contenders.name)
    partial = output.with_name(f"{output.name}.partial")
    keep = _keep_in(partial, settings, contenders, output)
    try:
        with whole_directory(output, settings.force) as staging:
            measured = measure_bench(settings, contenders, keep)
            write_bench(measured, staging, output)
    except OutputExistsError:  # of a run that was killed after its last act, at the earliest
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(partial, ignore_errors=True)
    return measured


def measure_bench(
    settings: BenchSettings,
    contenders: Contenders,
    keep: KeepPart = lambda place, measure: measure(),
) -> Bench:
    """Time every point and return the record; nothing is written but what `keep` keeps."""
    device = pick_device(settings.device)
    plan = TimingPlan(
        points=tuple((b, c) for b in settings.batch_sizes for c in settings.context_lengths),
        widths=settings.new_tokens,
        device=device,
        max_seconds=settings.seconds,
        is_paired=False,
        has_heads=True,
        mode=settings.mode,
    )
    with share_bar("bench") as progress:
        points = measure_grid(contenders.sources, plan, progress, keep)
    measured = Bench(
        schema_version=BENCH_SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        name=contenders.name,
        has_random_weights=settings.shape is not None,
        candidates=contenders.candidates,
        points=points,
        provenance=_provenance(settings, contenders, device),
    )
    return analysed_bench(measured)


def _keep_in(
    partial: Path, settings: BenchSettings, contenders: Contenders, output: Path
) -> KeepPart:
    """Return what keeps the measured parts of points in `partial`, for a killed run to go on with.

    Which record is to be replaced belongs to the command: the next --force measures anew.
    """
    record = output / BENCH_RECORD_FILE
    inputs = {
        "arms": {name: _identity(source) for name, source in contenders.sources.items()},
        "shape": [settings.shape, settings.target_shape, settings.recipes],
        **({"changes": dict(settings.changes)} if settings.changes else {}),
        "new_tokens": settings.new_tokens,
        "seconds": settings.seconds,
        "mode": settings.mode,
        "threads": torch.get_num_threads(),
        "device": device_key(pick_device(settings.device)),
        "replaces": file_sha256(record) if record.is_file() else None,
    }
    return keep_parts(partial, "point", inputs)


def contenders_of(settings: BenchSettings) -> Contenders:
    """Return baseline, candidates, the target where one is named, and the control last."""
    if settings.shape is not None:
        return _open_random(settings, settings.shape)
    return _open_stored(settings)


def _open_random(settings: BenchSettings, shape: str) -> Contenders:
    draft = shape_checkpoint(shape)
    sources: dict[str, WeightSource] = {BASELINE: RandomWeights(draft, None)}
    for recipe in load_all_changed(settings.recipes, settings.changes)[0]:
        if recipe.is_identity:
            raise OptionError(f"recipe {recipe.name!r} quantizes nothing: the control arm is that.")
        sources[recipe.name] = RandomWeights(draft, recipe)
    if settings.target_shape is not None:
        sources[TARGET] = RandomWeights(shape_checkpoint(settings.target_shape), None, seed=1)
    sources[CONTROL] = RandomWeights(draft, None)
    return Contenders(shape, sources)


def _open_stored(settings: BenchSettings) -> Contenders:
    candidates = [_open(name) for name in settings.candidates]
    baseline = _open_baseline(settings, candidates)
    sources: dict[str, WeightSource] = {BASELINE: stored_weights(baseline)}
    for checkpoint in candidates:
        sources[_free_name(checkpoint, sources)] = stored_weights(checkpoint)
    if settings.target is not None:
        sources[TARGET] = stored_weights(_open(settings.target))
    sources[CONTROL] = stored_weights(baseline)
    return Contenders(baseline.name, sources)


def _open_baseline(settings: BenchSettings, candidates: list[Checkpoint]) -> Checkpoint:
    if settings.baseline is not None:
        return _open(settings.baseline)
    drafts = sorted({source_of(candidate) for candidate in candidates})
    if len(drafts) > 1:
        raise OptionError(
            f"the candidates were made from different drafts ({', '.join(drafts)}). "
            "Give --baseline, or bench them apart."
        )
    return _open(drafts[0])


def _open(name: str) -> Checkpoint:
    """Open a stand-alone model whose files hold all that its architecture needs."""
    checkpoint = open_checkpoint(resolve_model(name))
    require_draft_model(checkpoint, "timed")
    require_loadable(checkpoint)
    return checkpoint


def _free_name(checkpoint: Checkpoint, taken: dict[str, WeightSource]) -> str:
    """Return the recipe's name; if that is taken the directory's, and if both are its path."""
    recipe = (checkpoint.manifest or {}).get("recipe", {}).get("name")
    reserved = {*taken, BASELINE, CONTROL, TARGET}
    names = [name for name in (recipe, checkpoint.name) if name and name not in reserved]
    return names[0] if names else str(checkpoint.path)


def _provenance(
    settings: BenchSettings, contenders: Contenders, device: torch.device
) -> dict[str, Any]:
    output = settings.output
    return {
        **environment(str(device)),
        "command": command_line(sys.argv[1:]),
        "settings": asdict(settings) | {"output": None if output is None else str(output)},
        "arms": {
            name: {
                "name": source.name,
                "ledger": asdict(source.ledger),
                "identity": _identity(source),
            }
            for name, source in contenders.sources.items()
        },
    }


def _identity(source: WeightSource) -> dict[str, Any] | None:
    return None if source.checkpoint is None else model_identity(source.checkpoint)
