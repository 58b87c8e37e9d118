"""The traffic of an evaluation: read or captured, and how it was sampled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantdraft.checkpoints.tensors.loading import load_tokenizer
from quantdraft.common.locks import sole_writer
from quantdraft.errors import OptionError, OutputExistsError
from quantdraft.measure.capture import capture, has_captured
from quantdraft.measure.filters import usable
from quantdraft.measure.models import Models
from quantdraft.measure.settings import CaptureSettings, EvaluateSettings, TrafficSettings
from quantdraft.record import AcceptanceRule
from quantdraft.traffic.templates import NoTemplateError
from quantdraft.traffic.traffic import Traffic, read_traffic

TRAFFIC_FILE = "traffic.jsonl"  # what was captured for a run, in its directory


def read_run_traffic(settings: EvaluateSettings, models: Models, run_dir: Path) -> Traffic:
    """Return the usable traffic: the given one, or the target's responses to the given prompts.

    Prompts are answered once a run, into its directory.
    """
    given = settings.traffic
    if given.traffic_path is None:
        return usable(
            _captured_traffic(settings, models, run_dir / TRAFFIC_FILE), models, given.is_held_out
        )
    tokenizer = load_tokenizer((models.target or models.candidate).path)
    try:
        traffic = read_traffic(given.traffic_path, tokenizer, given.read)
    except NoTemplateError:
        if models.target is not None:
            raise
        raise NoTemplateError(
            f"'{given.traffic_path}' holds chats, and '{models.candidate.name}' has no chat "
            "template to write them with. Give --target: its tokenizer and template are taken."
        ) from None
    return usable(with_given_sampling(traffic, given, settings.seed), models, given.is_held_out)


def _captured_traffic(settings: EvaluateSettings, models: Models, path: Path) -> Traffic:
    given = settings.traffic
    assert given.prompts is not None
    assert models.target is not None
    sampling = given.sampling(settings.seed)
    if path.exists():
        if has_captured(path, given.prompts, sampling, given.max_new_tokens, given.read):
            with sole_writer(path):  # and the lock of a capture that was killed at its end is gone
                return read_traffic(path)
        if not settings.force:
            raise OutputExistsError(
                f"'{path}' was captured from other prompts, or in another way. Give another "
                "--output, --force to capture again, or it itself as --traffic."
            )
    return capture(
        CaptureSettings(
            str(models.target.path),
            given.prompts,
            path,
            sampling=sampling,
            max_new_tokens=given.max_new_tokens,
            device=settings.models.device,
            dtype=settings.models.dtype,
            force=settings.force,
            read=given.read,
        )
    )


def with_given_sampling(traffic: Traffic, given: TrafficSettings, seed: int) -> Traffic:
    """Return the traffic with the sampling that the user says a log came from.

    Raises OptionError where a header says another, and for a limit without a temperature.
    """
    options = {
        "temperature": ("--temperature", given.temperature),
        "top_p": ("--top-p", given.top_p),
        "top_k": ("--top-k", given.top_k),
    }
    told = {name: each for name, each in options.items() if each[1] is not None}
    if not told:
        return traffic
    sampling = given.sampling(seed)
    if traffic.sampling is None:
        if given.temperature is None:
            first = next(iter(told.values()))[0]
            raise OptionError(
                f"{first} alone does not say how the log was sampled. Give --temperature too."
            )
        return replace(traffic, sampling=sampling)
    place = "header" if traffic.reading is None else "lines"
    for name, (option, _) in told.items():
        wanted, found = getattr(sampling, name), getattr(traffic.sampling, name)
        if wanted != found:
            raise OptionError(
                f"{option} {wanted}: '{given.traffic_path}' says in its {place} that it was "
                f"sampled with {name} {found}. Leave the option out."
            )
    return traffic


def default_rule(traffic: Traffic) -> AcceptanceRule:
    """Return the rule by the sampling: `greedy`, or for drawn or unknown text `greedy_draft`.

    `greedy_draft` is the engines' default: the draft takes its most probable token.
    """
    is_greedy = traffic.sampling is not None and traffic.sampling.is_greedy
    return "greedy" if is_greedy else "greedy_draft"
