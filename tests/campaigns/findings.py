"""The defects that the fuzzing campaign and its audit found, and how each was resolved."""

from __future__ import annotations

# The readers as they were at commit 4121acd, seed 0; streams of a server not counted.
BEFORE = (
    "The readers before they were hardened (commit 4121acd, the same mutations, seed 0): 19,155 "
    "inputs, 1,658 crashes in 79 places. Now there is none."
)
# (what a hostile file did, what it meets now)
BY_FUZZING = (
    (
        "safetensors header: a missing or mistyped `dtype`, `shape` or `data_offsets` was a "
        "traceback; overlapping tensors, gaps and a key that comes twice were accepted",
        "`weights.read_header` checks every entry, its place and its name",
    ),
    (
        "model.safetensors.index.json: a shard that is no text, or 300 bytes long, was a traceback",
        "`weights.weight_files` checks the names",
    ),
    (
        "config.json: sizes that are texts, sections that are lists, groups of 0: tracebacks from "
        "30 places of the ledger, the formats and the engines' checks",
        "`configs.require_config`: strict types and ranges of all that is read, once, at the door",
    ),
    (
        "config.json: a float type with a quote in it broke out of the exported `launch.py` "
        "(code of the checkpoint, run by whoever started the script)",
        "a type is a word, checked where the config is read",
    ),
    ("heads: expert counts, sizes and layers of other types: 14 places", "the same check"),
    (
        "generation_config.json that is a list, or has texts for token ids",
        "`configs.read_generation_config`",
    ),
    (
        "tokenizer.json: the library panics in `encode`, which is no Exception",
        "`vocabulary` turns a panic into one line",
    ),
    (
        "quantdraft.json: a `draft` that is a text, a `recipe` without a name",
        "`configs.require_manifest`",
    ),
    (
        "any JSON nested 1,000 deep: RecursionError in 6 formats; any YAML: the same, and "
        "AttributeError, IndexError, ValueError for tags and numbers that are none; aliases",
        "`documents`: one reader of JSON and one of YAML, bounded in size and depth, no aliases",
    ),
    (
        "messages of several lines, with controls of the terminal in them",
        "every error of ours is one printable line of at most 4,000 characters",
    ),
    (
        "bench.json: an integer of 400 digits, which is no float",
        "`documents` refuses integers of more than 64 bits in records",
    ),
    ("traffic: a header whose `skipped` is a number", "the header's types are checked"),
    ("stages: a kept part of another shape", "it is computed again"),
    (
        "vLLM's counters: `1e999`, `-`, and positions that came or went between two readings",
        "`engines.counters` refuses what is no count",
    ),
)
BY_READING = (
    (
        "a recipe's verbatim `modifiers` reached llm-compressor's pruning, whose "
        "`update_scheduler: calc(…)` is evaluated as Python",
        "quantizing modifiers alone",
    ),
    (
        "a recipe with `calibration: {source: hub}` downloaded its data set",
        "not before the user repeats the id with --calibration",
    ),
    (
        "a checkpoint's quantdraft.json could name a draft that `evaluate` fetched from the Hub",
        "the Hub id is shown, and the user gives it",
    ),
    (
        "`attn_implementation` in config.json names code on the Hub, fetched where the package "
        "`kernels` is installed",
        "it is not taken from the config",
    ),
    ("adapter_config.json lets PEFT replace the model by another", "refused"),
    (
        "`architectures` in config.json named any attribute of transformers for the native engine",
        "it must be a model's class",
    ),
    (
        "a link in a checkpoint (`LICENSE` to a private key) was copied by `apply` and `export`",
        "refused; the Hub cache's own links are followed",
    ),
    (
        "`--vllm-args --host 0.0.0.0` and VLLM_HOST_IP opened our server to others; it was given "
        "HF_TOKEN",
        "loopback in any case, and no token",
    ),
    (
        "the record held the command with user:password@ and --api-key",
        "both are left out, and no message shows them",
    ),
    (
        "health checks went through http_proxy; two servers could be given one port",
        "asked directly; a port is given once",
    ),
    (
        "a config that transformers refuses was a traceback of its own",
        "one line, and what to do where it wants code of its own",
    ),
)


def findings_lines() -> list[str]:
    """Both lists as Markdown."""
    lines = ["## Found and mended", "", BEFORE, ""]
    for title, rows in (("By these inputs", BY_FUZZING), ("By reading, beside them", BY_READING)):
        lines += [f"{title}:", "", "| was | is |", "|---|---|"]
        lines += [f"| {was} | {now} |" for was, now in rows]
        lines.append("")
    return lines
