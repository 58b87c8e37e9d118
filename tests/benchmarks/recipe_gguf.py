"""Measure llama.cpp's row: a GGUF of the full-precision draft, and the server's own rounds.

llama.cpp rounds weights in formats of its own. They are dequantized by its `gguf` package into a
checkpoint in the usual layout, so that acceptance is replayed like every recipe's; the server's
counters then say whether the engine does what that checkpoint does.
"""

from __future__ import annotations

import importlib
import json
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.reference import pair_dir
from tests.benchmarks.recipe_rows import CONTEXT, Counted, K, Made, Served, Tried

DRAFT, TARGET = pair_dir() / "draft", pair_dir() / "target"
TARGET_TYPE = "f16"
# Names of llama.cpp's tensors, and the modules whose weights they are.
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file and the same numbers as a checkpoint in floats."""

    file: Path
    dense: Path
    seconds: float  # of the converter
    cpu_seconds: float
    peak_bytes: int  # the converter's largest resident set
    step_bytes: int


def converted(gguf_type: str, llamacpp: Path, work: Path) -> Gguf:
    """Make the GGUF with llama.cpp's own tools, then read it back into the usual layout."""
    from quantdraft.engines.llamacpp.gguf import GgufConversion, convert

    directory = work / "checkpoints" / f"gguf-{gguf_type}"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "dense").mkdir(parents=True)
    started = time.perf_counter()
    file = convert(GgufConversion(DRAFT, gguf_type, llamacpp), directory)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    step_bytes = write_dense(file, directory / "dense", llamacpp)
    return Gguf(file, directory / "dense", seconds, cpu_seconds, peak, step_bytes)


