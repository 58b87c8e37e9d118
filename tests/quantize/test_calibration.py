"""Samples: from traffic, a file or the Hub; chosen by seed, cut to length."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.common.files import file_sha256
from quantdraft.errors import MissingPackageError, RecipeError, TrafficError
from quantdraft.quantize.calibration import CalibrationData, calibration_data, taking_all
from quantdraft.quantize.recipe import Recipe, bundled_recipe_names, load_recipe
from quantdraft.traffic.parts import SPLIT_FILE, Part
from tests.conftest import Pair
from tests.quantize.test_apply import write_traffic


def calibrated(**given: object) -> Recipe:
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor", "scheme": "W4A16"}
    calibration = {"share": 1.0, **given}
    return Recipe.model_validate(plain | {"method": "gptq", "calibration": calibration})


def chosen(recipe: Recipe, pair: Pair, path: Path | None) -> CalibrationData:
    return calibration_data(recipe, open_checkpoint(pair.draft), path)


def write_texts(path: Path, num_texts: int, column: str = "text") -> Path:
    lines = [json.dumps({column: f"text {i} " + "x" * 20}) for i in range(num_texts)]
    path.write_text("\n".join(lines))
    return path


def test_every_calibrated_recipe_gets_the_same_samples(tiny_pair: Pair, tmp_path: Path) -> None:
    """All back ends are asked for as many samples as there are here, by the same seed."""
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    recipes = [load_recipe(name) for name in bundled_recipe_names()]
    samples = {
        chosen(taking_all(r), tiny_pair, traffic).samples for r in recipes if r.needs_calibration
    }
    assert len(samples) == 1
    assert len(next(iter(samples))) == 12


def test_a_sample_is_prompt_and_response_cut_to_length(tiny_pair: Pair, tmp_path: Path) -> None:
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    data = chosen(calibrated(num_samples=3, max_seq_length=16), tiny_pair, traffic)
    first = json.loads(traffic.read_text().splitlines()[0])
    whole = first["prompt_token_ids"] + first["response_token_ids"]
    assert [len(sample) for sample in data.samples] == [16] * 3
    assert data.record is not None
    assert data.record["num_tokens"] == 48
    everything = chosen(calibrated(num_samples=12), tiny_pair, traffic)
    assert everything.samples[0] == tuple(whole)


def test_another_seed_chooses_others(tiny_pair: Pair, tmp_path: Path) -> None:
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    ids = [
        chosen(calibrated(num_samples=4, seed=seed), tiny_pair, traffic).record
        for seed in (0, 1, 0)
    ]
    names = [record["prompt_ids"] for record in ids if record is not None]
    assert names[0] == names[2] != names[1]


def test_one_half_of_a_traffic_is_seen_and_said(tiny_pair: Pair, tmp_path: Path) -> None:
    """By conversation, and by default: the other half is left to judge on."""
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    data = chosen(load_recipe("int4-gptq"), tiny_pair, traffic)
    assert len(data.samples) == 6
    assert data.record is not None
    assert data.record["part"]["of_sha256"] == data.record["sha256"]
    assert "6 conversations" in str(data.note)
    assert "the other 6" in str(data.note)


@pytest.mark.parametrize(
    ("settings", "num_samples", "said"),
    [({"share": 1.0}, 12, "refuses"), ({"share": 0.25}, 3, "the other 9")],
)
def test_the_share_of_a_traffic_may_be_told(
    tiny_pair: Pair, tmp_path: Path, settings: dict[str, Any], num_samples: int, said: str
) -> None:
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    data = chosen(calibrated(**settings), tiny_pair, traffic)
    assert len(data.samples) == num_samples
    assert said in str(data.note)


def test_a_part_that_was_split_off_is_seen_whole(tiny_pair: Pair, tmp_path: Path) -> None:
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    part = Part("whole", "", "8", 0.5, 12, 24).as_record()
    written = {"parts": {"calibration": {"sha256": file_sha256(traffic), "part": part}}}
    (tmp_path / SPLIT_FILE).write_text(json.dumps(written))
    data = chosen(load_recipe("int4-gptq"), tiny_pair, traffic)
    assert len(data.samples) == 12
    assert data.record is not None
    assert data.record["split"] == part


def test_a_file_of_texts_is_tokenized(tiny_pair: Pair, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 5)
    data = chosen(calibrated(source="file", num_samples=2), tiny_pair, path)
    assert len(data.samples) == 2
    assert len(data.samples[0]) == len("text 0 ") + 20  # a token is a byte here
    assert data.record is not None
    assert data.record["source"] == "file"


def test_the_recipe_may_name_the_file(tiny_pair: Pair, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 5, column="body")
    recipe = calibrated(source="file", path=str(path), column="body")
    assert len(chosen(recipe, tiny_pair, None).samples) == 5


def test_a_line_without_the_column_is_named(tiny_pair: Pair, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", 2, column="body")
    with pytest.raises(TrafficError, match="line 1: has no text under 'text'"):
        chosen(calibrated(source="file"), tiny_pair, path)


def test_no_file_says_what_is_wanted(tiny_pair: Pair) -> None:
    with pytest.raises(RecipeError, match="--calibration FILE"):
        chosen(calibrated(source="file"), tiny_pair, None)
    with pytest.raises(RecipeError, match="quantdraft capture"):
        chosen(calibrated(), tiny_pair, None)


HUB_ID = Path("owner/name")  # what the user says yes to


def fake_hub(rows: Sequence[dict[str, Any]]) -> SimpleNamespace:
    class Rows:
        def take(self, count: int) -> Sequence[dict[str, Any]]:
            return rows[:count]

    return SimpleNamespace(load_dataset=lambda *_args, **_options: Rows())


def test_rows_of_the_hub_are_streamed_and_recorded(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"row number {i}"} for i in range(100)]
    monkeypatch.setitem(sys.modules, "datasets", fake_hub(rows))
    recipe = calibrated(source="hub", dataset="owner/name", num_samples=4)
    data = chosen(recipe, tiny_pair, HUB_ID)
    assert len(data.samples) == 4
    assert data.record is not None
    assert (data.record["dataset"], data.record["num_rows_read"]) == ("owner/name", 64)


def test_a_recipe_alone_downloads_nothing(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def unasked(*_args: object, **_options: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unasked))
    with pytest.raises(RecipeError, match="add --calibration owner/name to allow it"):
        chosen(calibrated(source="hub", dataset="owner/name"), tiny_pair, None)


def test_a_data_set_without_the_column_lists_what_it_has(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", fake_hub([{"prompt": "x", "answer": "y"}]))
    with pytest.raises(TrafficError, match="It has: prompt, answer"):
        chosen(calibrated(source="hub", dataset="owner/name"), tiny_pair, HUB_ID)


def test_a_data_set_is_read_by_the_library_itself(
    tiny_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` takes a directory of that name for the set: the call is an id's, no network."""
    pytest.importorskip("datasets")
    (tmp_path / HUB_ID).mkdir(parents=True)
    write_texts(tmp_path / HUB_ID / "train.jsonl", 9)
    monkeypatch.chdir(tmp_path)
    data = chosen(calibrated(source="hub", dataset=str(HUB_ID), num_samples=2), tiny_pair, HUB_ID)
    assert [len(sample) for sample in data.samples] == [len("text 0 ") + 20] * 2
    assert data.record is not None
    assert data.record["num_rows_read"] == 9


def test_a_data_set_that_cannot_be_reached_is_one_line(tiny_pair: Pair) -> None:
    pytest.importorskip("datasets")  # offline here: conftest says so
    with pytest.raises(TrafficError, match=r"'owner/name' .* is not available") as caught:
        chosen(calibrated(source="hub", dataset="owner/name"), tiny_pair, HUB_ID)
    assert "\n" not in str(caught.value)


def test_rows_without_text_are_passed_over(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = [{"text": "first"}, {"text": None}, {"text": "third"}]
    monkeypatch.setitem(sys.modules, "datasets", fake_hub(rows))
    data = chosen(calibrated(source="hub", dataset="owner/name"), tiny_pair, HUB_ID)
    assert data.record is not None
    assert data.record["prompt_ids"] == ["row 0", "row 2"]


def test_hub_without_datasets_names_the_extra(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"quantdraft\[llmcompressor\]"):
        chosen(calibrated(source="hub", dataset="owner/name"), tiny_pair, HUB_ID)
