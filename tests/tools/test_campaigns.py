"""Run short versions of the campaigns; the long ones are in reports/campaigns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.campaigns import null_calibration, simulated
from tests.campaigns.fault_record import Tally, as_record, with_others, write_record
from tests.campaigns.simulated import make_world, with_speedup

ROOT = Path(__file__).parents[2]
NULL_RUNS = 240


@pytest.mark.slow
@pytest.mark.parametrize("commands", ["capture", "apply,evaluate,bench", "sweep"])
def test_six_kills_lose_nothing(commands: str) -> None:
    arguments = ["--kills", "6", "--seed", "1", "--commands", commands]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.faults", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"kills": 6, "lost": 0, "half_written": 0, "wrong": 0}


def found_by(kills: dict[tuple[str, str], int], lost: list[str]) -> dict[str, Any]:
    tally = Tally(kills=Counter(kills), lost=lost)
    return as_record(tally, seed=3, commands=sorted({name for name, _ in kills}))


def test_campaigns_of_other_commands_are_kept_and_those_of_the_same_replaced(
    tmp_path: Path,
) -> None:
    first = found_by({("capture", "SIGKILL"): 2, ("bench", "full disk"): 1}, ["one"])
    write_record(first, tmp_path)
    both = with_others(found_by({("sweep", "SIGINT"): 4}, []), tmp_path)
    assert (both["kills"], both["lost"]) == (7, 1)
    write_record(both, tmp_path)
    page = (tmp_path / "faults.md").read_text()
    for campaign in both["campaigns"]:
        assert f"{campaign['date']}: `{campaign['line']}`" in page
    assert "| sweep | 0 | 0 | 4 | 0 | 0 | 0 | 4 |" in page
    assert "| all | 2 | 0 | 4 | 1 | 0 | 0 | 7 |" in page
    again = with_others(found_by({("bench", "SIGKILL"): 1, ("capture", "SIGINT"): 1}, []), tmp_path)
    assert (again["kills"], again["lost"], len(again["campaigns"])) == (6, 0, 2)


def test_a_campaign_that_killed_further_commands_stays_beside_one_of_its_own(
    tmp_path: Path,
) -> None:
    write_record(found_by({("capture", "SIGKILL"): 2, ("bench", "SIGINT"): 1}, ["one"]), tmp_path)
    tally = Tally(kills=Counter({("bench", "SIGINT"): 4}))
    tally.survived["bench", "no charts"] = 3
    both = with_others(as_record(tally, seed=1, commands=["bench"]), tmp_path)
    assert (both["kills"], both["lost"], both["ended_all_the_same"]) == (7, 1, 3)
    write_record(both, tmp_path)
    page = (tmp_path / "faults.md").read_text()
    assert page.count("| bench |") == 2
    assert page.count("could not draw: 3; all ended all the same") == 1


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def few(module_patch: pytest.MonkeyPatch) -> None:
    """A population that is made at once."""
    module_patch.setattr(simulated, "POPULATION", 2000)
    module_patch.setattr(simulated, "NUM_BLOCKS", 20_000)


@pytest.fixture(scope="module")
def module_patch():  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def most_goes(num_runs: int) -> float:
    """Of runs whose true speedup is the limit: 2.5 % are a go, four standard errors are allowed."""
    return num_runs * 0.025 + 4 * np.sqrt(num_runs * 0.025 * 0.975)


def test_the_runs_suffice_to_see_goes_of_one_in_seven() -> None:
    """Of runs with 14 % goes, as many as are allowed come up once in a thousand times."""
    rng = np.random.default_rng(1)
    assert (rng.binomial(NULL_RUNS, 0.14, 100_000) <= most_goes(NULL_RUNS)).mean() < 1e-3


def test_equal_drafts_are_hardly_ever_a_go(few: None, rng: np.random.Generator) -> None:
    world = make_world(rng, null_calibration.EQUAL)
    assert world.speedup == pytest.approx(1, abs=0.005)
    decisions = [each.decision for each in null_calibration.many(world, 16, NULL_RUNS, rng)]
    # The limit lies 2 points above the truth: fewer still than at the limit itself.
    assert decisions.count("go") <= most_goes(NULL_RUNS)


def test_at_the_limit_itself_a_go_is_as_rare_as_one_end_of_the_interval_says(
    few: None, rng: np.random.Generator
) -> None:
    world = with_speedup(make_world(rng, null_calibration.WORSE), null_calibration.LIMIT)
    decisions = [each.decision for each in null_calibration.many(world, 16, NULL_RUNS, rng)]
    assert decisions.count("go") <= most_goes(NULL_RUNS)


def test_a_large_gain_on_many_prompts_is_a_go(few: None, rng: np.random.Generator) -> None:
    world = with_speedup(make_world(rng, null_calibration.WORSE), 1.15)
    assert world.speedup == pytest.approx(1.15, abs=1e-3)
    decisions = [each.decision for each in null_calibration.many(world, 64, 20, rng)]
    # The true gain is 13 points above the limit, and the interval is some 3 points wide.
    assert decisions.count("go") >= 19
