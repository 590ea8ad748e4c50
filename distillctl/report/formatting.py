"""Format figures for people. A no-break space keeps a number and its unit together."""

from __future__ import annotations

from distillctl.run_dir.facts import ArmScore, Interval

UNKNOWN = "–"
_SPACE = "\u00a0"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share: 0.688 → 68.8 %."""
    return UNKNOWN if share is None else f"{_signed(100 * share, digits)}{_SPACE}%"


def interval(figure: Interval | ArmScore, digits: int = 1) -> str:
    """Format the bounds of a share: 66.0 to 71.7 %."""
    return f"{_signed(100 * figure.low, digits)} to {percent(figure.high, digits)}"


def points(figure: Interval) -> str:
    """Format a difference of shares in percentage points, with its bounds: 5.5 (−1.0 to 12.0)."""
    value, low, high = (_signed(100 * share, 1) for share in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


def size(count: float | None) -> str:
    """Format bytes, decimal as phones and stores count them: 23.6 MB."""
    if count is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f}{_SPACE}{unit}"
    return f"{count:.0f}{_SPACE}B"


def duration(milliseconds: float | None) -> str:
    """Format milliseconds with at most three digits: 0.82 ms, 3.14 ms, 312 ms, 4.10 s."""
    if milliseconds is None:
        return UNKNOWN
    value, unit = (milliseconds / 1e3, "s") if milliseconds >= 1e3 else (milliseconds, "ms")
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{_SPACE}{unit}"


def times(ratio: float | None) -> str:
    """Format a ratio with two significant digits: 4.2×, 63×, 1,400×."""
    if ratio is None:
        return UNKNOWN
    if ratio < 10:
        return f"{ratio:.1f}×"
    scale = 10 ** max(0, len(str(round(ratio))) - 2)
    return f"{round(ratio / scale) * scale:,}×"


def count(number: float | None) -> str:
    """Format a count with thousands separators."""
    return UNKNOWN if number is None else f"{number:,.0f}"


def nats(value: float | None) -> str:
    """Format a divergence in nats."""
    return UNKNOWN if value is None else f"{value:.4f}"


def _signed(value: float, digits: int) -> str:
    return f"{value:z.{digits}f}".replace("-", "−")  # z: no sign before a zero
