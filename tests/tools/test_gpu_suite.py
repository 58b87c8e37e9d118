"""Run the GPU suite's dry run: the same code on this machine, on a small shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from quantdraft.errors import OptionError, UndefinedMetricError
from quantdraft.measure.latency.point import untimed
from quantdraft.measure.latency.timing_plan import Place
from tests.benchmarks import gpu_carry
from tests.benchmarks.gpu_parts import OutOfTime, Parts, copy_earlier, device_of, run_plainly
from tests.benchmarks.gpu_suite import contenders_of, parsed, what_to_time
from tests.hidden import hide

ROOT = Path(__file__).parents[2]
ABSENT = "altair,vl_convert,compressed_tensors,loguru,llmcompressor,hypothesis,playwright"
CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_dry_run_measures_every_arm_that_has_a_kernel_and_resumes_without_what_draws(tmp_path):
    command = [sys.executable, "-m", "tests.hidden", ABSENT, "tests.benchmarks.gpu_suite"]
    command += ["--dry-run", "--device=cpu", "--seconds=0.2", f"--output={tmp_path / 'suite'}"]
    stopped = run([*command, "--minutes=0.001"])
    assert stopped.returncode == 3, stopped.stderr
    assert "run the command again" in stopped.stdout
    (kept,) = (tmp_path / "suite" / "embedded-draft").iterdir()
    assert len(json.loads(kept.read_text())) == 1
    # A second machine gets what the first left, and leaves out what broke there.
    (tmp_path / "suite").rename(tmp_path / "earlier")
    done = run([*command, f"--from={tmp_path / 'earlier'}", "--without", "int8-head8"])
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((tmp_path / "suite" / "suite.json").read_text(encoding="utf-8"))
    point = summary["shapes"]["embedded-draft"][0]
    for name in ("baseline", "control", "int4", "int4-head8", "int8"):
        assert point["steps"][name]["median_ms"] > 0
        assert point["steps"][name]["bandwidth_fraction"] > 0
    assert "no cpu kernel computes in fp8" in point["undefined"]["fp8"]
    assert point["undefined"]["int8-head8"] == "left out by --without"
    assert summary["goals"]["baseline"]["is_met"] in {True, False}
    assert summary["environment"]["versions"]["quantdraft"]
    record = tmp_path / "suite" / "embedded-draft" / "bench.json"
    assert [path.name for path in record.parent.iterdir()] == ["bench.json"]

    written = record.stat().st_mtime_ns
    looped = run([*command, "--live-loop"])
    assert looped.returncode == 0, looped.stderr
    summary = json.loads(looped.stdout.splitlines()[-1])
    assert summary["live_loop"]["int4"]["is_same_text"]
    assert set(summary["live_loop"]["int4"]) >= {"eager", "is_same_text"}
    assert "no cpu kernel" in summary["live_loop"]["fp8"]["undefined"]
    again = run(command)
    assert "is finished" in again.stdout
    assert record.stat().st_mtime_ns == written  # what is finished is not measured again
    absent = run([*command, "--draw"])
    assert absent.returncode == 1
    assert "altair" in absent.stderr
    assert "Traceback" not in absent.stderr
    drawn = run([*[sys.executable, "-m"], *command[4:], "--draw"])
    assert drawn.returncode == 0, drawn.stderr
    assert (record.parent / "bench.html").stat().st_size > 10_000


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command, when it has ended."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=580, check=False
    )


def test_parts_are_kept_in_one_file_and_a_call_that_is_over_leaves_the_rest(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return untimed((1, 16), CPU, None, {"fp8": "no kernel"})

    first = Parts(tmp_path, {"seconds": 8}, seconds=60.0)
    kept = first.keep(Place(0, 0, 1, 16), measure)
    again = Parts(tmp_path, {"seconds": 8}, seconds=0.0)  # killed, and started with no time at all
    assert again.keep(Place(0, 0, 1, 16), measure) == kept
    assert asked == [1]
    again.keep(Place(0, 1, 1, 16), measure)  # one more in each call: it ends some day
    assert asked == [1, 1]
    with pytest.raises(OutOfTime):
        again.keep(Place(0, 2, 1, 16), measure)
    assert [item.name for item in tmp_path.iterdir()] == [first.path.name]
    other = Parts(tmp_path, {"seconds": 9}, seconds=60.0)
    other.keep(Place(0, 0, 1, 16), measure)  # another question
    assert asked == [1, 1, 1]
    assert len(Parts(tmp_path, {"seconds": 8}, seconds=0.0).parts) == 2  # which loses no answer


def test_what_an_earlier_call_left_is_copied_but_never_over_what_is_newer(tmp_path):
    for name, text in (("earlier/a/bench.json", "old"), ("earlier/b.json", "b"), ("now/a/x", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "now/a/bench.json").write_text("new")
    copy_earlier(tmp_path / "earlier", tmp_path / "now")
    assert (tmp_path / "now/a/bench.json").read_text() == "new"
    assert (tmp_path / "now/b.json").read_text() == "b"
    with pytest.raises(OptionError, match="is no directory"):
        copy_earlier(tmp_path / "absent", tmp_path / "now")


def test_a_machine_without_a_gpu_is_told_so_before_hours_are_spent(monkeypatch):
    with pytest.raises(OptionError, match="--dry-run"):
        device_of("cpu", is_dry_run=False)
    assert device_of("cpu", is_dry_run=True) == CPU

    def fail() -> int:
        raise OptionError("no GPU was found")

    with pytest.raises(SystemExit, match="Error: no GPU was found"):
        run_plainly(fail)


def test_a_call_times_one_shape_and_the_target_with_the_first_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["suite", f"--output={tmp_path}", "--without", "fp8"])
    options: Namespace = parsed()
    assert (options.shape, options.minutes) == ("llama-3.2-1b", 9.0)
    settings, contenders = what_to_time(options, "qwen3-0.6b", shape("qwen3-0.6b"), CPU)
    with pytest.raises(UndefinedMetricError, match="left out by --without"):
        contenders.sources["fp8"].weight("model.layers.0.mlp.up_proj")
    assert "target" not in contenders.sources
    assert {"baseline", "fp8-head8", "control"} <= set(contenders.sources)
    assert (settings.batch_sizes[-1], settings.context_lengths[-1]) == (64, 4096)
    _, first = what_to_time(options, "llama-3.2-1b", shape("llama-3.2-1b"), CPU)
    assert "target" in first.sources


def shape(name: str):
    """A published model's shape."""
    from quantdraft.checkpoints.shapes import shape_checkpoint

    return shape_checkpoint(name)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b"])
