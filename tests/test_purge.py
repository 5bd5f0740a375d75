"""Deleting what has ended, or was abandoned."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import pytest

from sequential import FlowExecutor, save, sleep, tool, wait
from sequential.blocking import settle
from sequential.stores.memory import MemoryStorage
from sequential.testing import JournalAround
from tests.lab import Lab
from tests.support import echo

DAY = 86_400.0


def rests(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    yield tool("a", "b")
    if "sleep" in input:
        yield sleep(input["sleep"])
    if "wait" in input:
        yield wait("go", input["wait"])
    if "pause" in input:
        yield save()
    if "fail" in input:
        raise ValueError


def go_on(lab: Lab, id: str, input: dict[str, Any]) -> None:
    """Go on until it ends, rests or pauses."""
    flow = lab.flow(call=echo, retain=True, budget=1e9)
    with suppress(ValueError):
        flow.execute(rests, id, input)


RESTS: dict[str, dict[str, Any]] = {
    "finished": {},
    "failed": {"fail": True},
    "cancelled": {"pause": True},
    "paused-and-nobody-rang": {"pause": True},
    "cancelling": {"pause": True},
    "sleeps-for-long": {"sleep": 100 * DAY},
    "slept-and-nobody-rang": {"sleep": DAY},
    "waits-for-ever": {"wait": None},
    "waits-for-long": {"wait": 100 * DAY},
}


def test_only_what_has_ended_or_is_parked_for_so_long_goes_and_what_waits_for_ever_if_asked_to(lab: Lab) -> None:
    flow = lab.flow(call=echo, workflows=[rests])
    for age in ("old", "young"):
        for id, input in RESTS.items():
            go_on(lab, f"{id}.{age}", input)
        flow.cancel(f"cancelled.{age}", force=True)
        flow.cancel(f"cancelling.{age}")
        flow.fork(f"finished.{age}", 1, f"forked-and-nobody-rang.{age}")
        lab.clock.advance(2 * DAY)
    everything = {status.id for status in flow.list()}
    assert flow.purge(4.5 * DAY, waiting=True) == []
    old = ["cancelled.old", "failed.old", "finished.old"]
    assert sorted(flow.purge(3 * DAY)) == old
    assert flow.purge(3 * DAY, waiting=True) == ["waits-for-ever.old"]
    assert {status.id for status in flow.list()} == everything - {*old, "waits-for-ever.old"}
    lab.clock.advance(DAY)
    assert len(flow.purge(3 * DAY, waiting=True)) == 4
    lab.clock.advance(1000 * DAY)
    assert flow.purge(0, waiting=True) == []
    left = {id.split(".")[0] for id in everything} - {"cancelled", "failed", "finished", "waits-for-ever"}
    assert {status.id.split(".")[0] for status in flow.list()} == left


def test_what_was_abandoned_goes_when_it_is_stuck(lab: Lab) -> None:
    flow = lab.flow(call=echo, workflows=[rests])
    for id in ("paused-and-nobody-rang", "slept-and-nobody-rang"):
        go_on(lab, id, RESTS[id])
    for _ in range(11):
        lab.clock.advance(2 * DAY)
        flow.sweep()
    assert flow.purge(DAY) == []
    lab.clock.advance(DAY)
    assert sorted(flow.purge(DAY)) == ["paused-and-nobody-rang", "slept-and-nobody-rang"]


def test_many_go_page_by_page(lab: Lab) -> None:
    flow = lab.flow()
    for number in range(250):
        flow.start(rests, f"id-{number:03}")
        flow.cancel(f"id-{number:03}", force=True)
    lab.clock.advance(DAY)
    assert flow.purge(DAY / 2) == [f"id-{number:03}" for number in range(250)]
    assert flow.list() == []


@pytest.mark.parametrize("meanwhile", ["signalled", "resumed", "held", "rung"])
def test_what_goes_on_meanwhile_stays(lab: Lab, meanwhile: str) -> None:
    class Meanwhile(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            done = await settle(method(*values, **options))
            if what == "find" and done and not happened:
                happened.append(meanwhile)
                await happens()
            return done

    async def happens() -> None:
        flow = FlowExecutor(lab.storage, call=echo, clock=lab.clock, workflows=[rests])
        if meanwhile == "signalled":
            assert await flow.signal("id", "go")
        elif meanwhile == "resumed":
            await flow.resume("id", parked=True)
        elif meanwhile == "held":
            assert (await flow.take("id", parked=True))[1] is not None
        else:
            assert await flow.ring("id")

    happened: list[str] = []
    go_on(lab, "id", {"wait": None})
    lab.clock.advance(DAY)
    assert lab.flow(on=Meanwhile(lab.plain)).purge(1, waiting=True) == []
    assert happened == [meanwhile]
    assert lab.status("id").status == "waiting"


def test_what_is_held_while_it_waits_stays(lab: Lab) -> None:
    go_on(lab, "id", {"wait": None})
    lab.clock.advance(DAY)
    flow = lab.flow(call=echo, workflows=[rests])
    assert lab.runner.run(flow.outer.take("id"))[1] is not None
    assert flow.purge(1, waiting=True) == []


@pytest.mark.parametrize("age", [-1, float("nan"), "30d", None])
def test_an_age_that_is_none(age: Any) -> None:
    with pytest.raises(ValueError, match="older_than= is a number of seconds, not below 0"):
        FlowExecutor(MemoryStorage()).purge_sync(age)
