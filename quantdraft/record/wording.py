"""How numbers, signs and sentences are written. Fractions become percent here and nowhere else.

Words for a sign (higher, lower, faster, slower) are chosen by the number, never assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from quantdraft.record.terms import Interval

# The space between a number and its unit, where no line may end.
NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(ms|points?|GB/s|GB|MB|kB|B)\b|%)")
UNDEFINED = "undefined"
MINUS = "−"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 prompt`, `32 prompts`; the plural must end in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def undefined(reason: str = "") -> str:
    """Return the word for a number that does not exist, with the reason where one is known."""
    return f"{UNDEFINED}: {reason}" if reason else UNDEFINED


def significant(value: float, digits: int = 3) -> str:
    """Return a number to `digits` significant digits, never in scientific form."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return _signed(f"{value:,.{max(0, digits - 1 - magnitude)}f}")


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return 0.612 as '61.2 %'."""
    return UNDEFINED if fraction is None else _signed(f"{100 * fraction:.{digits}f} %")


def change_points(difference: float | None) -> str:
    """Return a difference of two fractions with its sign: 0.012 as '+1.2 points'."""
    return UNDEFINED if difference is None else _plus(f"{100 * difference:+.1f} points")


def change_percent(change: float) -> str:
    """Return a relative change with its sign: 0.02 as '+2.0 %'."""
    return _plus(f"{100 * change:+.1f} %")


def times(ratio: float | None) -> str:
    """Return 1.0432 as '1.043×'."""
    return UNDEFINED if ratio is None else _signed(f"{ratio:.3f}×")


def length(value: float | None) -> str:
    """Return a mean acceptance length, tokens a round: '2.312'."""
    return UNDEFINED if value is None else f"{value:.3f}"


def milliseconds(value: float | None, digits: int = 3) -> str:
    """Return 2.314 as '2.31 ms'."""
    return UNDEFINED if value is None else f"{significant(value, digits)} ms"


def count(value: float | None) -> str:
    """Return whole numbers with groups; expectations keep one decimal."""
    if value is None:
        return UNDEFINED
    is_whole = math.isclose(value, round(value), abs_tol=1e-6)
    return f"{round(value):,}" if is_whole else f"{value:,.1f}"


def num_bytes(value: float | None) -> str:
    """Return bytes in decimal units, as memory bandwidth is quoted: 1_234_567 as '1.23 MB'."""
    if value is None:
        return UNDEFINED
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:.0f} B"


def metric_unit(name: str) -> str:
    """Return the unit of a metric by its name: times, points, percent, length, ms or plain."""
    words = name.lower().replace("_", " ")
    if "difference" in words:
        return "difference"
    if "speedup" in words or "ratio" in words:
        return "times"
    if "loss" in words:
        return "points"
    if "rate" in words or "acceptance" in words or "saving" in words:
        return "percent"
    if "length" in words:
        return "length"
    return "ms" if words.endswith(" ms") else "plain"


def metric(value: float | None, name: str) -> str:
    """Return a value in the unit that its metric's name asks for."""
    if value is None:
        return UNDEFINED
    formats: dict[str, Callable[[float], str]] = {
        "times": times,
        "points": lambda loss: _signed(f"{100 * loss:.1f} points"),
        "difference": change_points,
        "percent": percent,
        "ms": milliseconds,
        "plain": significant,
        "length": length,
    }
    return formats[metric_unit(name)](value)


def interval(ends: Interval | None, name: str) -> str:
    """Return the two ends in the metric's unit: '1.021× to 1.066×', '48.0 to 52.2 %'."""
    if ends is None:
        return UNDEFINED
    low, high = metric(ends.low, name), metric(ends.high, name)
    return f"{low.partition(' ')[0]} to {high}"


def bare_ms(value: float | None) -> str:
    """Return milliseconds without the unit, for a column that names it."""
    return significant(value) if value is not None else UNDEFINED


def valued(ends: Interval | None, name: str) -> str:
    """Return the estimate and its interval: '1.043× (1.021× to 1.066×)'."""
    if ends is None:
        return UNDEFINED
    return f"{metric(ends.value, name)} ({interval(ends, name)})"


def estimated(ends: Interval, name: str) -> str:
    """Return the same for a sentence: '1.043× (95 % interval 1.021× to 1.066×)'."""
    return f"{metric(ends.value, name)} (95 % interval {interval(ends, name)})"


def loss_words(loss: Interval) -> str:
    """Return a loss of acceptance as what it is: 'a loss of 4.1 points (95 % interval …)'."""
    is_gain = loss.value < 0
    low, high = (-loss.high, -loss.low) if is_gain else (loss.low, loss.high)
    ends = interval(Interval(abs(loss.value), low, high), "difference")
    return (
        f"a {'gain' if is_gain else 'loss'} of {metric(abs(loss.value), 'loss')} (95 % "
        f"interval {ends})"
    )


