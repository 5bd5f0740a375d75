"""Rows of figures, and how they are measured: interleaved with their floors, many times, by the median."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple


class Row(NamedTuple):
    """One figure beside its floor."""

    name: str
    unit: str
    figure: float
    floor: float
    what: str
    """What the floor is."""
    bound: float | None = None
    """What the comparison must keep; ``None``: it is shown for its own sake."""
    compare: str = "at most"
    """``at most`` or ``at least`` (of figure to floor), ``difference`` (of figure less floor, at most)."""

    @property
    def ratio(self) -> float:
        """The figure in floors, or what it is more than its floor."""
        return self.figure - self.floor if self.compare == "difference" else self.figure / self.floor

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        if self.bound is None:
            return True
        return self.ratio >= self.bound if self.compare == "at least" else self.ratio <= self.bound


Found = tuple[list[Row], list[str]]


def print_table(rows: list[Row]) -> None:
    """Print rows as a table."""
    print(f"{'':44} {'figure':>10} {'floor':>10} {'':12} {'compared':>9}  bound")
    for row in rows:
        bound = "" if row.bound is None else f"{row.compare} {row.bound:g}{'' if row.met else '  NOT MET'}"
        sign = "+" if row.compare == "difference" else "x"
        print(f"{row.name:44} {row.figure:10.3f} {row.floor:10.3f} {row.unit:12} {sign}{row.ratio:8.3f}  {bound}")
        print(f"{'':4}floor: {row.what}")


def seconds(run: Callable[[], object]) -> float:
    """Return how long `run` takes, garbage of others cleared away first."""
    gc.collect()
    began = perf_counter()
    run()
    return perf_counter() - began


def side_by_side(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """Return the seconds of each run, taken in turns: of two, those of the `middle` round; of more, each one's median."""
    times = [[seconds(run) for run in runs] for _ in range(rounds)]
    return middle(times) if len(runs) == 2 else [median(found) for found in zip(*times, strict=True)]


def middle(rounds: list[list[float]]) -> list[float]:
    """Return the round with the median ratio of its two times: what slows down a machine for a while slows both."""
    return sorted(rounds, key=lambda times: times[0] / times[1])[len(rounds) // 2]


@contextmanager
def directory() -> Iterator[Path]:
    """An empty directory on the disk that the tests are on: a file system in memory would need no durability."""
    with TemporaryDirectory(prefix=".benchmark-", dir=Path.cwd()) as path:
        yield Path(path)
