"""Settings of an evaluation by the names of their fields, whichever part each belongs to."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from quantdraft.engines.serving_settings import ServingSettings
from quantdraft.measure.settings import (
    EvaluateSettings,
    ModelSettings,
    TimingSettings,
    TrafficSettings,
)

PARTS = {
    "models": ModelSettings,
    "traffic": TrafficSettings,
    "timing": TimingSettings,
    "serving": ServingSettings,
}


def evaluation_settings(candidate: object = "c", **given: Any) -> EvaluateSettings:
    """The settings with these fields, the others by default."""
    return changed(EvaluateSettings(ModelSettings(str(candidate))), **given)


def changed(settings: EvaluateSettings, **given: Any) -> EvaluateSettings:
    """The settings with other values of some fields."""
    for part, kind in PARTS.items():
        own = {each.name for each in fields(kind)} & set(given)
        values = {name: given.pop(name) for name in own}
        settings = replace(settings, **{part: replace(getattr(settings, part), **values)})
    return replace(settings, **given)
