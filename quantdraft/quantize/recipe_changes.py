"""Change fields of a recipe for one command: `--set group_size=64`. The recipe's name follows.

The changes are kept in the recipe, and so in the manifest of what it makes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from quantdraft.common.documents import all_problems, parse_yaml
from quantdraft.errors import RecipeError, nearest
from quantdraft.quantize.recipe import Recipe, load_recipe

MAX_WORD = 24  # characters of one change in a name, which becomes that of a directory
# Fields whose values stand in a name by themselves.
WORDS = {"group_size": "g{}", "scheme": "{}", "method": "{}", "kv_cache": "kv-{}"}
HEADS = {"8-bit": "head8", "4-bit": "head4", "keep": "head-kept"}
TEXTS = ("name", "summary", "notes")  # that change nothing of what is made


def parse_changes(texts: Iterable[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts, each value as YAML reads it: 64 is a number, [a, b] a list."""
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RecipeError(f"--set {text!r} is no KEY=VALUE. Write --set group_size=64.")
        if key in changes:
            raise RecipeError(f"--set {key} is given twice. Give it once.")
        try:
            changes[key] = parse_yaml(value)
        except ValueError as error:
            raise RecipeError(f"--set {text!r}: {error}. Quote the value.") from error
    return changes


def load_changed(name_or_path: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and change it. Raises RecipeError for what it has no place for."""
    recipe = load_recipe(name_or_path)
    return change_recipe(recipe, changes) if changes else recipe


def load_all_changed(
    names: Sequence[str], changes: Mapping[str, Any] | None = None
) -> tuple[list[Recipe], list[str]]:
    """Return the recipes, those changed that have the fields, and the names of the others.

    Raises RecipeError where no recipe has them, with the reason of the first.
    """
    recipes = [load_recipe(name) for name in names]
    if not changes:
        return recipes, []
    found: list[Recipe] = []
    reasons: dict[str, RecipeError] = {}
    for recipe in recipes:
        try:
            found.append(change_recipe(recipe, changes))
        except RecipeError as error:
            found.append(recipe)
            reasons[recipe.name] = error
    if len(reasons) == len(recipes):
        raise next(iter(reasons.values()))
    return _each_once(found), list(reasons)


def tell_unchanged(
    names: Sequence[str], changes: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Say which of the recipes have no such field, and so stay as they are."""
    _, unchanged = load_all_changed(names, changes)
    if unchanged:
        say(f"--set {', '.join(changes)}: without it, as they have none: {', '.join(unchanged)}.")


def _each_once(recipes: list[Recipe]) -> list[Recipe]:
    """Drop a recipe that a change made equal to another. RecipeError for two of one name."""
    kept: dict[str, Recipe] = {}
    for recipe in recipes:
        other = kept.setdefault(recipe.name, recipe)
        alike: dict[str, Any] = {"changes": {}, "summary": "", "notes": None}
        if other.model_copy(update=alike) != recipe.model_copy(update=alike):
            raise RecipeError(f"--set makes two recipes {recipe.name!r}. Leave one of them out.")
    return list(kept.values())


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these fields, checked as a file's are, under a name that says so.

    changes: values by the name of a field; `calibration.num_samples` is a field of a section
    """
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    plain = recipe.model_dump(exclude_unset=True)
    before = recipe.model_dump()
    for key in changes:
        _require_used(recipe, key)
    made = {key: value for key, value in changes.items() if _at(before, key) != value}
    for key, value in made.items():
        _put(plain, key.split("."), value, recipe.name)
    if not made:
        return recipe
    plain |= {"name": _name(recipe, made), "summary": _summary(recipe, made)}
    plain["changes"] = {**recipe.changes, **made}
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(
            f"recipe {recipe.name!r} with --set {shown}: {all_problems(error, Recipe)}"
        ) from error


def _at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain.get(part, ...) if isinstance(plain, Mapping) else ...
    return list(plain) if isinstance(plain, tuple) else plain


def _require_used(recipe: Recipe, key: str) -> None:
    """Refuse a field that no recipe has, or that this one does not read."""
    field, *rest = key.split(".")
    fields = [name for name in Recipe.model_fields if name != "changes"]
    if field not in fields:
        raise RecipeError(
            f"--set {key}: a recipe has no field {field!r}.{nearest(field, fields)} "
            f"It has {', '.join(fields)}."
        )
    if rest and getattr(recipe, field) is None:
        raise RecipeError(f"--set {key}: recipe {recipe.name!r} has no {field!r} section.")
    if field == "iterations" and recipe.method != "autoround":
        raise RecipeError(
            f"--set {key}: recipe {recipe.name!r} has no iterations; method 'autoround' has."
        )


def _put(plain: dict[str, Any], parts: list[str], value: Any, name: str) -> None:
    *sections, field = parts
    for section in sections:
        inner = plain.get(section)
        if not isinstance(inner, dict):
            raise RecipeError(
                f"--set {'.'.join(parts)}: {section!r} is no section of recipe {name!r}."
            )
        plain[section] = plain = dict(inner)
    plain[field] = value


def _name(recipe: Recipe, made: Mapping[str, Any]) -> str:
    words = [_word(key, value) for key, value in made.items() if key not in TEXTS]
    name = str(made.get("name") or "-".join([recipe.name, *words]))
    if re.fullmatch(r"\w[\w.+-]*", name) is None:
        raise RecipeError(f"--set name={name}: a recipe's name has letters, digits, - and _ alone.")
    return name


def _word(key: str, value: Any) -> str:
    """Return what a change adds to a name: g64, head8, num_samples-64."""
    if key == "lm_head" and value in HEADS:
        return HEADS[value]
    field = key.rpartition(".")[2]
    values = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    word = WORDS.get(key, field + "-{}").format(values)
    plain = re.sub(r"[^\w.+]+", "-", word).strip("-.")
    if key in ("scheme", "method", "kv_cache"):
        plain = plain.lower()
    if len(plain) <= MAX_WORD:
        return plain
    return f"{field}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def _summary(recipe: Recipe, made: Mapping[str, Any]) -> str:
    """Return a summary that does not say the old size of a group, and names other changes."""
    text = str(made.get("summary", recipe.summary))
    rest = {key: value for key, value in made.items() if key not in TEXTS}
    old, new = recipe.group_size, rest.get("group_size")
    if new is not None and f"group {old}" in text:
        text = text.replace(f"group {old}", f"group {new}")
        del rest["group_size"]
    if not rest:
        return text
    return f"{text.removesuffix('.')}; {', '.join(f'{k}: {v}' for k, v in rest.items())}."
