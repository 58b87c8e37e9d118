"""Evidence on one screen: samples, controls, machine, hashes, the command."""

from __future__ import annotations

from typing import Any

from quantdraft.record import Evaluation, LiveCheck
from quantdraft.record.wording import UNDEFINED, count, counted, load_words, percent, valued
from quantdraft.report.blocks import Block, Paragraph, Section, Table
from quantdraft.report.sections.headline import model_name

NOT_COVERED = (
    "prefill and the first token, scheduling, other users' requests; another target precision, "
    "engine, batch, context or machine than those above, or this machine under another load"
)
HASH_LENGTH = 12
MODELS = ("target", "baseline", "candidate")


def evidence_section(evaluation: Evaluation) -> Section:
    """Return one row for every question that a critical reader asks first."""
    rows = (
        ("Traffic", _traffic(evaluation)),
        *_reading_rows(evaluation),
        ("Domains", _domains(evaluation)),
        *((role.capitalize(), _model(evaluation, role)) for role in MODELS),
        *_training_rows(evaluation),
        ("Replay", _replay(evaluation)),
        ("Timing", _timing(evaluation)),
        ("Machine", _machine(evaluation)),
        ("Baseline's step", _baseline_step(evaluation)),
        ("Control", _control(evaluation)),
        ("Live loop", _live(evaluation)),
        ("Alarms", ", ".join(a.code for a in evaluation.verdict.alarms) or "none was raised"),
        ("Intervals", _intervals(evaluation)),
        ("Not covered", NOT_COVERED),
    )
    blocks: list[Block] = [Table(("What", "How much, and how"), rows)]
    command = evaluation.provenance.get("command")
    if command:
        blocks.append(Paragraph(f"To run it again: `{command}`"))
    return Section("Evidence", tuple(blocks))


def _traffic(evaluation: Evaluation) -> str:
    found = _part(evaluation, "traffic")
    tokens, sampling = found.get("num_tokens"), found.get("sampling")
    parts = [counted(len(evaluation.prompts), "prompt")]
    parts += [f"{count(tokens)} response tokens"] if isinstance(tokens, int) else []
    parts += [_sampling(sampling)] if isinstance(sampling, dict) else []
    parts += [f"{found['path']}"] if found.get("path") else []
    is_foreign = found.get("is_of_target") is False
    parts += ["made by other weights than the target's"] if is_foreign else []
    parts += _held_out(found.get("part"), "training" in evaluation.provenance)
    return ", ".join((*parts, _hash(found.get("sha256"))))


def _held_out(part: Any, is_trained: bool) -> list[str]:
    """Return which part of the file was judged on, where it was not the whole."""
    if not isinstance(part, dict):
        return []
    rest, whole = part.get("num_conversations"), part.get("num_in_file")
    seen = "trained" if is_trained else "calibrated"
    return [f"{rest} of its {whole} conversations: those that are not {seen} on"]


def _training_rows(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Return what training each draft cost, and gained where it was chosen."""
    found = _part(evaluation, "training")
    return tuple(
        ("Training", _training(role, each))
        for role, each in found.items()
        if isinstance(each, dict)
    )


def _training(role: str, found: dict[str, Any]) -> str:
    parts = [f"the {role}"]
    if isinstance(found.get("minutes"), int | float):
        parts.append(f"{found['minutes']:.1f} minutes")
    if isinstance(found.get("num_tokens"), int):
        parts.append(f"{count(found['num_tokens'])} tokens")
    parts.append(f"loss {found.get('loss')}")
    before, after = found.get("selection_rate_before"), found.get("selection_rate_after")
    if isinstance(before, int | float) and isinstance(after, int | float):
        parts.append(
            f"acceptance {percent(before)} → {percent(after)} at k = "
            f"{found.get('num_speculative_tokens')} on the conversations by which it was chosen"
        )
    return ", ".join(parts)


def _reading_rows(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Return what a log was read as, what was left out of it, and what is uncertain in it."""
    reading = _part(evaluation, "traffic").get("reading")
    if not isinstance(reading, dict):
        return ()
    formats = reading.get("formats") or {}
    lines = f"{count(reading.get('num_used', 0))} of {count(reading.get('num_lines', 0))} lines"
    names = " and ".join(str(name) for name in formats)
    notes = [str(note) for note in reading.get("notes") or ()]
    rows = {
        "Read as": ", ".join([names, lines, *notes]) if formats else "",
        "Left out": "; ".join(map(_left_out, reading.get("left_out") or ())),
        "Uncertain": " ".join(str(each) for each in reading.get("warnings") or ()),
    }
    return tuple((name, text) for name, text in rows.items() if text)


def _left_out(found: dict[str, Any]) -> str:
    places = found.get("places")
    named = ", ".join(map(str, places)) if isinstance(places, (list, tuple)) else ""
    more = ", …" if isinstance(places, (list, tuple)) and found.get("count") != len(places) else ""
    where = f" ({named}{more})" if named else ""
    return f"{found.get('count')}{where}: {found.get('reason')}"


def _sampling(sampling: dict[str, Any]) -> str:
    if not sampling.get("temperature"):
        return "greedy"
    return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in sampling.items())


