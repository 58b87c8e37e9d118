"""distill: train a draft to be accepted, through the rounding of a recipe, and write it whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from quantdraft.checkpoints.checkpoint import (
    MANIFEST_FILE,
    MANIFEST_SCHEMA_VERSION,
    Checkpoint,
    open_checkpoint,
    require_tokenizer,
)
from quantdraft.checkpoints.heads.head import require_draft_model
from quantdraft.checkpoints.links import require_own_files
from quantdraft.checkpoints.pairing import require_compatible
from quantdraft.checkpoints.tensors.devices import device_key, has_bfloat16, pick_device, pick_dtype
from quantdraft.checkpoints.tensors.loading import (
    load_model,
    load_tokenizer,
    require_loadable,
    resolve_model,
)
from quantdraft.checkpoints.weights import FLOAT_NAMES
from quantdraft.common.files import (
    coerce_paths,
    require_apart,
    require_outside,
    whole_directory,
    write_json,
)
from quantdraft.common.locks import sole_writer
from quantdraft.common.progress import bar, say, share_bar, step
from quantdraft.common.resume import key_of
from quantdraft.errors import CheckpointError, OptionError, OutputExistsError, TrafficError
from quantdraft.judge.acceptance import replay_rounds
from quantdraft.judge.round_weights import rounds_saved
from quantdraft.measure.filters import tell_reading, without_overlong, without_repeats
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.measure.run_traffic import default_rule, with_given_sampling
from quantdraft.measure.settings import TrafficSettings
from quantdraft.quantize.apply import write_candidate
from quantdraft.quantize.fitting import fit_recipe
from quantdraft.quantize.recipe import Recipe
from quantdraft.quantize.training.cutting import cut_layers, num_layers_of, spread_layers
from quantdraft.quantize.training.examples import Example, make_examples
from quantdraft.quantize.training.room import require_training_room, tokens_a_pass
from quantdraft.quantize.training.settings import TrainingSettings
from quantdraft.quantize.training.state import (
    BEST_FILE,
    STATE_FILE,
    Look,
    Position,
    read_tensors_of,
    state_key,
)
from quantdraft.quantize.training.target_rows import TargetStore, describe, target_rows
from quantdraft.quantize.training.through_rounding import require_trainable, train_through
from quantdraft.quantize.training.trained_files import write_floats
from quantdraft.quantize.training.trainer import Lessons, Trainer, weights_once
from quantdraft.record import AcceptanceRule
from quantdraft.record.choices import DtypeChoice
from quantdraft.record.provenance import directory_sha256, environment, model_identity
from quantdraft.record.wording import counted
from quantdraft.traffic.jsonl import pick_items
from quantdraft.traffic.parts import (
    HALF,
    Part,
    TrainingParts,
    conversation_of,
    place_of,
    split_part,
    training_parts,
)
from quantdraft.traffic.traffic import Traffic, read_traffic

# What is written is replayed again: the most by which its acceptance rate may differ from what was
# trained. Kernels that add in another order turn near-ties; another weight turns many more.
MAX_DIFFERENCE = 0.02


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """What `distill` is asked for; defaults are the command line's."""

    output: Path
    traffic: TrafficSettings
    draft: str | None = None  # None: cut from the target
    target: str | None = None
    recipe: Recipe | None = None  # None: the floats are trained
    training: TrainingSettings = field(default_factory=TrainingSettings)
    layers: tuple[int, ...] | int | None = None  # of the target: these, or so many
    share: float | None = None  # of the conversations that is seen; None: as `apply` takes it
    device: str | None = None
    dtype: DtypeChoice = "auto"
    threads: int | None = None
    work: Path | None = None  # None: <output>.training, removed at the end
    force: bool = False

    def __post_init__(self) -> None:
        coerce_paths(self)

    @property
    def work_dir(self) -> Path:
        """Where the training is kept until it ends."""
        return self.work or self.output.with_name(f"{self.output.name}.training")

    def check(self) -> None:
        """Raise OptionError with every problem of the settings."""
        if problems := [*self.training.problems(), *self._misfits()]:
            raise OptionError(" ".join(problems))

    def _misfits(self) -> Iterator[str]:
        if (self.draft is None) == (self.layers is None):
            yield "give either --draft, or --layers or --init-layers to cut one from the target."
        if self.layers is not None and self.target is None:
            yield "--layers and --init-layers need --target: it is what the draft is cut from."
        if self.training.needs_target and self.target is None:
            yield (
                f"--loss {self.training.loss} needs --target: it compares distributions. "
                "--loss ce learns from a log alone."
            )
        if self.share is not None and not 0 < self.share <= 1:
            yield f"--share {self.share:g} must lie above 0 and at most at 1."
        if self.dtype == "float16":
            yield "--dtype float16 trains badly: gradients vanish in it. Use bfloat16 or float32."


