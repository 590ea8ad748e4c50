"""How often the 95 % intervals hold the true value: shares by enumeration, all else by simulation of seeded rows.

A share's coverage is exact: all numbers of right rows are gone through, each with its probability. What is paired has
no such short list, so rows are drawn: of a ceiling, a floor and a student that are right together more often than
chance has it, and of scores between 0 and 1 such as chrF. Prints tables, then one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from distillctl import console
from distillctl.metrics.statistics import difference_interval, mean_interval, recovered_interval
from distillctl.run_dir.facts import Interval

ROWS = (20, 60, 200, 1000)
SHARES = (0.5, 0.9, 0.95, 0.99, 0.995)
ARMS = ((0.9, 0.85, 0.3), (0.7, 0.65, 0.25), (0.95, 0.95, 0.5), (0.99, 0.6, 0.02), (0.6, 0.4, 0.4))
"""True shares of ceiling, student and floor. The last one's student recovers nothing."""
TOGETHER = 0.6
"""The share of the rows whose difficulty is the same for all arms; in the others each arm is right by itself."""


def shares(rows: int, share: float) -> float:
    """The probability that `mean_interval` holds the true share."""
    right = np.arange(rows + 1)
    weights = binom.pmf(right, rows, share)
    likely = right[weights > 1e-12]
    held = [_holds(mean_interval(np.arange(rows) < count), share) for count in likely]
    return float(weights[likely][held].sum())


def paired(rows: int, arms: Sequence[float], draws: int, *, graded: bool = False) -> dict[str, float | None]:
    """Of ``draws`` samples, the shares whose `difference` (ceiling − student), `recovered` and, of scores that are
    ``graded`` between 0 and 1, `mean` hold the truth; recovered is None where it was given for fewer than half."""
    generator = np.random.default_rng([rows, *(round(1000 * share) for share in arms), graded])
    make = _graded if graded else _right
    ceiling, student, floor = arms
    held: dict[str, list[bool]] = {"difference": [], "recovered": [], "mean": []}
    for _ in range(draws):
        c, s, f = make(generator, rows, arms)
        held["difference"].append(_holds(difference_interval(c, s), ceiling - student))
        held["mean"].append(_holds(mean_interval(s), student))
        if (found := recovered_interval(s, f, c)) is not None:
            held["recovered"].append(_holds(found, (student - floor) / (ceiling - floor)))
    shown = {name: float(np.mean(found)) if len(found) > draws / 2 else None for name, found in held.items()}
    return shown if graded else {name: shown[name] for name in ("difference", "recovered")}


def measure(draws: int = 2000) -> dict[str, Any]:
    """Coverage of every setting; keys name rows and true shares."""
    found: dict[str, Any] = {"shares": {f"{n}, {p}": shares(n, p) for n in ROWS for p in SHARES}}
    for name, graded in (("paired", False), ("graded", True)):
        found[name] = {
            f"{n}, {' / '.join(map(str, arms))}": paired(n, arms, draws, graded=graded) for n in ROWS for arms in ARMS
        }
    return found


def _holds(found: Interval, truth: float) -> bool:
    return found.low - 1e-9 <= truth <= found.high + 1e-9


def _right(generator: np.random.Generator, rows: int, arms: Sequence[float]) -> np.ndarray:
    """0 or 1 [arms, rows]."""
    return (_ranks(generator, rows, len(arms)) < np.array(arms)[:, None]).astype(np.float64)


def _graded(generator: np.random.Generator, rows: int, arms: Sequence[float]) -> np.ndarray:
    """From 0 to 1 [arms, rows], with each arm's share as their mean: half of that mass on rows that are perfect, the
    rest evenly below."""
    ranks, found = _ranks(generator, rows, len(arms)), []
    for rank, share in zip(ranks, arms, strict=True):
        perfect = max(2 * share - 1, share / 3)
        top = 2 * (share - perfect) / (1 - perfect)
        found.append(np.where(rank < perfect, 1.0, top * (1 - rank) / (1 - perfect)))
    return np.array(found)


def _ranks(generator: np.random.Generator, rows: int, arms: int) -> np.ndarray:
    """Uniform on 0 … 1 [arms, rows]: a row's difficulty, for each arm its own or that of all."""
    own, common = generator.random((arms, rows)), generator.random(rows)
    return np.where(generator.random((arms, rows)) < TOGETHER, common, own)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="samples of each simulated setting (default: 2000)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    options = parser.parse_args(arguments)
    found = measure(options.draws)
    if not options.json:
        _print_tables(found)
    console.print_json(found)


def _print_tables(found: dict[str, Any]) -> None:
    console.text("coverage of 95 % intervals")
    console.text("a share, by enumeration; true share" + "".join(f"{share:>9}" for share in SHARES))
    for rows in ROWS:
        console.text(f"{f'{rows} rows':>35}" + "".join(f"{found['shares'][f'{rows}, {p}']:9.3f}" for p in SHARES))
    kinds = (("paired", "rows of 0 or 1", ("difference", "recovered")), ("graded", "scores from 0 to 1", _GRADED))
    for kind, title, names in kinds:
        console.text(f"{title}, simulated; ceiling / student / floor")
        for name in names:
            console.text(f"  {name:13}" + "".join(f"{' / '.join(map(str, arms)):>20}" for arms in ARMS))
            for rows in ROWS:
                values = [found[kind][f"{rows}, {' / '.join(map(str, arms))}"][name] for arms in ARMS]
                cells = "".join(f"{'-' if value is None else f'{value:.3f}':>20}" for value in values)
                console.text(f"  {f'{rows} rows':13}{cells}")


_GRADED: Sequence[str] = ("mean", "difference", "recovered")


if __name__ == "__main__":
    main()