def faster(speedup: Interval, reference: str) -> str:
    """Return '3.0 % faster than the bf16 draft (95 % interval +2.1 to +3.9 %)'."""
    if speedup.value >= 2:
        ends = interval(speedup, "speedup")
    else:
        ends = f"{change_percent(speedup.low - 1).partition(' ')[0]} to "
        ends += change_percent(speedup.high - 1)
    return f"{pace(speedup.value, reference)} (95 % interval {ends})"


def memory_not_speed(name: str, ratio: Interval | None, byte_ratio: float | None) -> str | None:
    """Return what to say of a draft that reads fewer bytes a step and is slower, or None.

    ratio, byte_ratio: time and bytes of the baseline's step over this draft's
    """
    if ratio is None or byte_ratio is None or byte_ratio <= 1 or ratio.high >= 1:
        return None
    slower = f"{significant(1 / ratio.value)} times as long"
    ends = f"{significant(1 / ratio.high)} to {significant(1 / ratio.low)}"
    return (
        f"Memory, not speed: {name} reads {significant(byte_ratio)} times fewer bytes a step than "
        f"the baseline, and its step takes {slower} ({ends})."
    )


def step_change(saving: Interval | None) -> str:
    """Return how long a step takes beside the baseline's: '12.3 % shorter (10.1 to 14.0 %)'."""
    if saving is None:
        return UNDEFINED
    if saving.value <= -1:
        ends = f"{significant(1 - saving.high)} to {significant(1 - saving.low)}"
    elif saving.low < 0 < saving.high:
        ends = f"{shorter(saving.low)} to {shorter(saving.high)}"
    else:
        low, high = sorted((abs(saving.low), abs(saving.high)))
        ends = f"{100 * low:.1f} to {percent(high)}"
    return f"{shorter(saving.value)} ({ends})"


def shorter(saving: float) -> str:
    """Return a saving in words: 0.123 as '12.3 % shorter', −2.4 as '3.40 times as long'.

    Twice as long or more is said in times: a saving of less than −100 % means nothing to a reader.
    """
    if saving <= -1:
        return f"{significant(1 - saving)} times as long"
    word = compared(saving, 0.0, "shorter", "longer", "")
    return f"{percent(abs(saving))} {word}" if word else "as long"


def load_words(load: tuple[float, float] | None) -> str:
    """Return the machine's load before and after a timing, or that it is not known."""
    if load is None:
        return "Load average not known: the system does not tell it."
    return f"Load average {load[0]:.2f} before, {load[1]:.2f} after."


# Never under one name, for they differ: see `glossary`.
RATE_NAME = "acceptance rate (accepted / proposed)"
ALPHA_NAME = "α (acceptance per token asked for)"
SYMBOLS = ("k ", "c ", "m ", "α ", "τ ")


def title_of(name: str) -> str:
    """Return a record's key as words: 'acceptance_rate_loss' as 'Acceptance rate loss'."""
    return _capital(name.replace("_", " ").strip())


def whole_sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    whole = _capital(text)
    return whole if whole.endswith((".", "!", "?")) else f"{whole}."


def _capital(text: str) -> str:
    """Return the text with a capital; a symbol at its start, as in "k = 4", stays as it is."""
    return text if text.startswith(SYMBOLS) else text[:1].upper() + text[1:]


def compared(value: float, reference: float, above: str, below: str, same: str) -> str:
    """Return the word that the sign of `value - reference` calls for."""
    if math.isclose(value, reference, rel_tol=0, abs_tol=1e-12):
        return same
    return above if value > reference else below


def rate_change(loss: float) -> str:
    """Return an acceptance rate loss in words; a positive one means that the candidate is lower."""
    word = compared(loss, 0.0, "lower than the baseline", "higher than the baseline", "")
    return f"{abs(100 * loss):.1f} points {word}" if word else "equal to the baseline"


def pace(speedup: float, reference: str) -> str:
    """Return a speedup in words: 1.043 as '4.3 % faster than the baseline'."""
    if speedup >= 2:
        return f"{speedup:.1f} times as fast as {reference}"
    word = compared(speedup, 1.0, "faster than", "slower than", "as fast as")
    size = f"{abs(100 * (speedup - 1)):.1f} % " if speedup != 1.0 else ""
    return f"{size}{word} {reference}"


def _signed(text: str) -> str:
    stripped = text.replace("-", MINUS)
    has_digit = any(c in "123456789" for c in text)
    return stripped if has_digit else stripped.replace(MINUS, "")


def _plus(text: str) -> str:
    has_digit = any(c in "123456789" for c in text)
    return text.replace("-", MINUS) if has_digit else text.lstrip("+-")
