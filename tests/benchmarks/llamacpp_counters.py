"""Compare llama.cpp's counters with replay for each GGUF type, on the embedded pair.

python -m tests.benchmarks.llamacpp_counters --llamacpp DIR [--num-prompts 4] [--num-tokens 96]

Greedy, k = 4. The target is a GGUF of float32, with a float32 KV cache and without flash attention
(--exact, the default), so that its text is transformers' own. Every draft is served beside it, and
replayed: the GGUF's weights, dequantized by the `gguf` package and loaded by transformers, one
teacher-forced pass in float32 over the text that llama.cpp emitted, counted by its convention
(tests.benchmarks.llamacpp_counts). Float32 drafts must agree to the token. In the other types
llama.cpp rounds activations too (to 16 bits, or to Q8_0 in blocks of 32), so its argmax and
replay's differ at near-ties of the draft. Times are the server's own, one short run: they say
nothing of speed unless the machine is quiet. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantdraft.checkpoints.reference import embedded_prompts, pair_dir
from quantdraft.engines.llamacpp.gguf import GgufConversion, convert
from quantdraft.engines.llamacpp.server import require_server, version
from quantdraft.engines.llamacpp.trial import Counted as Answer
from quantdraft.engines.llamacpp.trial import answers
from quantdraft.engines.measured import Request, ServerPlan
from quantdraft.engines.measured import decode_ms_per_token as milliseconds
from quantdraft.errors import EngineError, QuantDraftError
from quantdraft.measure.replay import acceptance_probabilities
from quantdraft.traffic.traffic import Response, Sampling, Traffic
from tests.benchmarks.llamacpp_counts import Counts, predicted_counts

K = 4
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
COLUMNS = "{:<6} {:>10} {:>14} {:>14} {:>8} {:>8} {:>6} {:>9} {}"


@dataclass(frozen=True)
class Counted:
    """One draft: what llama.cpp counted, what replay predicts, or why there is nothing."""

    bytes_on_disk: int
    engine: Counts | None = None
    replay: Counts | None = None
    prompts_equal: int = 0  # prompts on which all three counts are replay's
    texts_equal: int = 0  # texts that are the target's own, by llama.cpp
    ms_per_token: float | None = None
    undefined: str | None = None


def total(counts: list[Counts]) -> Counts:
    return Counts(*(sum(column) for column in zip(*counts, strict=True)))


def counted(answer: Answer) -> Counts:
    found = answer.counters
    return Counts(found.num_drafts, found.num_draft_tokens, found.num_accepted_tokens)


def replayed(file: Path, requests: list[Request], found: list[Answer]) -> list[Counts]:
    """The counters that the GGUF's own weights give on the texts that were emitted."""
    draft = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    texts = tuple(
        Response(str(index), request.prompt_token_ids, answer.completion.token_ids)
        for index, (request, answer) in enumerate(zip(requests, found, strict=True))
    )
    keeps = acceptance_probabilities(draft, Traffic(texts, Sampling()), "greedy")
    return [predicted_counts([bool(each) for each in keep], K) for keep in keeps]


def measured(
    program: Path,
    plan: ServerPlan,
    draft: Path,
    requests: list[Request],
    own: list[Answer],
    log: Path,
    arguments: tuple[str, ...],
) -> Counted:
    """Serve one draft, ask every prompt, replay the answers."""
    size = draft.stat().st_size
    try:
        found = answers(program, plan, draft, lambda _: requests, log, arguments)
    except EngineError as error:
        return Counted(size, undefined=str(error).partition(" (log: ")[0])
    engine, replay = [counted(each) for each in found], replayed(draft, requests, found)
    return Counted(
        size,
        total(engine),
        total(replay),
        sum(a == b for a, b in zip(engine, replay, strict=True)),
        sum(
            a.completion.token_ids == b.completion.token_ids
            for a, b in zip(own, found, strict=True)
        ),
        milliseconds([each.completion for each in found]),
    )


def transformers_texts(requests: list[Request]) -> list[tuple[int, ...]]:
    """The target's own greedy texts, by transformers in float32."""
    target = AutoModelForCausalLM.from_pretrained(pair_dir() / "target", dtype=torch.float32)
    texts = []
    for request in requests:
        ids = torch.tensor([request.prompt_token_ids])
        out = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request.max_tokens,
            min_new_tokens=request.max_tokens,
        )
        texts.append(tuple(out[0, ids.shape[1] :].tolist()))
    return texts


