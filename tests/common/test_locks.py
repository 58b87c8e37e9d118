"""One writer to an output; a dead one does not count."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from quantdraft.common import locks
from quantdraft.common.files import whole_directory, write_text
from quantdraft.common.locks import lock_path, sole_writer
from quantdraft.errors import OutputBusyError, OutputError, TrafficError


def child_that_holds(output: Path) -> int:
    """A process that took the lock and sleeps; its id."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with sole_writer(output):
                os.write(told, b"!")
                signal.pause()
        finally:
            os._exit(0)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    os.close(told)
    return child


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_second_writer_is_refused_by_the_firsts_process_id(tmp_path, is_inside):
    output = tmp_path / "run"
    with sole_writer(output, is_inside=is_inside):
        with (
            pytest.raises(
                OutputBusyError, match=rf"'{output}' is being .* process {os.getpid()}\."
            ),
            sole_writer(output, is_inside=is_inside),
        ):
            pass
        with sole_writer(tmp_path / "another"):
            pass
    with sole_writer(output, is_inside=is_inside):
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_writers_lock_is_free_and_its_file_goes_with_the_next(tmp_path):
    output = tmp_path / "run"
    child = child_that_holds(output)
    with pytest.raises(OutputBusyError, match=f"process {child}"), sole_writer(output):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert lock_path(output).exists()
    with sole_writer(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_directory_has_the_directorys_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        sole_writer(tmp_path / "run"),
        pytest.raises(OutputBusyError),
        sole_writer(tmp_path / "link"),
    ):
        pass


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_refused_run_leaves_no_directory_that_it_made(tmp_path, is_inside):
    with pytest.raises(TrafficError), sole_writer(tmp_path / "a" / "run", is_inside=is_inside):
        raise TrafficError("refused")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_holds_something_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    with sole_writer(tmp_path / "empty", is_inside=True):
        pass
    with sole_writer(tmp_path / "run", is_inside=True):
        (tmp_path / "run" / "part").write_text("kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]


@pytest.mark.parametrize("is_inside", [False, True])
def test_never_two_at_once_in_a_crowd(tmp_path, is_inside):
    output, inside, most, turns = tmp_path / "a" / "run", [0], [0], [0]
    failed: list[BaseException] = []

    def work() -> None:
        while turns[0] < 200:
            try:
                with sole_writer(output, is_inside=is_inside):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    turns[0] += 1
                    inside[0] -= 1
            except OutputBusyError:
                continue
            except BaseException as error:
                failed.append(error)
                raise

    crowd = [threading.Thread(target=work) for _ in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert (most, failed) == ([1], [])
    # Of a directory that one of them made, another may have been the last user.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """The holder before us removes the file between our opening and our locking it.

    A third writer would make another file, and hold another lock of the same output.
    """
    output, real, calls = tmp_path / "run", fcntl.flock, []

    def after_its_holder_left(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        if not calls:
            lock_path(output).unlink()
        calls.append(operation)

    monkeypatch.setattr(locks.fcntl, "flock", after_its_holder_left)
    with sole_writer(output):
        assert lock_path(output).exists()
        assert len(calls) == 2
        with pytest.raises(OutputBusyError), sole_writer(output):
            pass


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(OutputError, match="cannot write"), sole_writer(tmp_path / "file" / "run"):
        pass


def test_two_runs_on_one_directory_exclude_each_other(tmp_path):
    with (
        whole_directory(tmp_path / "out"),
        pytest.raises(OutputBusyError),
        whole_directory(tmp_path / "out"),
    ):
        pass


def killed(action) -> None:  # type: ignore[no-untyped-def]
    """Run it in a child that is killed at its end, as by a signal from outside."""
    child = os.fork()
    if child == 0:
        action()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_a_killed_run_left_goes_with_the_next_run_and_nothing_else_does(tmp_path):
    def die() -> None:
        with whole_directory(tmp_path / "out") as staging:
            (staging / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    killed(die)
    theirs = tmp_path / ".out.config"
    theirs.mkdir()
    other = tmp_path / ".out.b.12345678.staging"  # of the output `out.b`
    other.mkdir()
    assert len(list(tmp_path.iterdir())) == 4  # and a lock
    with whole_directory(tmp_path / "out") as staging:
        (staging / "whole").write_text("y")
    assert {path.name for path in tmp_path.iterdir()} == {"out", theirs.name, other.name}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_an_output_that_was_moved_aside_by_a_killed_run_comes_back(tmp_path, monkeypatch):
    with whole_directory(tmp_path / "out") as staging:
        (staging / "old").write_text("kept")
    real = os.replace

    def die() -> None:
        moves = []

        def one_then_death(source, target) -> None:  # type: ignore[no-untyped-def]
            if moves:
                os.kill(os.getpid(), signal.SIGKILL)
            moves.append(real(source, target))

        os.replace = one_then_death
        with whole_directory(tmp_path / "out", force=True):
            pass

    killed(die)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "out", force=True):
        raise RuntimeError
    assert (tmp_path / "out" / "old").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_torn_write_goes_with_the_next_write_of_the_same_file_unless_its_writer_lives(tmp_path):
    def die() -> None:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        write_text(tmp_path / "a.json", "half")

    killed(die)
    assert len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "b.json", "another file")
    assert len(list(tmp_path.iterdir())) == 2
    write_text(tmp_path / "a.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]