@dataclass(frozen=True, slots=True)
class _Models:
    """The opened models of a training."""

    draft: Checkpoint
    target: Checkpoint | None
    cut_from: tuple[int, ...] | None  # the target's layers that the draft has


@dataclass(frozen=True, slots=True)
class _Seen:
    """What of the traffic is trained on and chosen by, and what the manifest says of it."""

    training: Traffic
    selection: Traffic
    record: dict[str, Any]


def distill(
    settings: DistillSettings,
    progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Train a draft, write it to `settings.output`, and return it.

    The output appears whole or not at all. A killed run goes on from its last state when the same
    settings are given. Raises a QuantDraftError, one line.
    """
    settings.check()
    report = progress or (lambda message: None)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.output.exists() and not settings.force:
        raise OutputExistsError(
            f"output '{settings.output}' exists. Give another --output, or --force to replace it."
        )
    device = pick_device(settings.device)
    require_apart(settings.output, settings.work_dir, "what is kept of the training")
    with sole_writer(settings.work_dir, is_inside=True):
        models = _open_models(settings)
        recipe = settings.recipe
        if recipe is not None:
            require_trainable(recipe)
            recipe = fit_recipe(recipe, models.draft, None)
        seen = _read_seen(settings, models)
        made = _train(settings, models, recipe, seen, device, report)
        for name in (STATE_FILE, BEST_FILE):  # the distributions stay, for another training
            (settings.work_dir / name).unlink()
    if settings.work is None:
        shutil.rmtree(settings.work_dir, ignore_errors=True)
    return made


def _open_models(settings: DistillSettings) -> _Models:
    target = layers = None
    if settings.target is not None:
        target = open_checkpoint(resolve_model(settings.target))
        require_loadable(target)
    if settings.draft is not None:
        draft = open_checkpoint(resolve_model(settings.draft))
    else:
        assert target is not None  # `check` asks for it
        layers = _chosen_layers(settings, target)
        draft = _cut(settings, target, layers)
    require_outside(settings.output, draft.path, "the draft")
    require_own_files(draft.path)
    require_draft_model(draft, "trained")
    require_tokenizer(draft)
    require_loadable(draft)
    if draft.quantization is not None:
        raise CheckpointError(
            f"'{draft.path}' is quantized. Train the full-precision draft; --recipe rounds it."
        )
    if target is not None:
        require_compatible(target.path, draft.path)
    return _Models(draft, target, layers)


def _chosen_layers(settings: DistillSettings, target: Checkpoint) -> tuple[int, ...]:
    if isinstance(settings.layers, int):
        return spread_layers(settings.layers, num_layers_of(target))
    assert settings.layers is not None
    return settings.layers


def _cut(settings: DistillSettings, target: Checkpoint, layers: tuple[int, ...]) -> Checkpoint:
    """Return the draft of some of the target's layers, cut once a training."""
    name = f"cut-{key_of({'of': model_identity(target)['sha256'], 'layers': layers})[:12]}"
    directory = settings.work_dir / name
    if not directory.exists():
        with whole_directory(directory) as staging:
            cut_layers(target, layers, staging)
    return open_checkpoint(directory)


def _read_seen(settings: DistillSettings, models: _Models) -> _Seen:
    """Return what may be seen of the traffic: of a file of `capture` or a log one half, by hash."""
    path = settings.traffic.traffic_path
    assert path is not None  # the command asks for it
    tokenizer = load_tokenizer((models.target or models.draft).path)
    traffic = read_traffic(path, tokenizer, settings.traffic.read)
    traffic = with_given_sampling(traffic, settings.traffic, settings.training.seed)
    tell_reading(traffic)
    written = split_part(path, traffic.sha256) if settings.share is None else None
    share = 1.0 if written is not None else HALF if settings.share is None else settings.share
    parts = training_parts(traffic.responses, share, traffic.sha256)
    if parts is None:
        raise TrafficError(
            f"'{path}' has too few conversations to train on some, choose by others and judge on "
            "the rest: 3 are the least, and hundreds are useful."
        )
    _tell_parts(path, parts)
    chosen, judged = (
        without_repeats(without_overlong(_of_part(traffic, part), (models.draft, models.target)))
        for part in (parts.training, parts.selection)
    )
    return _Seen(chosen, judged, _seen_record(path, traffic, parts, written, chosen, judged))


def _of_part(traffic: Traffic, part: Part) -> Traffic:
    places = (place_of(conversation_of(each)) for each in traffic.responses)
    kept = [index for index, place in enumerate(places) if part.holds(place)]
    return replace(traffic, responses=pick_items(traffic.responses, kept))


def _tell_parts(path: Path, parts: TrainingParts) -> None:
    rest = "none is left to judge on: judge on another file"
    if parts.judging is not None:
        number = counted(parts.judging.num_conversations, "other")
        rest = f"the {number} are left for `evaluate --traffic` of the same file"
    say(
        f"of '{path}', {counted(parts.training.num_conversations, 'conversation')} are trained on "
        f"and {parts.selection.num_conversations:,} chosen by; {rest}"
    )


def _seen_record(
    path: Path,
    traffic: Traffic,
    parts: TrainingParts,
    written: Part | None,
    chosen: Traffic,
    judged: Traffic,
) -> dict[str, Any]:
    names = ("training", "selection", "judging")
    found: dict[str, Any] = {"path": str(path), "sha256": traffic.sha256}
    if parts.judging is not None:
        found |= {"part": parts.seen.as_record()}
    if written is not None:
        found |= {"split": written.as_record()}
    return found | {
        "parts": {
            name: None if part is None else part.as_record()
            for name, part in zip(names, parts, strict=True)
        },
        "prompt_ids": [r.prompt_id for each in (chosen, judged) for r in each.responses],
        "num_tokens_to_train_on": chosen.num_tokens,
        "num_tokens_to_choose_by": judged.num_tokens,
    }


def _train(
    settings: DistillSettings,
    models: _Models,
    recipe: Recipe | None,
    seen: _Seen,
    device: torch.device,
    report: Callable[[str], None],
) -> Checkpoint:
    training, draft, work = settings.training, models.draft, settings.work_dir
    examples = make_examples(seen.training.responses, training.max_length)
    longest = max(len(each.token_ids) for each in examples)
    vocab_size = int(draft.text_config["vocab_size"])
    pass_tokens = tokens_a_pass(vocab_size, training.batch_tokens, longest)
    say(require_training_room(draft, pass_tokens, device).sentence)
    rule = settings.traffic.acceptance_rule or default_rule(seen.training)
    key = _key(settings, models, recipe, seen, rule, device)
    _require_own_state(settings, work / STATE_FILE, key)
    targets = _target_rows(settings, models, seen, examples, device)
    report("training")
    autocast = _autocast(settings, device)
    model = load_model(draft.path, torch.float32, device)
    floats = train_through(model, draft, recipe)
    score = _scorer(seen.selection, rule, training.k, autocast)
    temperature = _temperature(seen.training)
    lessons = Lessons(
        examples,
        targets,
        score,
        (lambda keep: rounds_saved(keep, training.k)) if training.is_weighted else None,
        rule == "rejection",
        temperature,
    )
    with share_bar("train") as reach:
        trainer = Trainer(
            model,
            floats,
            _stored_dtypes(draft),
            lessons,
            training,
            work,
            key,
            pass_tokens,
            autocast,
            _tell_look,
            reach,
        )
        reached = trainer.train()
    del trainer, model, floats
    facts = _facts(settings, models, seen, reached, rule, targets)
    trained = {
        name: tensor
        for name, tensor in read_tensors_of(work / BEST_FILE).items()
        if name in draft.tensors
    }
    report("writing")
    return _write(settings, models, recipe, trained, facts, score, reached.best, device, report)


def _key(
    settings: DistillSettings,
    models: _Models,
    recipe: Recipe | None,
    seen: _Seen,
    rule: AcceptanceRule,
    device: torch.device,
) -> str:
    """Return what the whole training depends on."""
    return key_of(
        {
            "draft": model_identity(models.draft)["sha256"],
            "target": None if models.target is None else model_identity(models.target)["sha256"],
            "recipe": None if recipe is None else json.loads(recipe.model_dump_json()),
            "training": settings.training.as_record(),
            "traffic": [seen.record["sha256"], seen.record["parts"], seen.record["prompt_ids"]],
            "read": seen.training.read_with,
            "rule": rule,
            "dtype": settings.dtype,
            "device": device_key(device),
        }
    )


def _require_own_state(settings: DistillSettings, state: Path, key: str) -> None:
    """Refuse to go on from, or to replace, the training of other settings; --force replaces it."""
    found = state_key(state)
    if found in (None, key):
        return
    if not settings.force:
        raise OutputExistsError(
            f"'{state.parent}' holds an unfinished training of other settings or inputs. Give the "
            "same ones to go on, another --work or --output, or --force to begin anew."
        )
    state.unlink()


def _target_rows(
    settings: DistillSettings,
    models: _Models,
    seen: _Seen,
    examples: tuple[Example, ...],
    device: torch.device,
) -> TargetStore | None:
    """Return the target's distributions over the examples; None where the loss needs none."""
    if not settings.training.needs_target:
        return None
    target = models.target
    assert target is not None  # `check` asks for it
    temperature = _temperature(seen.training)
    dtype = pick_dtype(settings.dtype, device)
    key = key_of(
        {
            "target": model_identity(target)["sha256"],
            "examples": key_of({"ids": [each.token_ids for each in examples]}),
            "temperature": temperature,
            "num_probabilities": settings.training.num_probabilities,
            "dtype": str(dtype),
        }
    )
    with bar(len(examples), "the target's distributions", "response") as advance:
        store = target_rows(
            settings.work_dir,
            key,
            examples,
            lambda: load_model(target.path, dtype, device),
            int(models.draft.text_config["vocab_size"]),
            temperature=temperature,
            num_kept=settings.training.num_probabilities,
            advance=advance,
        )
    say(
        f"the target's distributions: {store.num_kept} tokens are kept of each, the others have "
        f"{store.mean_rest:.2%} on average"
    )
    return store


def _temperature(traffic: Traffic) -> float:
    """Return what both distributions are compared at: the traffic's, 1 where it is greedy."""
    sampling = traffic.sampling
    return 1.0 if sampling is None or sampling.is_greedy else sampling.temperature


def _autocast(
    settings: DistillSettings, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes products run in bfloat16: where it is asked for, or on a GPU."""
    is_wanted = settings.dtype == "bfloat16" or (
        settings.dtype == "auto" and device.type == "cuda" and has_bfloat16(device)
    )
    if not is_wanted:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _stored_dtypes(draft: Checkpoint) -> dict[str, torch.dtype]:
    return {
        name: getattr(torch, FLOAT_NAMES[info.dtype])
        for name, info in draft.tensors.items()
        if info.dtype in FLOAT_NAMES
    }


def _scorer(
    selection: Traffic,
    rule: AcceptanceRule,
    k: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Callable[[Any], tuple[float, float]]:
    """Return what replays the selection part: mean acceptance length and acceptance rate at k."""
    ids = [response.prompt_id for response in selection.responses]

    def score(model: Any) -> tuple[float, float]:
        with weights_once(model), autocast(), step("replay the selection part"):
            keep = acceptance_probabilities(model, selection, rule)
        counts = replay_rounds(ids, keep, [k]).counts(k)
        return counts.mean_acceptance_length, counts.acceptance_rate

    return score


def _tell_look(first: Look, now: Look) -> None:
    if now is first:
        say(
            f"before training: acceptance {now.acceptance_rate:.1%}, "
            f"{now.mean_acceptance_length:.2f} tokens a round"
        )
        return
    say(
        f"{now.share:4.0%}, {now.seconds / 60:.1f} min, {counted(now.num_steps, 'update')}: "
        f"acceptance {now.acceptance_rate:.1%} (from {first.acceptance_rate:.1%}), "
        f"{now.mean_acceptance_length:.2f} tokens a round, loss {now.loss:.4f}"
    )


def _facts(
    settings: DistillSettings,
    models: _Models,
    seen: _Seen,
    reached: Position,
    rule: AcceptanceRule,
    targets: TargetStore | None,
) -> dict[str, Any]:
    """Return what the manifest says of the training, and of what the draft was made."""
    target = models.target
    training = seen.record | {
        "settings": settings.training.as_record(),
        "acceptance_rule": rule,
        "minutes": round(reached.seconds / 60, 3),
        "num_updates": reached.num_steps,
        "num_tokens": reached.num_tokens,
        "looks": [asdict(look) for look in reached.looks],
        "best": asdict(reached.best),
        "target": None if target is None else model_identity(target, settings.target),
        "target_distributions": None if targets is None else describe(targets),
    }
    if models.cut_from is not None:
        assert target is not None  # it was cut from it
        identity = model_identity(target, settings.target)
        return {"training": training, "cut_from": identity | {"layers": models.cut_from}}
    draft = model_identity(models.draft, settings.draft)
    return {"training": training, "draft": draft | {"path": str(models.draft.path.absolute())}}


def _write(
    settings: DistillSettings,
    models: _Models,
    recipe: Recipe | None,
    trained: dict[str, torch.Tensor],
    facts: dict[str, Any],
    score: Callable[[Any], tuple[float, float]],
    best: Look,
    device: torch.device,
    report: Callable[[str], None],
) -> Checkpoint:
    """Write the best draft as `apply` would, and replay what was written before it appears."""
    draft = models.draft

    def check(candidate: Checkpoint) -> dict[str, Any]:
        report("replaying what was written")
        _, rate = score(load_model(candidate.path, torch.float32, device))
        if abs(rate - best.acceptance_rate) > MAX_DIFFERENCE:
            raise CheckpointError(
                f"what was written is accepted at {rate:.1%} on the selection part, and what was "
                f"trained at {best.acceptance_rate:.1%}: the checkpoint is not what was trained."
            )
        facts["training"]["acceptance_rate_as_written"] = rate
        return facts

    if recipe is None:
        with whole_directory(settings.output, settings.force) as staging:
            made = write_floats(draft, trained, staging)
            manifest = {
                "schema_version": MANIFEST_SCHEMA_VERSION,
                **check(made),
                "sha256": directory_sha256(staging),
                "environment": environment(str(device)),
            }
            write_json(staging / MANIFEST_FILE, manifest)
        return open_checkpoint(settings.output)
    named = recipe.model_copy(
        update={
            "name": f"{recipe.name}-distilled",
            "summary": f"{recipe.summary.rstrip('.')}; distilled.",
        }
    )
    floats = settings.work_dir / "floats"
    with whole_directory(floats, force=True) as staging:
        write_floats(draft, trained, staging)
    return write_candidate(
        named,
        open_checkpoint(floats),
        settings.output,
        str(device),
        check,
        force=settings.force,
        report=report,
    )


def distilled_lines(checkpoint: Checkpoint) -> list[str]:
    """Return what a training did, for the terminal."""
    manifest = checkpoint.manifest or {}
    training = manifest["training"]
    first, best = training["looks"][0], training["best"]
    recipe = manifest.get("recipe")
    kind = "full precision" if recipe is None else str(recipe["summary"]).rstrip(".")
    k = training["settings"]["k"]
    return [
        f"Written: {checkpoint.path} ({kind})",
        f"Trained: {training['minutes']:.1f} minutes, {training['num_updates']:,} updates on "
        f"{training['num_tokens']:,} tokens, loss {training['settings']['loss']}",
        f"Chosen:  after {best['num_steps']:,} updates, by "
        f"{training['parts']['selection']['num_conversations']:,} conversations apart: acceptance "
        f"{first['acceptance_rate']:.1%} → {best['acceptance_rate']:.1%}, "
        f"{first['mean_acceptance_length']:.2f} → {best['mean_acceptance_length']:.2f} tokens a "
        f"round at k = {k}",
    ]
