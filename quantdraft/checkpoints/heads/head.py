"""One draft head: the family of a checkpoint, and the bytes that its step reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.checkpoints.heads.families import FAMILIES, PREFIX, Family, family_of_config
from quantdraft.checkpoints.stored_formats import EMBEDDINGS, HEAD
from quantdraft.checkpoints.weights import ELEMENT_BYTES, FLOAT_DTYPES, TensorInfo
from quantdraft.errors import CheckpointError, OptionError

# Tables of ids (draft to target and back), and what a trainer keeps of its target: no step reads
# their weight. `d2t` is read, and is no weight: 8 bytes a token against a whole row of the head.
UNREAD = r"(d2t|t2d|verifier_\w+\..*)"
# Modules of a decoder layer that MTP puts around an ordinary one.
MTP_PREFIX = r"((.*\.)?(mtp|mtp_layers\.\d+)\.|(?P<layer>(.*\.)?layers\.\d+\.)(eh_proj|enorm)\.)"
KEYS_AND_VALUES = r".*\.(k_proj|v_proj|kv_a_proj_with_mqa)\.(weight|weight_packed)"
EXPERT = r".*\.experts\.\d+\..*"


@dataclass(frozen=True, slots=True)
class DraftHead:
    """A checkpoint of a known family. It has no embedding of its own, or a copy of the target's."""

    family: Family
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    path: Path  # the directory of its files

    @property
    def layer_config(self) -> Mapping[str, Any]:
        """The decoder's part of the config; speculators nests it."""
        nested = self.config.get("transformer_layer_config") or self.config.get("text_config")
        return nested or self.config

    @property
    def is_speculators(self) -> bool:
        """True for a checkpoint in the speculators format."""
        return "speculators_model_type" in self.config

    @property
    def has_own_head(self) -> bool:
        """True when an output head is stored with it, over the draft's vocabulary or the target's.

        An MTP layer's `shared_head.head` is the target's, stored a second time, and read.
        """
        return any(
            re.fullmatch(f"{PREFIX}({HEAD}|shared_head\\.head)\\..*", n) for n in self.tensors
        )

    @property
    def can_quantize_head(self) -> bool:
        """True when the output head is its own, and engines load it quantized."""
        return self.family.can_quantize_head and f"{HEAD}.weight" in self.tensors

    @property
    def has_draft_vocabulary(self) -> bool:
        """True where the config gives the draft a vocabulary of its own, maybe of full size."""
        return bool(self._draft_vocab_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the head that a step reads: the draft's vocabulary where it has its own."""
        return int(self._draft_vocab_size or self.target_vocab_size)

    @property
    def target_vocab_size(self) -> int:
        """Rows of the embedding that it reads: the target's vocabulary; 0 where no config says."""
        return int(self.layer_config.get("vocab_size") or 0)

    @property
    def target_hidden_size(self) -> int:
        """Values of one layer's output that it reads; 0 where no config says."""
        own = self.layer_config
        found = self.config.get("target_hidden_size") or own.get("target_hidden_size")
        return int(found or own.get("hidden_size") or 0)

    @property
    def has_own_embedding(self) -> bool:
        """True when a table of embeddings is stored with it; else it takes the target's."""
        return any(re.fullmatch(EMBEDDINGS, name.rpartition(".")[0]) for name in self.tensors)

    @property
    def _draft_vocab_size(self) -> int | None:
        return self.config.get("draft_vocab_size") or self.layer_config.get("draft_vocab_size")

    @property
    def shared_head_bytes(self) -> int:
        """Bytes of the target's own head, which a step reads where the head stores none.

        In the draft's float type: what the target stores it in is not known here.
        """
        if self.has_own_head:
            return 0
        hidden = int(self.layer_config.get("hidden_size") or 0)
        return self.vocab_size * hidden * ELEMENT_BYTES[self.float_dtype]

    @property
    def float_dtype(self) -> str:
        """The float type of most of its unquantized bytes, as safetensors spells it."""
        sums: dict[str, int] = {}
        for info in self.tensors.values():
            if info.dtype in FLOAT_DTYPES:
                sums[info.dtype] = sums.get(info.dtype, 0) + info.num_bytes
        if not sums:
            raise CheckpointError(f"this draft head ({self.family.title}) holds no float weights.")
        return max(sums, key=lambda dtype: sums[dtype])

    @property
    def kv_bytes_per_context_token(self) -> int:
        """Keys and values of one token: what the projections to them put out, 16 bits or as stored.

        Latent attention caches the output of kv_a_proj_with_mqa.
        """
        rows = sum(t.shape[0] for n, t in self.tensors.items() if re.fullmatch(KEYS_AND_VALUES, n))
        return rows * ELEMENT_BYTES[self.float_dtype]

    def is_unread(self, name: str) -> bool:
        """Return True for a tensor that no step reads."""
        return re.fullmatch(PREFIX + UNREAD, name) is not None

    def is_looked_up(self, name: str) -> bool:
        """Return True for a table of which a step reads one row."""
        return any(re.fullmatch(PREFIX + p, name) for p in self.family.looked_up)

    def bytes_read(self, name: str, info: TensorInfo) -> int:
        """Return how many bytes of a weight a step reads; of experts, the active ones."""
        if not re.fullmatch(EXPERT, name):
            return info.num_bytes
        config = self.layer_config
        totals = ("n_routed_experts", "num_experts", "num_local_experts")
        total = next((int(config[key]) for key in totals if config.get(key)), 1)
        active = int(config.get("num_experts_per_tok") or total)
        return math.ceil(info.num_bytes * min(active, total) / total)

    def summary(self) -> str:
        """Return one sentence: its size, and which part of a step no recipe changes."""
        elements = {n: math.prod(t.shape) for n, t in self.tensors.items() if not self.is_unread(n)}
        outer = sum(count for name, count in elements.items() if _is_outer(name))
        share = outer / max(1, sum(elements.values()))
        text = f"{self.family.title} head of {sum(elements.values()) / 1e6:,.1f}M parameters"
        text += f": {share:.0%} are embedding and output head." if outer else "."
        if self.shared_head_bytes:
            text += (
                f" A step also reads the target's head ({self.shared_head_bytes / 1e6:,.2f} MB), "
                "which no recipe of the draft changes."
            )
        return text


def draft_head(checkpoint: Checkpoint) -> DraftHead | None:
    """Return the checkpoint as a draft head, or None for a stand-alone model.

    Raises CheckpointError where the config names a family and its tensors are missing.
    """
    family = family_of_config(checkpoint.config)
    names = checkpoint.tensors.keys()
    if family is None or family.name == "mtp":
        family = _family_of_tensors(checkpoint)
    if family is None:
        return None
    missing = family.missing(family.required, _plain_names(names))
    if missing:
        raise CheckpointError(
            f"'{checkpoint.path}' is a draft head ({family.title}) by its config or names, and no "
            f"tensor is named like {missing[0]!r}. Download or copy it again."
        )
    return DraftHead(family, checkpoint.config, checkpoint.tensors, checkpoint.path)


def require_draft_model(checkpoint: Checkpoint, doing: str) -> None:
    """Raise OptionError for a draft head where a stand-alone draft is needed."""
    head = draft_head(checkpoint)
    if head is not None:
        raise OptionError(
            f"'{checkpoint.path}' is a draft head ({head.family.title}): it cannot be {doing} "
            "without the target's hidden states. Serve it (`quantdraft export --engine vllm`): "
            "the engine's counters give its acceptance."
        )


def _family_of_tensors(checkpoint: Checkpoint) -> Family | None:
    names = checkpoint.tensors.keys()
    own = _mtp_prefixes(names)
    if own and all(name.startswith(tuple(own)) for name in names if "layers." in name):
        return FAMILIES["mtp"]
    plain = _plain_names(names)
    for name in ("dspark", "eagle3", "dflash"):
        family = FAMILIES[name]
        if not family.missing(family.evidence, plain):
            return family
    return None


def _mtp_prefixes(names: Any) -> set[str]:
    """Return the prefixes of MTP modules: 'mtp.', 'mtp_layers.0.', 'model.layers.61.'."""
    matches = (re.match(MTP_PREFIX, name) for name in names)
    return {m.group("layer") or m.group(0) for m in matches if m}


def _plain_names(names: Any) -> list[str]:
    """Return the names of tensors, of quantized ones that of the weight they stand for."""
    return [re.sub(r"\.weight_packed$", ".weight", name) for name in names]


def _is_outer(name: str) -> bool:
    module = name.rpartition(".")[0]
    is_head = module.split(".")[-1] == HEAD or module.endswith("shared_head.head")
    return is_head or re.fullmatch(EMBEDDINGS, module) is not None
