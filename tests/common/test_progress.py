"""Progress: the time left is what the pace says, people see it, pipes and timings do not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from quantdraft.common import progress
from quantdraft.common.progress import Line, bar, clock, share_bar, step
from tests.pty_child import COLOUR, in_terminal

WORK = """
import time
from quantdraft.common.progress import aside, bar, step
with step("apply") as now:
    now("calibrating")
    with bar(8, "calibrate", "layer") as told:
        for _ in range(8):
            time.sleep(0.25)
            told(1)
    with aside():
        print("in between")
print("the result")
"""


def test_the_time_left_is_the_pace_so_far_times_what_is_left():
    line = Line("replay", total=10, unit="prompt", started=100.0)
    assert line.seconds_left(105.0) is None  # no pace yet
    line.done, line.marked = 4, 108.0  # 2 s each
    assert line.seconds_left(108.0) == pytest.approx(12)
    assert line.seconds_left(113.0) == pytest.approx(7)  # it goes on between two calls
    assert line.seconds_left(130.0) == 0  # and never below


def test_what_an_earlier_run_did_says_nothing_of_the_pace():
    line = Line("capture", total=10, unit="prompt", started=100.0, done=6, first=6)
    assert line.seconds_left(101.0) is None
    line.done, line.marked = 8, 106.0  # two in 6 s
    assert line.seconds_left(106.0) == pytest.approx(6)
    assert line.count() == "8/10 prompts"


def test_a_length_that_nobody_knows_shows_the_time_taken():
    line = Line("apply", started=100.0)
    assert (line.seconds_left(170.0), line.clock(170.0), line.count()) == (None, "1:10", "")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0:00"), (7, "0:07"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clocks(seconds, shown):
    assert clock(seconds) == shown


def test_a_pipe_gets_the_result_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("in between\nthe result\n", "")


def test_a_terminal_shows_the_time_left_and_is_given_back():
    shown = in_terminal(["-c", WORK])
    assert "apply: calibrating" in shown.text
    assert "layers" in shown.text
    assert "0:01 left" in shown.text
    assert [line for line in shown.lines if line] == ["in between", "the result"]
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l")  # the cursor is there


def test_no_colour_and_dumb_terminals():
    assert COLOUR.search(in_terminal(["-c", WORK]).text)
    plain = in_terminal(["-c", WORK], NO_COLOR="1").text
    assert "left" in plain
    assert not [code for code in COLOUR.findall(plain) if any(c in code for c in ("3", "9"))]
    assert in_terminal(["-c", WORK], TERM="dumb").text == "in between\r\nthe result\r\n"


def test_lines_of_a_narrow_terminal_are_cut_at_the_name():
    shown = in_terminal(["-c", WORK.replace("calibrating", "calibrating " * 9)], columns=50)
    assert "…" in shown.text
    assert "8 layers" in shown.text
    assert "0:01 left" in shown.text


def test_nothing_is_drawn_during_a_timing_but_where_it_reports(monkeypatch):
    drawings = []
    monkeypatch.setattr(progress, "_is_for_people", lambda stream: True)
    monkeypatch.setattr(progress._Display, "_draw", lambda self: drawings.append(time.monotonic()))
    with step("evaluate"), share_bar("latency") as reach:
        reach(0.5)
        begun = len(drawings)
        time.sleep(3 * progress.SECONDS_BETWEEN)
        assert len(drawings) == begun
        reach(1.0)
        assert len(drawings) > begun


def test_a_measurement_takes_its_pace_from_its_first_report():
    line = Line("latency", total=100, unit="%", is_timed=True)
    line.started -= 60  # of loading models
    line.advance(0)
    assert not line.has_begun
    line.advance(1)
    assert line.seconds_left(line.marked) is None
    line.started -= 2
    line.advance(10)  # 10 in 2 s
    assert line.seconds_left(line.marked) == pytest.approx(89 / 5, abs=0.1)


def test_an_error_inside_leaves_no_line_behind(monkeypatch):
    monkeypatch.setattr(progress, "_is_for_people", lambda stream: True)
    with pytest.raises(KeyError), step("a"), bar(3, "b", "c"):
        raise KeyError
    assert progress._DISPLAY._lines == []
