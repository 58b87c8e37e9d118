"""The rotary embedding's settings in a config.json, which old and new readers look for elsewhere.

transformers 5 writes them into `rope_parameters`, for each kind of layer where these differ. Before
it, the base stood in `rope_theta` (of sliding layers in `rope_local_base_freq`), the rest in
`rope_scaling`; engines and converters of that time read these names alone, and take a default base
where they are absent. transformers reads all, and `rope_scaling` wins over `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantdraft.errors import CheckpointError

SECTIONS = ("text_config", "transformer_layer_config")
BASE, LOCAL_BASE = "rope_theta", "rope_local_base_freq"
NEW, OLD = "rope_parameters", "rope_scaling"
FULL, SLIDING = "full_attention", "sliding_attention"
# Settings that some configs have outside of the two dicts as well.
OUTSIDE = (BASE, "partial_rotary_factor", "original_max_position_embeddings")
# Whose layers had rotary settings of two kinds before transformers 5; later ones have no old names.
OLD_BY_KIND = {None, "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "olmo3"}
# Kinds that transformers renames when it reads them.
RENAMED = {"su": "longrope", "mrope": "default"}
Said = tuple[str, Any]  # a field, as it is spelled, and its value


def require_one_rotary(config: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError, with both values, where a config states a rotary setting twice."""
    for section in _sections(config):
        for one, other in _contradictions(section):
            raise CheckpointError(
                f"'{path}' contradicts itself: {one[0]} is {one[1]!r}, {other[0]} is {other[1]!r}, "
                "and readers differ in which they take. Keep the value that it was trained with."
            )
        _require_kept_base(section, path)
        _require_positive(section, path)


def spell_rotary_both_ways(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with its rotary settings under the old and the new names.

    Where no base is stated nothing is added: readers then take the architecture's own.
    """
    spelled = _spell(config)
    for name in SECTIONS:
        if isinstance(config.get(name), Mapping):
            spelled[name] = _spell(config[name])
    return spelled


def _spell(section: Mapping[str, Any]) -> dict[str, Any]:
    rope = _settings(section)
    is_by_kind = any(isinstance(each, Mapping) for each in _dict(section, NEW).values())
    if rope.get(BASE) is None or (is_by_kind and section.get("model_type") not in OLD_BY_KIND):
        return dict(section)
    old = {key: value for key, value in rope.items() if key not in OUTSIDE[:2]}
    spelled = {**section, **{key: rope[key] for key in OUTSIDE[:2] if key in rope}}
    if old["rope_type"] != "default" and not _dict(section, OLD):
        spelled[OLD] = old
    local = _of_layers(section, SLIDING).get(BASE, section.get(LOCAL_BASE))
    if local is not None:
        spelled[LOCAL_BASE] = local
    if not _dict(section, NEW):
        sliding = {"rope_type": "default", BASE: local}
        spelled[NEW] = rope if local is None else {FULL: rope, SLIDING: sliding}
    return spelled


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the layers with full attention, wherever they are stated."""
    outside = {key: section[key] for key in OUTSIDE[:2] if section.get(key) is not None}
    stated = outside | _of_layers(section, FULL) | _dict(section, OLD)
    kind = stated.pop("type", "default")
    return {"rope_type": kind} | stated


def _of_layers(section: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return `rope_parameters` for one kind of layer, or for all where they do not differ."""
    rope = _dict(section, NEW)
    if any(isinstance(each, Mapping) for each in rope.values()):
        return _dict(rope, kind)
    return rope if kind == FULL else {}


def _dict(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = section.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _contradictions(section: Mapping[str, Any]) -> Iterator[tuple[Said, Said]]:
    new, old = _of_layers(section, FULL), _dict(section, OLD)
    prefix = f"{NEW}.{FULL}" if FULL in _dict(section, NEW) else NEW
    kinds = [(name, _kind(rope)) for name, rope in ((prefix, new), (OLD, old)) if rope]
    yield from _unequal([(f"{name}.rope_type", kind) for name, kind in kinds])
    for key in sorted({*OUTSIDE, *new, *old} - {"rope_type", "type"}):
        places = [(key, section.get(key) if key in OUTSIDE else None)]
        places += [(f"{prefix}.{key}", new.get(key)), (f"{OLD}.{key}", old.get(key))]
        yield from _unequal(places)
    local = _of_layers(section, SLIDING).get(BASE)
    yield from _unequal([(LOCAL_BASE, section.get(LOCAL_BASE)), (f"{NEW}.{SLIDING}.{BASE}", local)])


def _unequal(said: list[Said]) -> Iterator[tuple[Said, Said]]:
    known = [each for each in said if each[1] is not None]
    for other in known[1:]:
        if other[1] != known[0][1]:
            yield known[0], other


def _require_kept_base(section: Mapping[str, Any], path: Path) -> None:
    """Refuse a base in `rope_parameters` alone beside a `rope_scaling`, which replaces that whole.

    So does who follows a model card's advice and adds `rope_scaling` to a newer config.
    """
    new, old = _dict(section, NEW), _dict(section, OLD)
    if BASE in new and old and BASE not in old and section.get(BASE) is None:
        raise CheckpointError(
            f"'{path}' has {NEW}.{BASE} {new[BASE]!r} beside a {OLD} without it: transformers "
            f"takes the latter, and a default base. Put {BASE!r} into the config itself too."
        )


def _require_positive(section: Mapping[str, Any], path: Path) -> None:
    """Refuse a base or a factor that is no number above 0: all rotations would be NaN, or none."""
    new = _dict(section, NEW)
    places = [("", section), (f"{NEW}.", new), (f"{OLD}.", _dict(section, OLD))]
    places += [(f"{NEW}.{kind}.", each) for kind, each in new.items() if isinstance(each, Mapping)]
    for prefix, place in places:
        for key in (BASE, LOCAL_BASE, "factor") if prefix else (BASE, LOCAL_BASE):
            found = place.get(key)
            is_number = isinstance(found, int | float) and not isinstance(found, bool)
            if found is not None and not (is_number and 0 < found < math.inf):
                raise CheckpointError(
                    f"'{path}' has {prefix}{key} {found!r}, which is no number above 0. Is it the "
                    "file that its publisher made?"
                )


def _kind(rope: Mapping[str, Any]) -> Any:
    kind = rope.get("rope_type", rope.get("type", "default"))
    return RENAMED.get(kind, kind) if isinstance(kind, str) else kind


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    yield from (config[name] for name in SECTIONS if isinstance(config.get(name), Mapping))
