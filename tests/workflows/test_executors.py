"""Executors: what travels arrives, and a Ray cluster finds what this process finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantdraft.engines.process import free_port
from quantdraft.errors import CheckpointError, OptionError, OutputError
from quantdraft.workflows.sweep import parcels, ray_session
from quantdraft.workflows.sweep.parcels import (
    Parcel,
    pack,
    require_own_directory,
    unpack_parcel,
    unpack_parcel_once,
)


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
    unpack_parcel(pack(directory), place)
    assert tree(place) == tree(directory)
    assert [p.name for p in place.parent.iterdir()] == ["d"], "nothing is left beside it"


def test_a_file_arrives_as_it_was(directory, tmp_path):
    unpack_parcel(pack(directory / "a.bin"), tmp_path / "there" / "a.bin")
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
        unpack_parcel(Parcel({name: b""}), tmp_path / "in" / "d")
    assert not list((tmp_path / "in").iterdir())


def test_what_is_too_large_to_send_belongs_on_a_shared_disk(directory, monkeypatch):
    monkeypatch.setattr(parcels, "MAX_BYTES", 200)
    with pytest.raises(OptionError, match="--shared"):
        pack(directory)


def test_a_link_out_of_a_directory_is_not_sent(directory, tmp_path):
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    (directory / "inner" / "LICENSE").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(CheckpointError, match="outside the model's directory"):
        pack(directory)


def test_an_own_directory_is_entered_by_its_user_alone(tmp_path):
    place = require_own_directory(tmp_path / "cache")
    assert place.stat().st_mode & 0o777 == 0o700
    assert require_own_directory(place) == place


@pytest.mark.parametrize("kind", ["link", "file", "open", "another's"])
def test_a_directory_that_others_could_fill_is_refused(tmp_path, kind, monkeypatch):
    place = tmp_path / "cache"
    if kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    elif kind == "file":
        place.write_text("")
    else:
        place.mkdir(mode=0o755 if kind == "open" else 0o700)
    if kind == "another's":
        monkeypatch.setattr(os, "getuid", lambda: place.stat().st_uid + 1)
    with pytest.raises(OutputError, match="this user alone can enter"):
        require_own_directory(place)


def test_what_another_worker_brought_meanwhile_stays(tmp_path):
    place = tmp_path / "cache" / "d"

    def overtaken() -> Parcel:
        place.mkdir(parents=True)
        (place / "a").write_bytes(b"first")
        return Parcel({"a": b"second"})

    assert unpack_parcel_once(overtaken, place) == place
    assert (place / "a").read_bytes() == b"first"
    assert unpack_parcel_once(lambda: pytest.fail("it is there already"), place) == place
    assert [p.name for p in place.parent.iterdir()] == ["d"]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_a_cluster_that_does_not_answer_is_one_line(address):
    at = address.format(free_port())
    with pytest.raises(OptionError, match="no Ray cluster answers"), ray_session.ray_session(at):
        pass


def test_a_long_temporary_path_leaves_room_for_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_session.tempfile, "gettempdir", lambda: str(tmp_path))
    place = Path(ray_session._private_directory())
    assert len(str(place)) <= len("/tmp/quantdraft-ray-12345678")
    assert place.stat().st_mode & 0o777 == 0o700
    place.rmdir()