def test_every_shape_fits_an_h100_at_the_largest_point(name):
    """Weights of all arms, one cache of the drafts, and then the target's: 78 GiB, a tenth free."""
    from quantdraft.measure.latency.memory import MEMORY_SHARE, weight_bytes

    target = shape("llama-3.1-8b") if name == "llama-3.2-1b" else None
    sources = contenders_of(name, shape(name), target).sources
    weights = sum(
        weight_bytes(source, torch.bfloat16, torch.device("cuda"), (1, 64))
        for source in sources.values()
    )
    caches = {source.ledger.cache_bytes(4096 + 9) * 64 for source in sources.values()}
    room = MEMORY_SHARE * (78 * 2**30 - weights)
    assert max(caches) < room


def test_a_hidden_package_is_not_found(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "altair"]:
        monkeypatch.delitem(sys.modules, name)
    hide(["altair"])
    with pytest.raises(ModuleNotFoundError, match="altair"):
        import_module("altair.vegalite")
    assert find_spec("altair") is None
    assert find_spec("vl_convert") is not None


def test_wheels_are_those_of_the_pinned_versions_for_the_machine_that_lacks_them(tmp_path):
    command = gpu_carry.install_command(tmp_path, gpu_carry.PACKAGES, "3.12")
    wanted = {word.partition("==")[0]: word.partition("==")[2] for word in command[-4:]}
    assert set(wanted) == set(gpu_carry.PACKAGES)
    assert all(wanted.values())
    assert "3.12" in command
    (tmp_path / "a.whl").write_bytes(b"x" * 10)
    assert gpu_carry.folder_bytes(tmp_path) == 10
    pages = sum(path.stat().st_size for path in (ROOT / "reports").rglob("*") if path.is_file())
    # The packages that are always carried take 8 MiB, those for a trained pair two more.
    assert 0 < gpu_carry.tree_bytes() - pages < gpu_carry.MAX_BYTES - (10 << 20)


def test_a_profiled_step_has_a_number_of_kernels_and_one_that_cannot_run_a_reason():
    from quantdraft.checkpoints.checkpoint import open_checkpoint
    from quantdraft.checkpoints.reference import pair_dir
    from tests.benchmarks.step_kernels import profiled

    draft = open_checkpoint(pair_dir() / "draft")
    found = profiled(draft, None, 16, CPU)
    assert found["num_kernels"] > len(found["by"]) > 0
    assert found["kernel_ms"] > 0
    assert "no cpu kernel computes in fp8" in profiled(draft, "fp8", 16, CPU)["undefined"]
