"""A GGUF file from a full-precision draft, by llama.cpp's own converter, or the commands for it.

The candidate's quantized weights play no part: llama.cpp has formats of its own, and a weight is
rounded once. Left out: the target's GGUF, and formats beyond those below.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import Checkpoint
from quantdraft.common.documents import read_json_object
from quantdraft.common.files import cache_dir, whole_directory
from quantdraft.common.progress import step
from quantdraft.engines.support import stored_names
from quantdraft.errors import CheckpointError, OptionError
from quantdraft.record.provenance import directory_sha256

TYPES = ("f16", "bf16", "q8_0", "q4_0")
# GGUF types of models that are not quantized, by float type.
FULL_PRECISION = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
COMMANDS_FILE = "convert.sh"
CONVERTER = "convert_hf_to_gguf.py"
FOUR_BITS = ("int4", "nf4", "fp4", "nvfp4", "mxfp4")
# A pre-tokenizer is known to the converter by a hash of what it splits. This one it knows by name
# alone: ByteLevel with its own pattern splits as GPT-2 does, whatever the vocabulary.
_AS_GPT2 = """\
import runpy, sys
sys.path.insert(0, {root!r})
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = [{script!r}, *sys.argv[1:]]
runpy.run_path({script!r}, run_name="__main__")
"""


@dataclass(frozen=True, slots=True)
class GgufConversion:
    """A full-precision draft, the type it becomes, and where llama.cpp is (None: not here)."""

    source: Path
    gguf_type: str
    llamacpp: Path | None
    role: str = "draft"

    @property
    def file(self) -> str:
        """Name of the GGUF file."""
        return f"{self.role}-{self.gguf_type}.gguf"


def closest_type(quantization: Mapping[str, Any]) -> str:
    """Return the GGUF type with the candidate's number of bits; BF16 for one in floats."""
    names = stored_names(quantization)
    if names == ["dense"]:
        return "bf16"
    return "q4_0" if names[0].rpartition(":")[2].startswith(FOUR_BITS) else "q8_0"


def plan_conversion(
    candidate: Checkpoint, draft: Path | None, gguf_type: str | None, llamacpp: Path | None
) -> GgufConversion:
    """Return what is converted: the draft given, that of `apply`, or a candidate in floats.

    Raises OptionError where the full-precision draft is not known, or was trained for another
    format, and where a value cannot be used.
    """
    if gguf_type is not None and gguf_type not in TYPES:
        raise OptionError(f"--gguf-type {gguf_type!r} is unknown. Use {', '.join(TYPES)}.")
    if llamacpp is not None and not (llamacpp / CONVERTER).is_file():
        raise OptionError(
            f"--llamacpp '{llamacpp}' has no {CONVERTER}. Give a directory with llama.cpp's "
            "sources."
        )
    quantization = candidate.quantization or {}
    if quantization and (candidate.manifest or {}).get("training"):
        raise OptionError(
            f"the floats behind '{candidate.path}' were trained through the rounding of its own "
            "format, and llama.cpp rounds in another. Train without --recipe, and give that draft."
        )
    source = draft or _source_of(candidate)
    return GgufConversion(source, gguf_type or closest_type(quantization), llamacpp)


def _source_of(candidate: Checkpoint) -> Path:
    if candidate.quantization is None:
        return candidate.path
    recorded = ((candidate.manifest or {}).get("draft") or {}).get("path")
    if recorded and Path(recorded).is_dir():
        return Path(recorded)
    raise OptionError(
        f"llama.cpp needs the full-precision draft that '{candidate.path}' was made from, and it "
        f"is {'gone: ' + repr(recorded) if recorded else 'not recorded'}. Give --draft."
    )