def show(name: str, found: Counted, num_prompts: int) -> None:
    if found.undefined or found.engine is None or found.replay is None:
        print(f"{name:<6} undefined: {found.undefined}", flush=True)
        return
    engine, replay = found.engine, found.replay
    assert found.ms_per_token is not None
    row = COLUMNS.format(
        name,
        found.bytes_on_disk,
        f"{engine.accepted}/{engine.proposed}",
        f"{replay.accepted}/{replay.proposed}",
        engine.rounds,
        replay.rounds,
        f"{found.prompts_equal}/{num_prompts}",
        f"{found.ms_per_token:.2f}",
        f"{found.texts_equal}/{num_prompts}",
    )
    print(row, flush=True)


def prompt_ids(num_prompts: int) -> list[tuple[int, ...]]:
    tokenizer = AutoTokenizer.from_pretrained(pair_dir() / "target")
    return [tuple(tokenizer(text)["input_ids"]) for text in embedded_prompts(num_prompts)]


def main() -> None:
    """Run it on the embedded pair and print one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llamacpp", type=Path, required=True, help="Sources, built in build/.")
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--num-tokens", type=int, default=96)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--target-type", default="f32", help="f32, f16 or bf16.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--exact", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    started, program = time.perf_counter(), require_server(options.llamacpp)
    print(f"llama-server {version(program)}, greedy, k = {K}, {options.threads} threads")
    asked = prompt_ids(options.num_prompts)
    requests = [Request(ids, options.num_tokens, Sampling(), 0, ()) for ids in asked]
    arguments = ("-t", str(options.threads))
    found: dict[str, Counted] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        target = made("target", options.target_type, options.llamacpp, directory)
        length = max(map(len, asked)) + options.num_tokens + 16
        plan = ServerPlan(target, "float32" if options.exact else "auto", K, length)
        log = directory / "target.log"
        own = answers(program, plan, None, lambda _: requests, log, arguments)
        print(
            COLUMNS.format(
                "draft",
                "bytes",
                "engine",
                "replay",
                "rounds",
                "replay",
                "equal",
                "ms/token",
                "texts",
            )
        )
        for kind in options.types.split(","):
            try:
                draft = made("draft", kind, options.llamacpp, directory)
            except QuantDraftError as error:
                found[kind] = Counted(0, undefined=str(error))
                continue
            log = directory / f"{kind}.log"
            found[kind] = measured(program, plan, draft, requests, own, log, arguments)
            show(kind, found[kind], len(requests))
    same = [
        a.completion.token_ids == b for a, b in zip(own, transformers_texts(requests), strict=True)
    ]
    print(f"texts of the target that are transformers' own: {sum(same)}/{len(same)}")
    print(json.dumps(summary(version(program), options, found, own, same, started)))


def made(role: str, kind: str, llamacpp: Path, directory: Path) -> Path:
    return convert(GgufConversion(pair_dir() / role, kind, llamacpp, role), directory)


def summary(
    about: str,
    options: argparse.Namespace,
    found: dict[str, Counted],
    own: list[Answer],
    same: list[bool],
    started: float,
) -> dict[str, Any]:
    """The figures of all drafts; those that could not be served have a reason and no number."""
    return {
        "version": about,
        "num_prompts": options.num_prompts,
        "num_tokens": options.num_tokens,
        "num_speculative_tokens": K,
        "is_exact": options.exact,
        "threads": options.threads,
        "target_type": options.target_type,
        "target_ms_per_token": milliseconds([each.completion for each in own]),
        "target_texts_equal_transformers": sum(same),
        "drafts": {name: plain(each) for name, each in found.items()},
        "seconds": round(time.perf_counter() - started, 1),
    }


def plain(found: Counted) -> dict[str, Any]:
    record = {key: value for key, value in asdict(found).items() if value is not None}
    for side in ("engine", "replay"):
        counts = getattr(found, side)
        if counts is not None:
            record[side] = counts._asdict()
    return record


if __name__ == "__main__":
    main()