def _domains(evaluation: Evaluation) -> str:
    sizes: dict[str, int] = {}
    for prompt in evaluation.prompts:
        sizes[prompt.domain] = sizes.get(prompt.domain, 0) + 1
    most = sorted(sizes.items(), key=lambda each: (-each[1], each[0]))
    listed = ", ".join(f"{name} {size}" for name, size in most[:8])
    return listed + (f" and {len(most) - 8} more" if len(most) > 8 else "") or "none"


def _model(evaluation: Evaluation, role: str) -> str:
    found = _part(evaluation, role)
    hashes = found.get("sha256")
    weights = found.get("weights_sha256")
    if isinstance(hashes, dict):
        weights = next((value for name, value in hashes.items() if name != "config.json"), None)
    parts = [model_name(evaluation.provenance, role)]
    parts += [str(found[key]) for key in ("revision", "dtype") if found.get(key)]
    return ", ".join((*parts, _hash(weights)))


def _replay(evaluation: Evaluation) -> str:
    ks = evaluation.num_speculative_tokens
    dtype = evaluation.provenance.get("compute_dtype")
    parts = [f"rule {evaluation.acceptance_rule}", f"k = {', '.join(map(str, ks))}"]
    parts += [f"computed in {dtype}"] if dtype else []
    return ", ".join((*parts, "both arms on the same tokens"))


def _timing(evaluation: Evaluation) -> str:
    latency, served = evaluation.latency, evaluation.served
    if served is not None:
        how = "in turns" if served.is_interleaved else "one after another"
        return f"{served.engine} {served.version}, whole requests one at a time, servers {how}"
    if not latency.arms:
        return UNDEFINED
    blocks = min(len(s.samples_ms) for a in latency.arms.values() for s in a.steps.values())
    size = f"batch {latency.batch_size}, context {latency.context_length}"
    if not latency.loads:
        return f"{latency.engine} engine, {count(blocks)} shuffled blocks of every arm, {size}"
    again = f"; timed again on kernels chosen anew: {latency.retried[0]}" if latency.retried else ""
    return (
        f"{latency.engine} engine, every arm loaded {count(latency.num_loads)} times, "
        f"{count(len(latency.loads))} shuffled blocks in all, {size}{again}"
    )


def _machine(evaluation: Evaluation) -> str:
    record, latency = evaluation.provenance, evaluation.latency
    device = record.get("device")
    known = device if isinstance(device, dict) else record
    name = record.get("device_name") or known.get("cpu") or known.get("model")
    card = record.get("gpu") or {}
    facts = {"capability": "capability", "driver": "driver", "CUDA": "cuda"}
    parts = [
        latency.device,
        *([str(name)] if name else []),
        *(f"{word} {card[key]}" for word, key in facts.items() if card.get(key)),
        counted(latency.num_threads, "thread"),
    ]
    return f"{', '.join(parts)}. {load_words(latency.load_average)}"


def _baseline_step(evaluation: Evaluation) -> str:
    """Return the baseline's share of the bandwidth: far from it every recipe looks good."""
    latency = evaluation.latency
    if latency.roofline is None or "baseline" not in latency.arms:
        return UNDEFINED
    fraction = latency.bandwidth_fraction("baseline")
    if fraction is None:
        return UNDEFINED
    return (
        f"its bytes over its time are {percent(fraction)} of the copy bandwidth measured in the "
        "same run; far below 100 % the step does not wait for its bytes"
    )


def _control(evaluation: Evaluation) -> str:
    ends = evaluation.operating_point.control_speedup
    if ends is None:
        return f"{UNDEFINED}: the baseline was not timed against itself"
    words = f"the baseline against itself {valued(ends, 'speedup')}"
    of_target = evaluation.operating_point.target_control_speedup
    if of_target is not None:
        words += f", the target against itself {valued(of_target, 'speedup')}"
    return f"{words}, which should be 1"


def _live(evaluation: Evaluation) -> str:
    if not evaluation.live:
        return "not run: the replayed counts are unproven in this record"
    return "; ".join(_agreement(check) for check in evaluation.live)


def _agreement(check: LiveCheck) -> str:
    if check.is_expectation:
        return (
            f"{check.arm}: rounds agree in the mean on {counted(len(check.prompt_ids), 'prompt')}"
        )
    equal, num_prompts = check.num_equal, len(check.prompt_ids)
    return f"{check.arm}: rounds equal replay's on {equal} of {num_prompts} prompts"


def _intervals(evaluation: Evaluation) -> str:
    seeds, has_loads = _part(evaluation, "seeds"), bool(evaluation.latency.loads)
    resamples = count(evaluation.known_analysis.num_resamples)
    times = "of loads of the arms" if has_loads else "of timing blocks of one load"
    named = [prompt.conversation for prompt in evaluation.prompts if prompt.conversation]
    units = "conversations" if len(set(named)) < len(named) else "prompts"
    return (
        f"95 %, by {resamples} resamples of {units} (both arms of one together) "
        f"and {times}, seed {seeds.get('bootstrap', 0)}. They hold what differs between {units}"
        f"{', blocks and loads' if has_loads else ' and blocks'} of this run"
        f"{'' if has_loads else ', and not what differs between loads of one model'}"
    )


def _part(evaluation: Evaluation, key: str) -> dict[str, Any]:
    found = evaluation.provenance.get(key)
    return found if isinstance(found, dict) else {}


def _hash(value: Any) -> str:
    return f"sha256 {str(value)[:HASH_LENGTH]}…" if value else "sha256 unknown"
