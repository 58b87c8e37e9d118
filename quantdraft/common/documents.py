"""Read JSON and YAML from unknown authors within bounds of size and depth; nothing in it is run.

Hostile texts (recursion, numbers of a million digits, half of a surrogate
pair, an alias that stands for a billion others) give a ValueError of one line. The reader of each
format checks what the values mean.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from quantdraft.errors import CheckpointError, QuantDraftError, nearest, nearest_path

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_DEPTH = 64  # configs in the wild nest five deep
MAX_BITS = 64  # of an integer in a record: larger ones are no count, and no float
MAX_JSON_BYTES = 1 << 29  # the largest records: evaluations of 100,000 prompts
MAX_OBJECT_BYTES = 1 << 27  # of a model's directory: tokenizers of 256,000 tokens have 33 MB
MAX_YAML_BYTES = 1 << 17  # PyYAML reads about 100 kB in a second, and a recipe has one
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: Path) -> str | None:
    """Return what stands at a path, "a pipe" or the like; None for a file, or where nothing is.

    What waits for a writer or never ends must not be opened to find that out.
    """
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):
        return None


def read_bounded(path: Path, max_bytes: int) -> str:
    """Read the UTF-8 text of a file; ValueError where it is none, or larger, or not UTF-8."""
    if (kind := kind_of(path)) is not None:
        raise ValueError(f"it is {kind}, not a file")
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return raw.decode("utf-8-sig")


def parse_json(
    text: str | bytes, is_finite: bool = False, is_unique: bool = False, is_unicode: bool = True
) -> Any:
    """Return the value of a JSON text; ValueError, one line, where it cannot be used.

    is_finite: refuse NaN, infinities and endless integers too; transformers' configs may hold them
    is_unique: refuse an object that has a key twice, of which readers take one or the other
    is_unicode: refuse text that cannot be written, see `require_unicode`
    """
    try:
        value = json.loads(text, object_pairs_hook=_require_unique_keys if is_unique else None)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if is_finite or text.count("{") + text.count("[") > MAX_DEPTH:
        _require_shallow(value, is_finite)
    if is_unicode and _HALF_PAIR.search(text):
        require_unicode(value)
    return value


def read_json(
    path: Path,
    is_finite: bool = False,
    max_bytes: int = MAX_JSON_BYTES,
    is_unique: bool = False,
) -> Any:
    """Read the value in a JSON file; ValueError where it cannot be used."""
    return parse_json(read_bounded(path, max_bytes), is_finite, is_unique)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a model's directory; CheckpointError where it is none."""
    try:
        value = read_json(path, max_bytes=MAX_OBJECT_BYTES)
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is not a JSON object.")
    return value


def read_yaml_mapping(
    path: Path,
    what: str,
    error: type[QuantDraftError],
    shown: str | None = None,
    may_be_empty: bool = False,
) -> dict[str, Any]:
    """Read a YAML file of keys and values; `error`, one line, where it is none.

    what: the kind of document, for messages: 'recipe'
    shown: what the user gave for the file; None: its path
    """
    shown = str(path) if shown is None else shown
    try:
        plain = parse_yaml(read_bounded(path, MAX_YAML_BYTES))
    except FileNotFoundError:
        raise error(f"no {what} file '{shown}'.{nearest_path(path)}") from None
    except (OSError, ValueError) as cause:
        raise error(f"{shown}: cannot be read as YAML: {cause}") from cause
    if plain is None and may_be_empty:
        return {}
    if not isinstance(plain, dict):
        raise error(
            f"{shown}: a {what} is a mapping of keys to values, not {type(plain).__name__}."
        )
    return {str(key): value for key, value in plain.items()}


def parse_yaml(text: str) -> Any:
    """Return the plain value of a YAML text; tags of Python, aliases and deep nesting are refused.

    An alias is refused because a chain of them stands for more values than memory holds.
    """
    try:
        _require_plain_yaml(text)
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except Exception as error:  # tags and numbers that are none: each its own kind of error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def require_unicode(value: Any) -> None:
    """Raise ValueError for text that no encoding can write: half of a surrogate pair."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is not a character") from None


def all_problems(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return all problems of a document by its schema, with the nearest known names."""
    return "; ".join(_problem(item, kind) for item in error.errors())


def _problem(item: Mapping[str, Any], kind: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    said = f"{where}: {item['msg']}" if where else str(item["msg"])
    if item["type"] == "extra_forbidden":
        return f"{said}.{nearest(str(item['loc'][-1]), _keys(kind))}"
    if item["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
        return f"{said}.{nearest(str(item['input']), known)}"
    return said


def _keys(kind: type[BaseModel]) -> Iterator[str]:
    """Yield every key of a schema and of the schemas in it."""
    for name, field in kind.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from _keys(inner)


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return found


def _require_shallow(value: Any, is_finite: bool) -> None:
    waiting: list[tuple[Any, int, str]] = [([value], -1, "")]
    while waiting:
        each, depth, place = waiting.pop()
        if depth >= MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        for key, inner in each.items() if isinstance(each, dict) else enumerate(each):
            if isinstance(inner, (dict, list)):
                below = "" if depth < 0 else f"{place}.{key}" if place else str(key)
                waiting.append((inner, depth + 1, below))
            elif is_finite and isinstance(inner, float) and not math.isfinite(inner):
                raise ValueError(f"{_named(place, key)}it holds {inner}, which is not a number")
            elif is_finite and isinstance(inner, int) and inner.bit_length() > MAX_BITS:
                bits = inner.bit_length()
                raise ValueError(f"{_named(place, key)}it holds an integer of {bits} bits")


def _named(place: str, key: str | int) -> str:
    """Return the dotted path of a value and a colon; nothing where the value is the whole text."""
    return f"{place}.{key}: " if place else f"{key}: " if isinstance(key, str) else ""


def _require_plain_yaml(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has the alias '*{event.anchor}': write the value out")
        if isinstance(event, yaml.ScalarEvent):
            require_unicode(event.value)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