def write_dense(file: Path, directory: Path, llamacpp: Path) -> int:
    """Write the file's numbers as a float32 checkpoint; returns the bytes that a step reads."""
    import torch
    from safetensors.torch import save_file

    from quantdraft.checkpoints.checkpoint import open_checkpoint

    gguf = gguf_package(llamacpp)
    source = open_checkpoint(DRAFT)
    heads = source.text_config["num_attention_heads"], source.text_config["num_key_value_heads"]
    tensors, num_bytes = {}, 0
    for tensor in gguf.GGUFReader(str(file)).tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        name = usual_name(tensor.name)
        if name is None:
            continue
        num_bytes += int(tensor.n_bytes)
        if name.endswith("q_proj.weight"):
            values = interleaved(values, heads[0])
        elif name.endswith("k_proj.weight"):
            values = interleaved(values, heads[1])
        tensors[name] = values.float().contiguous()
    for path in DRAFT.iterdir():
        if path.suffix in {".json", ".jinja"}:
            shutil.copyfile(path, directory / path.name)
    config = source.config | {"dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return num_bytes + row_bytes(source, tensors, num_bytes)


def gguf_package(llamacpp: Path) -> Any:
    """llama.cpp's own Python package, from its sources."""
    own = str(llamacpp.absolute() / "gguf-py")
    if own not in sys.path:
        sys.path.insert(0, own)
    return importlib.import_module("gguf")


def row_bytes(source: Any, tensors: Any, num_bytes: int) -> int:
    """Bytes of the one embedding row that a step looks up, beside the table read as the head."""
    table = tensors["model.embed_tokens.weight"]
    assert source.has_tied_head, "an embedding table of its own would not be read whole"
    return round(num_bytes / sum(t.numel() for t in tensors.values()) * table.shape[1])


def usual_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` as transformers calls it; None for what is no weight of the model."""
    parts = name.removesuffix(".weight").split(".")
    module = TENSORS.get(parts[-1])
    if module is None or not name.endswith(".weight"):
        return None
    prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"{prefix}{module}.weight"


def interleaved(weight: Any, num_heads: int) -> Any:
    """Rows of a query or key projection in the usual order.

    llama.cpp turns neighbours (0, 1), (2, 3), … where transformers turns the halves (0, d/2), …;
    its converter permutes the rows, and this is the inverse.
    """
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def made(gguf_type: str, llamacpp: Path, work: Path) -> Made:
    """The row's figures; logits are those of the dequantized numbers."""
    # First: a child's largest resident set starts at its parent's, and torch is not in it yet.
    found = converted(gguf_type, llamacpp, work)
    import torch

    from quantdraft.checkpoints.checkpoint import open_checkpoint
    from quantdraft.quantize.ledger import byte_ledger
    from quantdraft.quantize.proof.proof import logit_distance, probe_logits
    from tests.benchmarks.recipe_parts import replayed

    cpu = torch.device("cpu")
    own = probe_logits(open_checkpoint(DRAFT), cpu)
    cache_bytes = CONTEXT * byte_ledger(open_checkpoint(DRAFT)).kv_bytes_per_context_token
    return Made(
        apply_seconds=found.seconds,
        cpu_seconds=found.cpu_seconds,
        peak_bytes=found.peak_bytes,
        start_bytes=None,
        disk_bytes=found.file.stat().st_size,
        step_bytes=found.step_bytes,
        context_step_bytes=found.step_bytes + cache_bytes,  # f16, as wide as bf16
        logit_error=logit_distance(probe_logits(open_checkpoint(found.dense), cpu), own),
        reload_error=None,
        **replayed(DRAFT, found.dense, work),
    )


def served(gguf_type: str, llamacpp: Path, work: Path, asked: Any) -> Served:
    """llama-server with this draft; its rounds beside those that replay predicts of its texts."""
    from quantdraft.engines.llamacpp.gguf import GgufConversion, convert
    from quantdraft.engines.llamacpp.server import require_server, version
    from quantdraft.engines.llamacpp.trial import answers
    from quantdraft.engines.measured import Request, ServerPlan
    from quantdraft.errors import EngineError
    from quantdraft.traffic.traffic import Sampling

    started, logs = time.perf_counter(), work / "logs" / f"gguf-{gguf_type}"
    program = require_server(llamacpp)
    target = convert(GgufConversion(TARGET, TARGET_TYPE, llamacpp, "target"), work / "checkpoints")
    directory = work / "checkpoints" / f"gguf-{gguf_type}"
    draft = directory / f"draft-{gguf_type}.gguf"
    requests = [
        Request(r.prompt_token_ids, len(r.response_token_ids), Sampling(), 0, ())
        for r in asked.responses
    ]
    length = max(len(each.prompt_token_ids) + each.max_tokens for each in requests) + 16
    plan = ServerPlan(target, "auto", K, length)
    try:
        found = answers(program, plan, draft, lambda _: requests, logs / "server.log")
    except EngineError as error:
        why = str(error).partition(" (log: ")[0]
        return Served(Tried("llamacpp", "refuses", why), None, time.perf_counter() - started)
    texts = [answer.completion.token_ids for answer in found]
    counts = Counted(
        dtype=TARGET_TYPE,
        engine=tuple(answer.counters.num_drafts for answer in found),
        replay=tuple(predicted(directory / "dense", asked, texts)),
        is_exact=False,  # its kernels round activations to 8 bits
        is_same_text=tuple(
            text == r.response_token_ids for text, r in zip(texts, asked.responses, strict=True)
        ),
    )
    tried = Tried("llamacpp", "loads", f"llama-server {version(program)}, target {TARGET_TYPE}")
    return Served(tried, counts, time.perf_counter() - started)


def predicted(dense: Path, asked: Any, texts: list[tuple[int, ...]]) -> list[float]:
    """Rounds that llama-server must count for its own texts, by replay of the same numbers."""
    from dataclasses import replace

    import torch

    from quantdraft.checkpoints.tensors.loading import load_model
    from quantdraft.measure.replay import acceptance_probabilities
    from quantdraft.traffic.traffic import Sampling, Traffic
    from tests.benchmarks.llamacpp_counts import predicted_counts

    responses = tuple(
        replace(response, response_token_ids=text, logprobs=None)
        for response, text in zip(asked.responses, texts, strict=True)
    )
    draft = load_model(dense, torch.float32, torch.device("cpu"))
    keeps = acceptance_probabilities(draft, Traffic(responses, Sampling()), "greedy")
    return [float(predicted_counts([bool(kept) for kept in keep], K).rounds) for keep in keeps]
