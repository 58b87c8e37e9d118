"""A hand-made evaluation whose every number is known, and variants of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantdraft.record import (
    EVALUATION_SCHEMA_VERSION,
    AcceptanceComparison,
    AcceptanceCounts,
    Alarm,
    ArmLatency,
    Check,
    Disagreement,
    Evaluation,
    Interval,
    Latency,
    LiveCheck,
    PromptReplay,
    Slice,
    SpeedPoint,
    StepSamples,
    Verdict,
)

KS = (1, 2, 3, 4, 5, 6)
NUM_TOKENS = 4000
DRAFT_MS = {"baseline": 0.8125, "candidate": 0.5031}
ALONE_MS = 5.62


def verify_ms(k: int) -> float:
    return 5.62 + 0.062 * k


def rounds(keep: float, k: int) -> AcceptanceCounts:
    """Independent acceptance with probability `keep`: tau is (1 - keep^(k+1)) / (1 - keep)."""
    tau = (1 - keep ** (k + 1)) / (1 - keep)
    num_drafts = NUM_TOKENS / tau
    return AcceptanceCounts(
        k, NUM_TOKENS, num_drafts, tuple(num_drafts * keep**j for j in range(1, k + 1))
    )


def about(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def acceptance(k: int) -> AcceptanceComparison:
    before, after = rounds(0.742, k), rounds(0.731, k)
    return AcceptanceComparison(
        num_speculative_tokens=k,
        baseline=before,
        candidate=after,
        baseline_rate=about(before.acceptance_rate, 0.021),
        candidate_rate=about(after.acceptance_rate, 0.022),
        acceptance_rate_loss=about(before.acceptance_rate - after.acceptance_rate, 0.008),
        baseline_length=about(before.mean_acceptance_length, 0.07),
        candidate_length=about(after.mean_acceptance_length, 0.07),
        length_ratio=about(after.mean_acceptance_length / before.mean_acceptance_length, 0.01),
        acceptance_loss_per_pos=tuple(about(0.742**j - 0.731**j, 0.012) for j in range(1, k + 1)),
    )


def speed(k_baseline: int, k_candidate: int) -> SpeedPoint:
    taus = {
        "baseline": rounds(0.742, k_baseline).mean_acceptance_length,
        "candidate": rounds(0.731, k_candidate).mean_acceptance_length,
    }
    ks = {"baseline": k_baseline, "candidate": k_candidate}
    per_token = {arm: (ks[arm] * DRAFT_MS[arm] + verify_ms(ks[arm])) / taus[arm] for arm in ks}
    return SpeedPoint(
        baseline_num_speculative_tokens=k_baseline,
        candidate_num_speculative_tokens=k_candidate,
        baseline_draft_step_ms=DRAFT_MS["baseline"],
        candidate_draft_step_ms=DRAFT_MS["candidate"],
        baseline_verify_step_ms=verify_ms(k_baseline),
        candidate_verify_step_ms=verify_ms(k_candidate),
        autoregressive_step_ms=ALONE_MS,
        baseline_ms_per_token=per_token["baseline"],
        candidate_ms_per_token=per_token["candidate"],
        speedup_over_baseline=about(per_token["baseline"] / per_token["candidate"], 0.021),
        speedup_over_autoregressive=about(ALONE_MS / per_token["candidate"], 0.05),
        baseline_speedup_over_autoregressive=about(ALONE_MS / per_token["baseline"], 0.05),
        control_speedup=Interval(1.001, 0.993, 1.009),
        draft_latency_saving=Interval(0.3808, 0.371, 0.392),
        break_even_length=2.4037,
        break_even_rate=0.5123,
    )


def slices(*parts: tuple[str, float | None, float | None]) -> tuple[Slice, ...]:
    return tuple(
        Slice(
            name,
            32,
            1344,
            before,
            after,
            None if before is None or after is None else about(before - after, 0.011),
        )
        for name, before, after in parts
    )


def latency(batch_size: int = 1, slower: float = 1.0) -> Latency:
    """At a batch whose target passes take `slower` times as long for every token verified."""

    def arm(name: str, dtype: str, kernel: str, size: int, **steps: float) -> ArmLatency:
        spread = [0.98 + 0.002 * at for at in range(21)]  # the middle one is 1.0
        return ArmLatency(
            name,
            dtype,
            (kernel,),
            size,
            {
                int(m[1:]): StepSamples(tuple(ms * factor for factor in spread))
                for m, ms in steps.items()
            },
        )

    target = {"m1": ALONE_MS} | {f"m{k + 1}": ALONE_MS + slower * 0.062 * k for k in KS}
    return Latency(
        engine="native",
        device="cpu",
        num_threads=2,
        batch_size=batch_size,
        context_length=512,
        arms={
            "baseline": arm("baseline", "float32", "linear_float32", 13_107_200, m1=0.8125),
            "candidate": arm("candidate", "int8", "linear_dynamic", 4_194_304, m1=0.5031),
            "target": arm("target", "float32", "linear_float32", 51_380_224, **target),
        },
        load_average=(0.42, 1.08),
    )


def ledger() -> dict[str, Any]:
    before = {"attention_bytes": 1_048_576, "mlp_bytes": 6_291_456, "head_bytes": 4_194_304}
    after = {"attention_bytes": 278_528, "mlp_bytes": 1_671_168, "head_bytes": 4_194_304}
    return {
        "context_length": 512,
        "baseline": before | {"step_bytes": sum(before.values())},
        "candidate": after | {"step_bytes": sum(after.values())},
        "ceiling": sum(before.values()) / sum(after.values()),
        "num_speculative_tokens": 4,
        "largest_speedup": None,
        "can_pay": True,
        "head_options": [
            {"lever": "keep", "head_bytes": 4_194_304, "step_bytes": 6_144_000},
            {"lever": "8-bit", "head_bytes": 2_097_152, "step_bytes": 4_046_848},
        ],
        "head_advice": "Head: 68% of the candidate's bytes; 8 bits save 34% of a step.",
        "sentence": "A draft step reads 11.53 MB → 6.14 MB: at most 1.88x as fast.",
    }


def provenance(name: str = "int8") -> dict[str, Any]:
    return {
        "command": f"quantdraft evaluate runs/{name} --target org/Target-7B --traffic t.jsonl",
        "versions": {"quantdraft": "0.1.0", "torch": "2.13.0", "transformers": "5.17.0"},
        "device": {"name": "cpu", "model": "Example CPU", "num_threads": 2},
        "baseline": _model("org/Draft-0.5B", "b"),
        "candidate": _model(name, "c"),
        "target": _model("org/Target-7B", "d"),
        "traffic": {"path": "t.jsonl", "sha256": "a" * 64, "num_prompts": 32, "num_tokens": 4032},
        "seeds": {"bootstrap": 0},
        "control_of": None,
    }


def _model(name: str, letter: str) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"models/{name}",
        "revision": None,
        "dtype": "bfloat16",
        "weights_sha256": letter * 64,
    }


def verdict() -> Verdict:
    point = speed(4, 4)
    return Verdict(
        decision="go",
        summary=(
            "go: int8 is 13.3 % faster than the float32 draft (95 % interval 11.2 to 15.4 %) and "
            "2.10 × (2.05 to 2.15 ×) as fast as the target alone, at k = 4"
        ),
        checks=(
            Check(
                "acceptance rate loss",
                "advises",
                "pass",
                acceptance(4).acceptance_rate_loss,
                0.04,
                "<=",
                "the loss stays under the usual cost of quantization",
            ),
            Check(
                "speedup over the baseline draft",
                "decides",
                "pass",
                point.speedup_over_baseline,
                1.02,
                ">=",
                "the lower end clears the limit",
            ),
            Check(
                "speedup over autoregressive",
                "decides",
                "pass",
                point.speedup_over_autoregressive,
                1.0,
                ">",
                "speculation pays",
            ),
            Check("no alarm", "decides", "pass", None, None, None, "no alarm was raised"),
        ),
        alarms=(),
        advice=("Raise k to 5 for the candidate: 2.31 → 2.27 ms per token.",),
        to_settle=None,
    )


def evaluation(name: str = "int8") -> Evaluation:
    """A go: int8 at k = 4 on a CPU, 32 prompts."""
    prompts = tuple(
        PromptReplay(
            f"prompt-{at:02d}",
            "code" if at % 2 else "prose",
            100 + at,
            126,
            tuple(60.0 - 6 * k for k in KS),
            tuple(60.0 - 6 * k + at / 4 for k in KS),
            tuple(66.0 + 6 * k for k in KS),
            tuple(66.0 + 6 * k - at / 4 for k in KS),
        )
        for at in range(32)
    )
    return Evaluation(
        schema_version=EVALUATION_SCHEMA_VERSION,
        name=name,
        created="2026-11-22T08:30:00Z",
        acceptance_rule="greedy",
        num_speculative_tokens=KS,
        operating_point=speed(4, 4),
        equal_k=tuple(speed(k, k) for k in KS),
        best_k={"baseline": 4, "candidate": 5},
        acceptance=tuple(acceptance(k) for k in KS),
        prompts=prompts,
        by_position=slices(
            ("first third", 0.701, 0.682),
            ("middle third", 0.752, 0.741),
            ("last third", 0.77, 0.765),
        ),
        by_context=slices(("0 to 127", 0.72, 0.706), ("128 to 511", 0.755, 0.745)),
        by_domain=slices(("code", 0.803, 0.798), ("prose", 0.688, 0.669), ("empty", None, None)),
        latency=latency(),
        live=(
            LiveCheck(4, "baseline", ("a", "b"), (31.0, 40.0), (31.0, 40.0), 2, 0, 0),
            LiveCheck(4, "candidate", ("a", "b"), (33.0, 41.0), (33.0, 42.0), 1, 1, 0),
        ),
        verdict=verdict(),
        ledger=ledger(),
        provenance=provenance(name),
    )


def gridded() -> Evaluation:
    """Timed at three batches too; at the largest, verifying five tokens costs as much as five."""
    points = (latency(8, 4.0), latency(64, 200.0))
    left_out = replace(latency(256), arms={}, undefined={"candidate": "out of memory"})
    return replace(evaluation(), grid=(*points, left_out))


def with_text(words: str, name: str = "int8") -> Evaluation:
    """Everything that a user names or writes is `words`."""
    made = evaluation(name)
    found = Disagreement(
        prompt_id=words,
        domain=words,
        prompt_end=words,
        tokens=("a", words, "\n", "b", "c"),
        baseline_keep=(0.0, 1.0, 1.0, 1.0, 1.0),
        candidate_keep=(0.0, 1.0, 0.0, 1.0, 1.0),
        num_tokens_left_out=3,
    )
    prompts = (replace(made.prompts[0], prompt_id=words, domain=words), *made.prompts[1:])
    return replace(
        made,
        prompts=prompts,
        by_domain=(replace(made.by_domain[0], name=words), *made.by_domain[1:]),
        disagreements=(found, replace(found, prompt_id="prompt-01", domain="code")),
        provenance=made.provenance | {"command": words, "baseline": _model(words, "b")},
    )


WHY_UNDEFINED = "no FP8 kernel on this CPU"


def unmeasured() -> Evaluation:
    """Inconclusive: the candidate's format has no kernel here, so no speed exists."""
    made = evaluation("fp8")
    without: dict[str, Any] = dict.fromkeys(
        (
            "candidate_draft_step_ms",
            "candidate_verify_step_ms",
            "candidate_ms_per_token",
            "speedup_over_baseline",
            "speedup_over_autoregressive",
            "draft_latency_saving",
            "break_even_length",
            "break_even_rate",
        )
    )
    undefined_check = Check(
        "speedup over the baseline draft", "decides", "undefined", None, 1.02, ">=", WHY_UNDEFINED
    )
    arms = {name: arm for name, arm in made.latency.arms.items() if name != "candidate"}
    return replace(
        made,
        operating_point=replace(made.operating_point, **without),
        equal_k=tuple(replace(point, **without) for point in made.equal_k),
        best_k={"baseline": 4, "candidate": None},
        latency=replace(made.latency, arms=arms, undefined={"candidate": WHY_UNDEFINED}),
        verdict=Verdict(
            "inconclusive",
            "The speed of the candidate could not be measured here.",
            (undefined_check, made.verdict.checks[0]),
            (),
            (),
            "Time it where the format has a kernel: a GPU of compute capability 8.9 or newer.",
        ),
    )


def alarmed() -> Evaluation:
    """A no-go with an alarm."""
    made = evaluation("int4-damaged")
    alarm = Alarm("acceptance-collapsed", "τ fell to 1.03: the draft's text is never accepted.")
    why = "Do not serve it: the draft is not accepted."
    checks = tuple(
        replace(check, result="fail") if check.name == "no alarm" else check
        for check in made.verdict.checks
    )
    return replace(made, verdict=Verdict("no-go", why, checks, (alarm,), (), None))