def commands(conversion: GgufConversion, output: Path) -> str:
    """Return a shell script that makes the GGUF file in `output`, for a machine with llama.cpp."""
    first = "auto" if conversion.gguf_type == "q4_0" else conversion.gguf_type
    target = shlex.quote("draft-full.gguf" if first == "auto" else conversion.file)
    source = shlex.quote(os.path.relpath(conversion.source.resolve(), output.resolve()))
    script = f'"$LLAMACPP"/{CONVERTER}'
    lines = [f"python {script} {source} --outfile {target} --outtype {first}"]
    if first == "auto":
        tool = script.replace(CONVERTER, "build/bin/llama-quantize")
        lines += [f"{tool} {target} {shlex.quote(conversion.file)} Q4_0", f"rm {target}"]
    head = [
        "#!/bin/sh",
        "# LLAMACPP: a directory with llama.cpp's sources, built. Paths are relative to this one.",
        "set -e",
        ': "${LLAMACPP:?is not set}"',
        'LLAMACPP=$(cd -- "$LLAMACPP" && pwd)',
        'cd -- "$(dirname -- "$0")"',
    ]
    return "\n".join([*head, *lines]) + "\n"


def convert(conversion: GgufConversion, staging: Path) -> Path:
    """Make the GGUF file in `staging`. Raises CheckpointError with the converter's own reason."""
    assert conversion.llamacpp is not None
    made = staging / conversion.file
    if conversion.gguf_type != "q4_0":
        _run_converter(conversion, made, conversion.gguf_type)
        return made
    full = staging / "draft-full.gguf"
    _run_converter(conversion, full, "auto")
    tool = built_tool(conversion.llamacpp, "llama-quantize")
    if tool is not None:
        _run([str(tool), str(full), str(made), "Q4_0"], "llama-quantize")
    else:
        from quantdraft.engines.llamacpp.gguf_blocks import quantize_file

        quantize_file(full, made, conversion.llamacpp)
    full.unlink()
    return made


def require_sources(llamacpp: Path | None) -> Path:
    """Return the directory of llama.cpp's sources. Raises OptionError where none is given."""
    if llamacpp is None or not (llamacpp / CONVERTER).is_file():
        given = "it is not given" if llamacpp is None else f"'{llamacpp}' has no {CONVERTER}"
        raise OptionError(
            "llama.cpp's models are made by its converter, from the directory of its sources: "
            f"{given}. Give --engine-path DIR."
        )
    return llamacpp


def cached_gguf(conversion: GgufConversion) -> Path:
    """Return the GGUF of a conversion; it is made once and kept in the cache directory."""
    hashes = directory_sha256(conversion.source)
    digest = hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest()[:16]
    output = cache_dir() / "gguf" / f"{digest}-{conversion.role}-{conversion.gguf_type}"
    file = output / conversion.file
    if not file.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            step(f"convert {conversion.source.name} to {conversion.gguf_type}"),
            whole_directory(output, force=True) as staging,
        ):
            convert(conversion, staging)
    return file


def built_tool(llamacpp: Path, name: str) -> Path | None:
    """Return a program of llama.cpp where it was built in the usual place, or None."""
    for place in ("build/bin", "build/bin/Release", "bin", "."):
        path = llamacpp / place / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _run_converter(conversion: GgufConversion, made: Path, outtype: str) -> None:
    assert conversion.llamacpp is not None
    script = str(conversion.llamacpp.absolute() / CONVERTER)
    given = [str(conversion.source), "--outfile", str(made), "--outtype", outtype]
    if _splits_as_gpt2(conversion.source):
        text = _AS_GPT2.format(root=str(conversion.llamacpp.absolute()), script=script)
        _run([sys.executable, "-c", text, *given], CONVERTER)
    else:
        _run([sys.executable, script, *given], CONVERTER)


def _splits_as_gpt2(source: Path) -> bool:
    """Return True for the plain byte-level pre-tokenizer with GPT-2's own pattern."""
    path = source / "tokenizer.json"
    if not path.is_file():
        return False
    tokenizer = read_json_object(path)
    found = tokenizer.get("pre_tokenizer")
    if not isinstance(found, dict):
        return False
    is_plain = found.get("type") == "ByteLevel" and not found.get("add_prefix_space")
    return is_plain and found.get("use_regex", True) and not tokenizer.get("normalizer")


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise CheckpointError(
            f"llama.cpp's {name} failed: {lines[-1].strip()}. It needs "
            "pip install 'quantdraft[llamacpp]'. Without --llamacpp the commands are written."
        )
