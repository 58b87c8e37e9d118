"""The plans of the embedded models: their depths, and the text that each is trained on.

No training here: `train.py` follows these plans, and `publish.py` writes what they state.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

VOCAB_SIZE = 4096
TARGET_DEPTH = 8


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


def model_config(name: str) -> LlamaConfig:
    """Llama, hidden 256: every width a multiple of 128, so that INT4 g128 and FP8 blocks fit."""
    depth = TARGET_DEPTH if name == "target" else len(LESSONS[name].starts_from)
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def taught_domains() -> set[str]:
    """Parts of the corpus that some draft sees alone; encoded as files of their own."""
    return {lesson.domain for lesson in LESSONS.values() if lesson.domain is not None}
