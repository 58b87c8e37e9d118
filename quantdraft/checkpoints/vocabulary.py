"""The token that each id of a model stands for, from its tokenizer.json; no transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.other_kinds import tokenizer_code
from quantdraft.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids and their tokens; two vocabularies of one size may still differ in every id."""

    tokens: dict[int, str]  # by id, added tokens included
    added_ids: frozenset[int]  # special and other tokens that stand outside the merges
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, framed by special tokens where the tokenizer does so."""
        with _translate_errors("the tokenizer cannot split a text"):
            return list(self.tokenizer.encode(text).ids)


@contextlib.contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Raise CheckpointError for any error of the library, also a panic, which is no Exception."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {error}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {error}.") from error


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a model directory's vocabulary; CheckpointError where it has no tokenizer.json."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        if (code := tokenizer_code(path)) is not None:
            raise CheckpointError(code)
        raise CheckpointError(
            f"'{path}' has no tokenizer.json. Write it with "
            f"AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')."
        )
    with _translate_errors(f"'{file}' is no usable tokenizer"):
        tokenizer = Tokenizer.from_file(str(file))
    return Vocabulary(
        tokens={id_: token for token, id_ in tokenizer.get_vocab(True).items()},
        added_ids=frozenset(tokenizer.get_added_tokens_decoder()),
        tokenizer=tokenizer,
    )
