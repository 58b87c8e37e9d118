"""Plans against brute force, printed tables, and roofline arithmetic worked by hand."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantdraft.checkpoints.formats import SCHEMES
from quantdraft.checkpoints.shapes import shape_checkpoint, shape_config
from quantdraft.cli import main
from quantdraft.errors import CheckpointError, OptionError
from quantdraft.judge import speedup
from quantdraft.judge.acceptance import alpha_from_rate
from quantdraft.workflows.plan.curve import plan_curve
from quantdraft.workflows.plan.devices import device_names, load_device
from quantdraft.workflows.plan.plan import PlanSettings, plan
from quantdraft.workflows.plan.view import plan_lines
from tests.stored import LLAMA_CONFIG, llama_tensors, write_checkpoint

KS = tuple(range(1, 17))
PAIR = PlanSettings(0.75, target_config="llama-3.1-8b", draft_config="llama-3.2-1b", device="h200")

# Leviathan et al., arXiv 2211.17192, table 1: alpha, gamma, operations, speed (c and ĉ are 0).
TABLE_1 = (
    (0.6, 2, "1.53", "1.96"),
    (0.7, 3, "1.58", "2.53"),
    (0.8, 2, "1.23", "2.44"),
    (0.8, 5, "1.63", "3.69"),
    (0.9, 2, "1.11", "2.71"),
    (0.9, 10, "1.60", "6.86"),
)


@pytest.mark.parametrize(("alpha", "gamma", "operations", "speed"), TABLE_1)
def test_the_papers_table_is_reproduced_to_its_printed_precision(alpha, gamma, operations, speed):
    assert f"{speedup.leviathan(alpha, gamma, 0.0):.2f}" == speed
    assert f"{speedup.operations_factor(alpha, gamma):.2f}" == operations


def test_the_best_k_is_that_of_brute_force() -> None:
    rng = random.Random(0)
    for _ in range(200):
        alpha, cost = rng.random(), 10 ** rng.uniform(-3, 0.3)
        by_hand = {
            k: sum(alpha**j for j in range(k + 1)) / (k * cost + 1) for k in KS
        }  # theorem 3.8, its geometric sum written out
        best = plan_curve(alpha, cost, KS).best
        assert best.leviathan == pytest.approx(max(by_hand.values()))
        assert best.num_speculative_tokens == max(by_hand, key=by_hand.__getitem__)


def test_speculation_breaks_even_at_the_acceptance_that_is_printed() -> None:
    for point in plan_curve(0.75, 0.05, KS).points:
        k, alpha = point.num_speculative_tokens, point.break_even_alpha
        assert alpha is not None
        assert speedup.leviathan(alpha, k, 0.05) == pytest.approx(1.0)


def test_a_draft_as_dear_as_its_target_never_pays() -> None:
    curve = plan_curve(0.9, 1.2, KS)
    assert all(point.break_even_alpha is None for point in curve.points)
    assert curve.best.leviathan < 1


def test_the_byte_model_is_roofline_arithmetic_by_hand() -> None:
    """Llama-3.2-1B and 3.1-8B in bf16 on 4.8 TB/s; parameters as their model cards count them."""
    draft_parameters, target_parameters, target_embedding = (
        1_235_814_400,
        8_030_261_248,
        525_336_576,
    )
    draft_bytes = 2 * draft_parameters + 2 * 2048  # tied: the table is the head; and one row of it
    target_bytes = 2 * (target_parameters - target_embedding) + 2 * 4096
    made = plan(PAIR).prediction
    assert made is not None
    assert made.baseline.step_bytes == draft_bytes
    assert made.target_step_bytes == target_bytes
    assert made.baseline.draft_step_ms == pytest.approx(draft_bytes / 4.8e12 * 1e3)
    assert made.target_step_ms == pytest.approx(target_bytes / 4.8e12 * 1e3)
    assert made.baseline.draft_cost == pytest.approx(draft_bytes / target_bytes)

    # INT4: 4 bits a weight and a 2-byte scale for each 128; head, norms and the row stay.
    kept = 2 * (128256 * 2048 + 2048 * (2 * 16 + 1) + 2048)
    linears = draft_parameters - 128256 * 2048 - 2048 * (2 * 16 + 1)
    int4_bytes = kept + linears // 2 + 2 * linears // 128
    int4 = next(row for row in made.recipes if row.recipe == "int4")
    assert int4.step_bytes == int4_bytes
    cost = int4_bytes / target_bytes
    best = max(speedup.leviathan(0.75, k, cost) for k in KS)
    before = max(speedup.leviathan(0.75, k, draft_bytes / target_bytes) for k in KS)
    assert int4.speedup_over_autoregressive == pytest.approx(best)
    assert int4.speedup_over_baseline == pytest.approx(best / before)


def test_at_the_acceptance_that_may_be_lost_the_gain_is_gone() -> None:
    made = plan(PAIR)
    assert made.prediction is not None
    k = made.curve.best.num_speculative_tokens
    int4 = next(row for row in made.prediction.recipes if row.recipe == "int4")
    assert int4.break_even_loss is not None
    assert int4.draft_cost is not None
    without = speedup.leviathan(0.75 - int4.break_even_loss, k, int4.draft_cost)
    assert without == pytest.approx(made.curve.best.leviathan)


def test_context_counts_keys_and_values_of_both() -> None:
    long = plan(
        PlanSettings(
            0.75, target_config="llama-3.1-8b", draft_config="llama-3.2-1b", context_length=4096
        )
    ).prediction
    short = plan(PAIR).prediction
    assert long is not None
    assert short is not None
    per_token = 2 * 32 * 8 * 128 * 2  # keys and values, layers, KV heads, head size, bf16
    assert long.target_step_bytes - short.target_step_bytes == 4096 * per_token


def test_a_config_json_a_directory_and_a_shape_say_the_same(tmp_path: Path) -> None:
    config = shape_config("llama-3.2-1b")
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = plan(PAIR).curve.draft_cost
    for given in (tmp_path, tmp_path / "config.json"):
        made = plan(PlanSettings(0.75, target_config="llama-3.1-8b", draft_config=str(given)))
        assert made.curve.draft_cost == wanted


def test_an_absent_key_means_what_transformers_takes_it_for(tmp_path: Path) -> None:
    config = {k: v for k, v in shape_config("llama-3.2-1b").items() if k != "head_dim"}
    del config["tie_word_embeddings"]  # Llama's default: a head of its own
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = plan(PlanSettings(0.75, target_config="llama-3.1-8b", draft_config=str(tmp_path)))
    assert made.prediction is not None
    tied = plan(PAIR).prediction
    assert tied is not None
    assert made.prediction.baseline.step_bytes == tied.baseline.step_bytes


def test_an_fp8_target_reads_fewer_bytes(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    quantization = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    config = shape_config("llama-3.1-8b") | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = plan(PlanSettings(0.75, target_config=str(tmp_path), draft_config="llama-3.2-1b"))
    whole = plan(PAIR).prediction
    assert made.prediction is not None
    assert whole is not None
    head = 2 * shape_checkpoint("llama-3.1-8b").tensors["lm_head.weight"].num_bytes / 2
    linears = whole.target_step_bytes - head
    expected = linears / 2 + head
    assert made.prediction.target_step_bytes == pytest.approx(expected, rel=0.002)  # scales, norms


def test_a_format_without_a_documented_kernel_has_no_number() -> None:
    made = plan(
        PlanSettings(
            0.75, target_config="llama-3.1-8b", draft_config="llama-3.2-1b", device="mi300x"
        )
    ).prediction
    assert made is not None
    rows = {row.recipe: row for row in made.recipes}
    assert rows["fp8"].speedup_over_baseline is not None
    assert rows["int4"].speedup_over_baseline is None
    assert "no kernel for its format on AMD Instinct MI300X" in (rows["int4"].reason or "")
    assert "saves memory, not time" in (rows["nf4"].reason or "")


def test_every_device_has_sources_and_formats_that_exist() -> None:
    names = {fmt.name for fmt in SCHEMES.values()} | {"dense"}
    for name in device_names():
        device = load_device(name)
        assert device.bandwidth_source.startswith("https://")
        assert device.capability_source.startswith("https://")
        assert set(device.formats) <= names
        assert 1e11 < device.memory_bytes_per_s < 1e13
    fp8 = [n for n in device_names() if "fp8" in load_device(n).formats]
    assert {"h100", "h200", "l40s", "mi300x"} <= set(fp8)


def test_the_help_names_every_device() -> None:
    text = CliRunner().invoke(main, ["plan", "--help"]).output
    assert all(name in text for name in device_names())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_rate_counted_at_a_k_gives_the_alpha_of_the_closed_form(alpha: float, k: int) -> None:
    accepted = sum(alpha**j for j in range(1, k + 1))  # a round keeps position j by alpha^j
    rate = accepted / k
    assert alpha_from_rate(rate, k) == pytest.approx(alpha, abs=1e-9)
    made = plan(PlanSettings(draft_cost=0.05, acceptance_rate=rate, measured_k=k))
    assert made.curve.alpha == pytest.approx(alpha, abs=1e-9)
    by_alpha = plan(PlanSettings(alpha, 0.05))
    assert made.curve.best.leviathan == pytest.approx(by_alpha.curve.best.leviathan)
    at = next(p for p in by_alpha.curve.points if p.num_speculative_tokens == k)
    assert at.acceptance_rate == pytest.approx(rate)


def test_the_k_of_a_rate_is_that_of_the_plan_where_it_has_one() -> None:
    one = plan(PlanSettings(draft_cost=0.05, acceptance_rate=0.5, ks=(4,)))
    other = plan(PlanSettings(draft_cost=0.05, acceptance_rate=0.5, measured_k=4))
    assert one.curve.alpha == other.curve.alpha
    assert "(from 50.0 % accepted / proposed at k = 4)" in " ".join(plan_lines(other))
    # At k = 1 the two are one number; at any other k the rate is the lower.
    same = plan(PlanSettings(draft_cost=0.05, acceptance_rate=0.5, measured_k=1))
    assert same.curve.alpha == pytest.approx(0.5)
    assert other.curve.alpha > 0.6


def test_proposals_that_cost_nothing_are_planned() -> None:
    """n-grams: (1 - α^(k+1)) / (1 - α), which grows with k and pays from the first right one."""
    curve = plan_curve(0.5, 0.0, KS)
    for point in curve.points:
        k = point.num_speculative_tokens
        assert point.leviathan == pytest.approx((1 - 0.5 ** (k + 1)) / 0.5)
        assert point.break_even_alpha == pytest.approx(0.0, abs=1e-12)
    assert curve.best.num_speculative_tokens == 16
    result = CliRunner().invoke(main, ["plan", "-a", "0.5", "-c", "0"])
    assert result.exit_code == 0
    assert "A proposal costs nothing here" in " ".join(result.output.split())


WRONG = (
    (["-a", "75", "-c", "0.05"], "--alpha 75: it is a share"),
    (["-a", "0.75"], "what does a draft step cost?"),
    (["-a", "0.75", "-c", "-0.1"], "--draft-cost -0.1: it is a draft step"),
    (["-a", "0.75", "-c", "nan"], "--draft-cost nan"),
    (["-a", "nan", "-c", "0.1"], "--alpha nan"),
    (["-c", "0.1"], "give one of --alpha"),
    (["-a", "0.7", "--acceptance-rate", "0.5", "-c", "0.1"], "give one of --alpha"),
    (["--acceptance-rate", "0.5", "-c", "0.1"], "accepted / proposed falls with k"),
    (["--acceptance-rate", "50", "--measured-k", "4", "-c", "0.1"], "--acceptance-rate 50: it is"),
    (["--acceptance-rate", "0.5", "--measured-k", "17", "-c", "0.1"], "lies in 1..16"),
    (["-a", "0.5", "--measured-k", "4", "-c", "0.1"], "α does not depend on k"),
    (["-a", "0.75", "-c", "0.05", "-k", "0-4"], "lies in 1..16"),
    (["-a", "0.75", "-c", "0.05", "--device", "h200"], "--device needs --target-config"),
    (["-a", "0.75", "-t", "llama-3.1-8b"], "--draft-config is missing"),
    (["-a", "0.75", "-t", "llama-3.1-8b", "-d", "llama-3.2-1b", "-c", "1"], "same thing twice"),
    (["-a", "0.7", "-t", "no-model", "-d", "llama-3.2-1b"], "--target-config 'no-model'"),
    (
        ["-a", "0.7", "-t", "llama-3.1-8b", "-d", "llama-3.2-1b", "--device", "h20"],
        "Did you mean 'h200'?",
    ),
)


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_a_wrong_option_is_one_line(given: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["plan", *given])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_another_vocabulary_is_warned_of() -> None:
    given = PlanSettings(0.75, target_config="llama-3.1-8b", draft_config="qwen3-0.6b")
    assert "vocab_size is 128256 in the target and 151936" in " ".join(plan_lines(plan(given)))
    assert "Warning" not in " ".join(plan_lines(plan(PAIR)))


def test_a_family_whose_tensors_do_not_follow_from_its_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "vocab_size": 9}))
    with pytest.raises(CheckpointError, match="model type 'mixtral'"):
        plan(PlanSettings(0.7, target_config=str(tmp_path), draft_config="llama-3.2-1b"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 9}))
    with pytest.raises(CheckpointError, match="has no 'hidden_size'"):
        plan(PlanSettings(0.7, target_config=str(tmp_path), draft_config="llama-3.2-1b"))


def test_a_directory_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    config = LLAMA_CONFIG | {"intermediate_size": 768}
    tensors = llama_tensors()
    norm = tensors["model.layers.0.input_layernorm.weight"]
    tensors["model.layers.0.post_attention_layernorm.weight"] = norm
    whole = write_checkpoint(tmp_path / "whole", tensors, config)
    settings = PlanSettings(0.7, target_config="llama-3.1-8b", device="h200")
    plan(replace(settings, draft_config=str(whole)))
    del tensors["model.norm.weight"]
    part = write_checkpoint(tmp_path / "part", tensors, config)
    with pytest.raises(CheckpointError, match=r"part' lacks the tensor 'model\.norm\.weight'"):
        plan(replace(settings, draft_config=str(part)))


def test_every_line_fits_and_says_that_it_predicts() -> None:
    for settings in (PAIR, PlanSettings(0.75, 0.05)):
        lines = plan_lines(plan(settings))
        assert max(map(len, lines)) <= 100
        assert lines[0].startswith("Prediction for")


def test_json_says_what_the_table_says() -> None:
    result = CliRunner().invoke(main, ["plan", "-a", "0.75", "-c", "0.05", "--json"])
    record = json.loads(result.output)
    assert record["kind"] == "prediction"
    assert (record["alpha"], record["counted"]) == (0.75, None)
    given = ["--acceptance-rate", "0.5", "--measured-k", "4", "-c", "0.05", "--json"]
    counted = json.loads(CliRunner().invoke(main, ["plan", *given]).output)
    assert counted["counted"] == {"acceptance_rate": 0.5, "num_speculative_tokens": 4}
    assert counted["points"][3]["acceptance_rate"] == pytest.approx(0.5)
    assert record["best_k"] == plan_curve(0.75, 0.05, KS).best.num_speculative_tokens
    assert len(record["points"]) == 16


def test_planning_loads_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['quantdraft', 'plan', '-a', '0.7', '-c', '0.1']\n"
        "from quantdraft.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_a_rate_or_cost_that_is_no_number_is_refused() -> None:
    for alpha, cost in ((1.5, 0.1), (-0.1, 0.1), (0.5, -0.1), (0.5, float("inf"))):
        with pytest.raises(OptionError):
            plan_curve(alpha, cost, KS)
