"""Executors: what travels arrives, and a Ray cluster finds what this process finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantdraft.errors import OptionError
from quantdraft.executors import parcels
from quantdraft.executors.parcels import Parcel, packed, unpacked_once, unpacked_parcel


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "d" / "inner").mkdir(parents=True)
    (tmp_path / "d" / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "d" / "inner" / "b.txt").write_text("b")
    return tmp_path / "d"


def test_a_directory_arrives_as_it_was_and_replaces_what_was_there(directory, tmp_path):
    place = tmp_path / "there" / "d"
    place.mkdir(parents=True)
    (place / "old").write_text("old")
    unpacked_parcel(packed(directory), place)
    assert tree(place) == tree(directory)
    assert [p.name for p in place.parent.iterdir()] == ["d"], "nothing is left beside it"


def test_a_file_arrives_as_it_was(directory, tmp_path):
    unpacked_parcel(packed(directory / "a.bin"), tmp_path / "there" / "a.bin")
    assert (tmp_path / "there" / "a.bin").read_bytes() == bytes(range(256))


def test_a_digest_tells_names_and_content_apart():
    digests = {
        Parcel({"a": b"bc"}).digest,
        Parcel({"ab": b"c"}).digest,
        Parcel({"a": b"b", "c": b""}).digest,
    }
    assert len(digests) == 3
    assert Parcel({"a": b"1", "b": b"2"}).digest == Parcel({"b": b"2", "a": b"1"}).digest


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out"])
def test_a_parcel_stays_inside_its_place(name, tmp_path):
    with pytest.raises(OptionError, match="outside its directory"):
        unpacked_parcel(Parcel({name: b""}), tmp_path / "in" / "d")
    assert not list((tmp_path / "in").iterdir())


def test_what_is_too_large_to_send_belongs_on_a_shared_disk(directory, monkeypatch):
    monkeypatch.setattr(parcels, "MAX_BYTES", 200)
    with pytest.raises(OptionError, match="--shared"):
        packed(directory)


def test_what_another_worker_brought_meanwhile_stays(tmp_path):
    place = tmp_path / "cache" / "d"

    def overtaken() -> Parcel:
        place.mkdir(parents=True)
        (place / "a").write_bytes(b"first")
        return Parcel({"a": b"second"})

    assert unpacked_once(overtaken, place) == place
    assert (place / "a").read_bytes() == b"first"
    assert unpacked_once(lambda: pytest.fail("it is there already"), place) == place
    assert [p.name for p in place.parent.iterdir()] == ["d"]
