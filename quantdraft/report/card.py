"""The model card of an exported draft: what it is, what was measured, what the verdict says."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import yaml

from quantdraft.record import Evaluation
from quantdraft.record.wording import counted, valued
from quantdraft.report.blocks import Paragraph, Section, Table
from quantdraft.report.sections.headline import (
    checks_table,
    figures,
    missing_speed,
    model_name,
    sentence,
)
from quantdraft.report.views.escaping import escape, fence
from quantdraft.report.views.markdown import render_block, render_section

NO_EVALUATION = (
    "Not evaluated. Nothing is known of its acceptance or speed: "
    "run `quantdraft evaluate` before serving it."
)


UNMEASURED_HEAD = (
    "Not evaluated: a draft head is not replayed. Nothing is known of its acceptance or speed: "
    "compare what the engine counts with the full-precision head's before serving it."
)


def model_card(
    name: str,
    manifest: dict[str, Any] | None,
    evaluation: Evaluation | None,
    *,
    engine: str,
    launch: str,
    target: str,
    notes: tuple[str, ...],
    warnings: tuple[str, ...],
    gguf_type: str | None = None,
    seen: tuple[str, ...] = (),
    is_head: bool = False,
) -> str:
    """Return README.md of an exported draft, with YAML front matter.

    launch: the exact command or script
    target: its name, revision and precision, in Markdown
    gguf_type: of a GGUF file made from the full-precision draft, whatever the recipe made of it
    seen: what the engine itself was seen to do with it
    is_head: whether it is a draft head, which an engine alone measures
    """
    recipe = (manifest or {}).get("recipe") or {}
    parts = [
        _front_matter(manifest, evaluation, gguf_type),
        f"# {escape(name)}",
        escape(_what(recipe, base_model(manifest, evaluation), gguf_type)),
        *_verdict(evaluation, UNMEASURED_HEAD if is_head else NO_EVALUATION),
        f"## Serve it with {engine}",
        fence(launch.strip(), "python" if engine == "transformers" else "sh"),
        *(["\n".join(f"- {escape(note)}" for note in notes)] if notes else []),
        *(["## Seen in the engine", "\n".join(f"- {escape(s)}" for s in seen)] if seen else []),
        *(["## Warnings", "\n".join(f"- {escape(w)}" for w in warnings)] if warnings else []),
        *([_evidence(evaluation)] if evaluation else []),
        escape(
            f"Made for the target {target} by quantdraft; beside another revision or precision it "
            "is another draft, to be measured again. The licence is that of the draft it was made "
            "from."
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    manifest: dict[str, Any] | None, evaluation: Evaluation | None, gguf_type: str | None
) -> str:
    base = base_model(manifest, evaluation)
    quantization = gguf_type or ((manifest or {}).get("recipe") or {}).get("scheme")
    tags = ["speculative-decoding", "draft-model", "quantdraft"]
    plain: dict[str, Any] = {
        "library_name": "transformers" if gguf_type is None else "gguf",
        "pipeline_tag": "text-generation",
        "tags": [*tags, quantization.lower()] if quantization not in {None, "none"} else tags,
    }
    if base:
        plain = {"base_model": base, "base_model_relation": "quantized", **plain}
    return f"---\n{yaml.safe_dump(plain, sort_keys=False)}---"


def base_model(manifest: dict[str, Any] | None, evaluation: Evaluation | None) -> str | None:
    """Return the draft this was made from, as a Hub id; of a local path its last part."""
    draft = (manifest or {}).get("draft") or {}
    measured = model_name(evaluation.provenance, "baseline") if evaluation else ""
    name = str(draft.get("name") or measured)
    # A model of two directories here looks like owner/name: where it lies ends in them.
    is_here = PurePath(str(draft.get("path") or "")).parts[-2:] == PurePath(name).parts
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not is_here
    return name.partition("@")[0] if is_hub_id else PurePath(name).name or None


def _what(recipe: dict[str, Any], base: str | None, gguf_type: str | None) -> str:
    summary, how = recipe.get("summary"), "quantized"
    if gguf_type is not None:
        how = f"converted from full precision to GGUF ({gguf_type})"
    elif summary:
        how += f" by the recipe {recipe['name']} ({str(summary).rstrip('.')})"
    return f"A draft model for speculative decoding: {base or 'an unnamed draft'}, {how}."


def _verdict(evaluation: Evaluation | None, unmeasured: str) -> list[str]:
    if evaluation is None:
        return ["## Verdict: none", f"**{unmeasured}**"]
    verdict = evaluation.verdict
    parts = [f"## Verdict: {escape(verdict.decision)}", f"**{escape(sentence(verdict))}**"]
    parts += [
        f"**Alarm {escape(alarm.code)}**: {escape(alarm.message)}" for alarm in verdict.alarms
    ]
    if verdict.to_settle:
        parts.append(f"What would settle it: {escape(verdict.to_settle)}.")
    return [*parts, render_block(figures(evaluation)), render_block(checks_table(evaluation))]


def _evidence(evaluation: Evaluation) -> str:
    latency = evaluation.latency
    traffic = evaluation.provenance.get("traffic") or {}
    rows = [
        ("Target", model_name(evaluation.provenance, "target")),
        ("Traffic", f"{counted(len(evaluation.prompts), 'prompt')}, {_tokens(traffic)}"),
        ("Traffic sha256", str(traffic.get("sha256", "unknown"))),
        ("Acceptance rule", evaluation.acceptance_rule),
        ("Timed on", f"{latency.device}, {latency.engine} engine, batch {latency.batch_size}"),
        ("Context", str(latency.context_length)),
        ("Control arm", valued(evaluation.operating_point.control_speedup, "speedup")),
        ("Created", evaluation.created),
    ]
    blocks: list[Table | Paragraph] = [Table(("Evidence", ""), tuple(rows))]
    if evaluation.speedup_over_baseline is None:
        blocks.append(Paragraph(f"Speed is undefined: {missing_speed(evaluation)}."))
    return "\n\n".join(render_section(Section("Evidence", tuple(blocks))))


def _tokens(traffic: dict[str, Any]) -> str:
    found = traffic.get("num_tokens")
    return f"{found:,} response tokens" if isinstance(found, int) else "tokens not recorded"
