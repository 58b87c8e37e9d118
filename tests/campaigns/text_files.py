"""The text files under attack: recipes, policies, prompts, traffic, records, server replies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.common.resume import key_of, stage
from quantdraft.engines.counters import parse_counters
from quantdraft.engines.http_client import parse_event
from quantdraft.engines.vllm.client import COUNTERS, completion_piece
from quantdraft.judge.verdict.policy import Policy, load_policy
from quantdraft.quantize.ledger import project
from quantdraft.quantize.recipe import bundled_recipe_names, load_recipe, recipes_dir
from quantdraft.quantize.recipe_formats import formats_by_module
from quantdraft.record import read_bench, read_evaluation
from quantdraft.traffic.prompts import read_prompts
from quantdraft.traffic.traffic import read_traffic
from tests.campaigns.hostile import Format, as_event, as_json, as_text, as_yaml
from tests.campaigns.mutations import mutated_lines
from tests.example_evaluation import evaluation, unmeasured
from tests.pages import render_bench, render_terminal
from tests.stored import llama_tensors, write_checkpoint


class Bytes:
    """A tokenizer whose tokens are bytes: it spells every text, and is quick."""

    chat_template = "written below"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int], **_: object) -> str:
        return bytes(ids).decode()

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)


def text_formats(root: Path) -> list[Format]:
    """Every format that stands by itself, its directories written below `root`."""
    return [
        *_yaml_files(root / "yaml"),
        *_texts(root / "texts"),
        *_records(root / "records"),
        *_replies(root / "replies"),
    ]


def _yaml_files(root: Path) -> list[Format]:
    root.mkdir(parents=True)
    tensors = write_checkpoint(root / "model", tensors=llama_tensors())
    checkpoint = open_checkpoint(tensors)
    recipes = [(recipes_dir() / f"{name}.yaml").read_bytes() for name in bundled_recipe_names()]
    texts = [re.sub(rb"(?m)^name: .*$", b"name: mine", text) for text in recipes]
    plain = [
        load_recipe(name).model_copy(update={"name": "mine"}) for name in ("int4", "int8-gptq")
    ]
    texts += [recipe.model_dump_json(exclude_defaults=True).encode() for recipe in plain]

    def recipe_asked() -> None:
        recipe = load_recipe(str(root / "mine.yaml"))
        if recipe.modifiers is None and recipe.scheme != "none":
            formats_by_module(recipe, checkpoint.tensors)
            project(checkpoint, recipe)

    policy = json.dumps(Policy().model_dump()).encode()
    return [
        Format("recipe", root / "mine.yaml", tuple(texts), recipe_asked, as_yaml),
        Format(
            "policy",
            root / "policy.yaml",
            (policy, b"# mine\nmin_speedup_over_baseline: 1.05\nmin_acceptance_rate: 0.4\n"),
            lambda: load_policy(root / "policy.yaml"),
            as_yaml,
        ),
    ]


def _texts(root: Path) -> list[Format]:
    root.mkdir(parents=True)
    header = {
        "quantdraft_traffic": 1,
        "sampling": {"temperature": 0.8, "top_p": 0.9, "top_k": 0, "seed": 1},
        "target": {"name": "org/target", "weights_sha256": "a" * 64},
        "num_prompts": 2,
        "skipped": ["prompt x: too long"],
    }
    ids = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5, 6]}
    captured = [{"prompt_id": f"p{i}", **ids, "logprobs": [-0.1, -2.0, 0.0]} for i in range(2)]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, you"}]
    log = [{"prompt": "a b", "response": "c d é", "domain": "x"}, {"messages": turns}, ids]
    human = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    asked = [{"prompt": "a", "id": 7}, {"messages": turns, "domain": "chat"}]
    share = [{"id": "s1", "conversations": human}, {"id": "s2", "conversations": human * 2}]
    traffic, prompts, sharegpt = (root / n for n in ("traffic.jsonl", "p.jsonl", "share.json"))
    return [
        Format(
            "traffic",
            traffic,
            (_lines([header, *captured]), _lines(log)),
            lambda: read_traffic(traffic, Bytes()),
            mutated_lines,
        ),
        Format(
            "prompts",
            prompts,
            (_lines(asked), _lines(share)),
            lambda: read_prompts(prompts),
            mutated_lines,
        ),
        Format(
            "ShareGPT",
            sharegpt,
            (json.dumps(share).encode(), json.dumps(asked).encode()),
            lambda: read_prompts(sharegpt),
            as_json,
        ),
    ]


def _lines(entries: Sequence[Any]) -> bytes:
    return "\n".join(json.dumps(entry) for entry in entries).encode() + b"\n"


def _records(root: Path) -> list[Format]:
    from tests.report.test_bench import bench, point

    (root / "stages").mkdir(parents=True)
    run, benched, part = root / "evaluation.json", root / "bench.json", root / "stages" / "a.json"
    records = [json.dumps(asdict(each)).encode() for each in (evaluation(), unmeasured())]
    kept = {"key": key_of({"seed": 1}), "part": {"a": [1.5, 2.0], "b": []}}
    return [
        Format(
            "evaluation.json",
            run,
            tuple(records),
            lambda: read_evaluation(run),
            as_json,
        ),
        Format(
            "evaluation.json, shown",
            run,
            tuple(records),
            lambda: render_terminal(read_evaluation(run)),
            as_json,
        ),
        Format(
            "bench.json",
            benched,
            (json.dumps(asdict(bench(point(), point(batch_size=8)))).encode(),),
            lambda: render_bench(read_bench(benched)),
            as_json,
        ),
        Format(
            "stage",
            part,
            (json.dumps(kept).encode(),),
            lambda: stage(root, "a", {"seed": 1}, dict[str, list[float]], dict),
            as_json,
        ),
    ]


METRICS = b"""# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 120.0
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 40.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 160.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.1e+01
"""


def _replies(root: Path) -> list[Format]:
    """What a server may send: it need not be vLLM that listens there."""
    root.mkdir(parents=True)
    metrics, event = root / "metrics", root / "event"
    choice = {"index": 0, "text": "x", "token_ids": [1, 2], "finish_reason": None}
    piece = json.dumps({"id": "c", "choices": [choice], "usage": {}}).encode()
    before = parse_counters(METRICS.decode(), COUNTERS)

    def counted() -> None:
        parse_counters(metrics.read_bytes().decode("utf-8", "replace"), COUNTERS).since(before)

    def streamed() -> None:
        found = parse_event(event.read_bytes())
        if found is not None:
            completion_piece(found)

    return [
        Format("vLLM metrics", metrics, (METRICS,), counted, as_text),
        Format("vLLM stream", event, (b"data: " + piece, piece), streamed, as_event),
    ]
