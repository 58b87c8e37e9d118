"""What the token ids of a model mean, read from its tokenizer.json. No torch, no transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids and their meanings; two vocabularies of one size may still differ in every id."""

    tokens: dict[int, str]  # by id, added tokens included
    added_ids: frozenset[int]  # special and other tokens that stand outside the merges
    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, framed by special tokens where the tokenizer does so."""
        return list(self.tokenizer.encode(text).ids)


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a model directory. Raises CheckpointError without a tokenizer.json."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"'{path}' has no tokenizer.json. Write it with "
            f"AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"'{file}' is no usable tokenizer: {error}.") from error
    return Vocabulary(
        tokens={id_: token for token, id_ in tokenizer.get_vocab(True).items()},
        added_ids=frozenset(tokenizer.get_added_tokens_decoder()),
        tokenizer=tokenizer,
    )
