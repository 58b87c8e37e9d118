"""The plans of the embedded models: their depths, and the text that each is trained on.

No training here: `train.py` follows these plans, and `publish.py` writes what they state.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a pair, Llama's: every width a multiple of 128, so that all formats fit."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int  # of the target
    num_heads: int
    num_kv_heads: int
    draft_layers: tuple[int, ...] | None = None  # instead of a lesson's `starts_from`

    def layers_of(self, draft: str) -> tuple[int, ...]:
        """The target's layers that a draft starts from."""
        return LESSONS[draft].starts_from if self.draft_layers is None else self.draft_layers


EMBEDDED = Size(4096, 256, 768, 8, 4, 2)
VOCAB_SIZE = EMBEDDED.vocab_size


@dataclass(frozen=True, slots=True)
class Lesson:
    """How a draft is made: the target's layers that it starts from, and the text that it sees.

    domain: files of the corpus (`SourceFile.domain`); None: all of them, and the target's own text
    """

    starts_from: tuple[int, ...]
    domain: str | None = None

    @property
    def stated_domain(self) -> str:
        """What the config says of it."""
        if self.domain is None:
            return "Python standard library, and the target's own text"
        return f"Python standard library, {self.domain} alone"


LESSONS = {
    "draft": Lesson(starts_from=(0, 7)),
    "draft-shallow": Lesson(starts_from=(0,)),
    "draft-library": Lesson(starts_from=(0, 7), domain="library"),
}


def model_config(name: str, size: Size = EMBEDDED) -> LlamaConfig:
    """The target's config, or that of a draft of its width."""
    depth = size.num_layers if name == "target" else len(size.layers_of(name))
    return LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=depth,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def taught_domains() -> set[str]:
    """Parts of the corpus that some draft sees alone; encoded as files of their own."""
    return {lesson.domain for lesson in LESSONS.values() if lesson.domain is not None}
