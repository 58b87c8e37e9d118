"""JSON and YAML that strangers wrote, read within bounds. Nothing in them is ever run.

What a parser raises on a hostile text (recursion, numbers of a million digits, half a surrogate
pair, an alias that stands for a billion others) is a ValueError of one line here. What the values
mean is for the reader of each format to check.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from quantdraft.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_DEPTH = 64  # configs in the wild nest five deep
MAX_BITS = 64  # of an integer in a record: larger ones are no count, and no float
MAX_JSON_BYTES = 1 << 29  # the largest records: evaluations of 100,000 prompts
MAX_OBJECT_BYTES = 1 << 27  # of a model's directory: tokenizers of 256,000 tokens have 33 MB
MAX_YAML_BYTES = 1 << 17  # PyYAML reads about 100 kB in a second, and a recipe has one
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def read_bounded(path: Path, max_bytes: int) -> str:
    """The UTF-8 text of a file; ValueError where it is larger or of another encoding."""
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return raw.decode("utf-8-sig")


def parse_json(
    text: str | bytes, is_finite: bool = False, is_unique: bool = False, is_unicode: bool = True
) -> Any:
    """The value of a JSON text; ValueError, one line, where there is none that can be used.

    is_finite: refuse NaN, infinities and endless integers too; transformers' configs may hold them
    is_unique: refuse an object that has a key twice, of which readers take one or the other
    is_unicode: refuse text that cannot be written, see `require_unicode`
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if is_unique else None)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if is_finite or text.count("{") + text.count("[") > MAX_DEPTH:
        _require_shallow(value, is_finite)
    if is_unicode and _HALF_PAIR.search(text):
        require_unicode(value)
    return value


def read_json(path: Path, is_finite: bool = False, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file; ValueError where it is none."""
    return parse_json(read_bounded(path, max_bytes), is_finite)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's directory; CheckpointError where it is none."""
    try:
        value = read_json(path, max_bytes=MAX_OBJECT_BYTES)
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not JSON: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is not a JSON object.")
    return value


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of plain data; OSError, or ValueError with what is wrong."""
    return parse_yaml(read_bounded(path, MAX_YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text: no tags of Python, no aliases, not nested beyond use.

    An alias is refused because a chain of them stands for more values than memory holds.
    """
    try:
        _require_plain_yaml(text)
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except Exception as error:  # tags and numbers that are none: each its own kind of error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return value


def require_unicode(value: Any) -> None:
    """Raise ValueError for text that no encoding can write: half a surrogate pair."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, which is no character") from None


def all_problems(error: ValidationError, kind: type[BaseModel]) -> str:
    """What is wrong with a document of a schema, and the nearest name for one that it lacks."""
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
    """Every key of a schema and of the schemas in it."""
    for name, field in kind.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from _keys(inner)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return found


def _require_shallow(value: Any, is_finite: bool) -> None:
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        for inner in _inside(each):
            if isinstance(inner, (dict, list)):
                waiting.append((inner, depth + 1))
            elif is_finite and isinstance(inner, float) and not math.isfinite(inner):
                raise ValueError(f"it holds {inner}, which is no number")
            elif is_finite and isinstance(inner, int) and inner.bit_length() > MAX_BITS:
                raise ValueError(f"it holds an integer of {inner.bit_length()} bits")


def _inside(value: Any) -> Iterator[Any]:
    yield from (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )


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
