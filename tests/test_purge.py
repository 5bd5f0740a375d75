"""Deleting what has ended, or was abandoned."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sequential import FlowExecutor, NotSupported, Paused, save, sleep, tool, wait
from sequential.storage import Journal, Record
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock
from tests.support import PlainStorage, echo

DAY = 86_400.0


def ends() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b"))


def sleeps(seconds: float) -> Generator[Any, Any, Any]:
    yield sleep(seconds)


def waits() -> Generator[Any, Any, Any]:
    return (yield wait("never"))


def pauses() -> Generator[Any, Any, Any]:
    yield save()


def fails() -> Generator[Any, Any, Any]:
    yield save()
    raise ValueError


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MemoryStorage() if request.param == "memory" else SQLiteStorage(tmp_path / "flows.db")


def test_only_what_has_rested_for_so_long_goes(storage: Journal) -> None:
    clock = FakeClock()
    flow = FlowExecutor(storage, call=echo, clock=clock, retain=True)
    for id, workflow, input in (
        ("finished", ends, None),
        ("sleeps for long", sleeps, 100 * DAY),
        ("slept for a day, and nobody rang", sleeps, DAY),
        ("waits for ever", waits, None),
        ("paused, and nobody rang", pauses, None),
        ("failed", fails, None),
    ):
        go_on(flow, workflow, id.replace(" ", "-").replace(",", ""), input)
    flow.start_sync(ends, None, "cancelled")
    flow.cancel_sync("cancelled")
    flow.fork_sync("finished", 1, "forked-and-nobody-rang")
    clock.advance(2 * DAY)
    flow.execute_sync(ends, "young")
    flow.execute_sync(ends, "young")
    storage.claim(Record("held", "run", lease=clock.now + 1, changed=clock.now - 9 * DAY), clock.now, True)
    everything = [status.id for status in flow.list_sync()]
    assert flow.purge_sync(4 * DAY) == []
    purged = flow.purge_sync(1.5 * DAY)
    assert purged == sorted(set(everything) - {"young", "held", "sleeps-for-long", "slept-for-a-day-and-nobody-rang"})
    assert len(purged) == 6
    assert flow.purge_sync(0.5 * DAY) == ["slept-for-a-day-and-nobody-rang"]
    clock.advance(3 * DAY)
    assert flow.purge_sync(1.5 * DAY) == ["held", "young"]
    assert [status.id for status in flow.list_sync()] == ["sleeps-for-long"]


def go_on(flow: FlowExecutor, workflow: Any, id: str, input: Any) -> None:
    """Run an execution until it ends or rests, or, by its name, only once."""
    with suppress(ValueError):
        while isinstance(value := flow.execute_sync(workflow, id, input), Paused):
            if value.reason in {"sleep", "wait"} or id.startswith("paused"):
                return


def test_many_go_page_by_page() -> None:
    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=echo, clock=clock)
    for number in range(250):
        flow.start_sync(ends, None, f"id-{number:03}")
    clock.advance(DAY)
    assert flow.purge_sync(DAY / 2) == [f"id-{number:03}" for number in range(250)]
    assert flow.list_sync() == []


@pytest.mark.parametrize("meanwhile", ["signalled", "resumed"])
def test_what_goes_on_meanwhile_stays(meanwhile: str) -> None:
    clock = FakeClock()

    class Busy(MemoryStorage):
        def find(self, *arguments: Any, **options: Any) -> list[Record]:
            found = super().find(*arguments, **options)
            other = FlowExecutor(self.other, call=echo, clock=clock, workflows=[waits, ends])
            for record in found:
                assert (
                    other.signal_sync(record.id, "never") if meanwhile == "signalled" else other.resume_sync(record.id)
                )
            return found

        @property
        def other(self) -> MemoryStorage:
            other = MemoryStorage()
            other._records, other._results, other._signals = self._records, self._results, self._signals
            return other

    flow = FlowExecutor(Busy(), call=echo, clock=clock)
    if meanwhile == "signalled":
        flow.execute_sync(waits, "one")
    else:
        flow.start_sync(ends, None, "one")
    clock.advance(DAY)
    assert flow.purge_sync(1) == []
    status = flow.status_sync("one")
    assert status is not None
    assert status.status == ("waiting" if meanwhile == "signalled" else "running")


def test_an_age_that_is_none() -> None:
    flow = FlowExecutor(MemoryStorage())
    wrong: list[Any] = [-1, float("nan"), "30d", None]
    for age in wrong:
        with pytest.raises(ValueError, match="older_than= is a number of seconds, not below 0"):
            flow.purge_sync(age)


def test_five_methods_cannot_list() -> None:
    with pytest.raises(NotSupported, match="purge needs more than the five storage methods"):
        FlowExecutor(PlainStorage()).purge_sync(1)
