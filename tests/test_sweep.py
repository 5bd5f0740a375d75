"""The sweep, ringing, leases and clocks: whatever is late is rung, and nobody is robbed of a lease that is not over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from sequential import (
    Event,
    Fenced,
    FlowExecutor,
    HookNotConfigured,
    IdInUse,
    StorageError,
    UnknownExecution,
    save,
    sleep,
    tool,
    wait,
)
from sequential.blocking import settle
from sequential.record import GRACE
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalAround
from tests.lab import Asked, Lab
from tests.support import echo

Flow = Generator[Any, Any, Any]
LEASE = 60.0


def workflow(input: Any) -> Flow:
    first = yield tool("api", "one", input)
    yield save()
    return [first, (yield tool("api", "two", input))]


# Late.


def test_what_is_late_is_rung_with_backoff_and_parked_when_it_is_stuck(lab: Lab) -> None:
    events: list[Event] = []
    flow = lab.flow(call=echo, workflows=[workflow], observe=events.append)
    flow.execute(workflow, "id", 1)
    lab.rung.clear()
    assert flow.sweep() == []
    waits: list[float] = []
    began = lab.clock.now
    while not any(event.kind == "stuck" for event in events):
        due = lab.status("id").due
        assert due is not None
        waits.append(due - lab.clock.now)
        lab.clock.now = due
        flow.sweep()
    assert lab.rung == ["id"] * 10
    assert waits[0] == GRACE
    for attempt, waited in enumerate(waits[1:]):
        usual = min(GRACE * 2**attempt, 3600.0)
        assert 0.75 * usual <= waited <= 1.25 * usual
    assert 3 * 3600 < lab.clock.now - began < 5 * 3600
    status = lab.status("id")
    why = "no progress in 10 attempts of the sweep: mend what is wrong, then ring it"
    assert (status.status, status.due, status.error, status.attempts) == ("stuck", None, why, 0)
    lab.clock.advance(1e9)
    assert flow.sweep() == []
    assert flow.ring("id")
    assert lab.go_on(call=echo, workflows=[workflow]) == [1, 1]


@pytest.mark.parametrize("progress", ["step", "rest", "ring"])
def test_progress_begins_the_count_anew(lab: Lab, progress: str) -> None:
    def waits() -> Flow:
        yield tool("api", "one")
        yield wait("go", 1e6)

    flow = lab.flow(call=echo, workflows=[workflow, waits])
    if progress == "rest":
        flow.execute(waits, "id")
    else:
        flow.start(workflow, "id")
    for _ in range(10):
        lab.clock.advance(5000.0)
        assert flow.sweep() == ["id"]
    assert lab.status("id").attempts == 10
    if progress == "ring":
        lab.clock.advance(5000.0)
        assert flow.sweep() == []
        assert lab.status("id").status == "stuck"
        assert flow.ring("id")
    else:
        flow.resume("id")
    assert lab.status("id").attempts == 0


def test_two_sweeps_ring_once(lab: Lab) -> None:
    class Twice(JournalAround):
        async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
            done = await settle(method(*values, **options))
            return [*done, *done] if what == "due" else done

    flow = lab.flow(on=Twice(lab.plain), call=echo)
    flow.execute(workflow, "id")
    lab.rung.clear()
    lab.clock.advance(GRACE)
    assert flow.sweep() == lab.rung == ["id"]


def test_a_sweep_rings_no_more_than_it_was_told_to_the_latest_first(lab: Lab) -> None:
    flow = lab.flow(call=echo)
    for number in (3, 1, 4, 0, 2):
        lab.clock.now = 1e9 - number
        flow.execute(workflow, f"m{number}")
    lab.clock.now = 1e9 + GRACE
    assert flow.sweep(limit=2) == ["m4", "m3"]
    assert flow.sweep() == ["m2", "m1", "m0"]


class Full(JournalAround):
    """Refuses to write some records."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.full: set[str] = set()

    async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        if what == "write" and values[1] is not None and values[1].id in self.full:
            raise StorageError(f"{values[1].id} is full")
        return await settle(method(*values, **options))


def test_a_record_that_cannot_be_written_does_not_keep_the_sweep_from_others(lab: Lab) -> None:
    events, journal = list[Event](), Full(lab.plain)
    flow = lab.flow(on=journal, call=echo, workflows=[workflow], observe=events.append)
    for id in ("a", "b", "c"):
        flow.execute(workflow, id)
    journal.full |= {"a", "c"}
    lab.clock.advance(60.0)
    events.clear()
    swept = flow.sweep()
    assert (swept, swept.failed) == (["b"], ["a", "c"])
    told = [(event.kind, event.id, str(event.error)) for event in events if event.kind == "ring failed"]
    assert told == [("ring failed", "a", "a is full"), ("ring failed", "c", "c is full")]
    journal.full.add("b")
    lab.clock.advance(600.0)
    with pytest.raises(StorageError, match="a is full"):
        flow.sweep()


def test_a_ring_that_failed_is_told_and_is_no_attempt(lab: Lab) -> None:
    def resume(id: str) -> None:
        tried.append(id)
        journal.full |= {"a"} & {id}  # nor can it be taken back
        if id != "c":
            raise OSError("nobody is there")

    tried, journal = list[str](), Full(lab.plain)
    flow = lab.flow(on=journal, call=echo, workflows=[workflow], resume=resume)
    for id in ("a", "b", "c"):
        flow.execute(workflow, id)
    for attempt in range(1, 13):
        lab.clock.advance(5000.0)
        tried.clear()
        journal.full.clear()
        swept = flow.sweep()
        is_stuck = attempt > 10
        assert (swept, set(swept.failed)) == ([] if is_stuck else ["c"], {"b"} if is_stuck else {"a", "b"})
        assert set(tried) == {*swept, *swept.failed}
        assert lab.status("b").attempts == 0
    assert [lab.status(id).status for id in "abc"] == ["stuck", "running", "stuck"]


def test_an_error_that_is_not_recorded_shows_in_the_status(lab: Lab) -> None:
    events: list[Event] = []
    flow = lab.flow(workflows=[workflow], observe=events.append)
    with pytest.raises(HookNotConfigured):
        flow.execute(workflow, "id", 1)
    status = lab.status("id")
    assert (status.status, status.busy) == ("running", False)
    assert (status.error or "").startswith("HookNotConfigured: tool api.one cannot be performed")
    assert (events[-1].kind, type(events[-1].error)) == ("released", HookNotConfigured)
    with pytest.raises(IdInUse):
        flow.execute(workflow, "id", 2)
    for _ in range(11):
        lab.clock.advance(5000.0)
        flow.sweep()
    why = "no progress in 10 attempts of the sweep, the last error being HookNotConfigured: "
    assert (lab.status("id").error or "").startswith(why)
    working = lab.flow(call=echo, workflows=[workflow])
    assert working.resume("id", parked=True) == {"paused": "id", "step": 0}
    assert lab.status("id").error is None


# Ringing.


def test_ring_makes_due_what_rests_and_hands_it_over(lab: Lab) -> None:
    def sleeps() -> Flow:
        yield sleep(3600)
        return "awake"

    flow = lab.flow(workflows=[sleeps])
    flow.execute(sleeps, "id")
    lab.rung.clear()
    assert flow.ring("id") is True
    assert (lab.rung, lab.status("id").due, lab.status("id").status) == (["id"], lab.clock.now, "sleeping")
    assert flow.sweep() == ["id"]  # the ring may be lost
    assert flow.resume("id").reason == "sleep"  # it is asleep all the same
    assert lab.status("id").due == lab.clock.now + 3600.0


@pytest.mark.parametrize("parked", ["ring", "resume", "execute"])
def test_what_is_parked_is_taken_up_by_who_says_so_and_nobody_else(lab: Lab, parked: str) -> None:
    is_broken = True

    def fragile() -> Flow:
        yield tool("api", "one")
        if is_broken:
            raise ValueError
        return "mended"

    flow = lab.flow(call=echo, workflows=[fragile])
    flow.execute(fragile, "id")
    with pytest.raises(ValueError, match=r"^$"):
        flow.resume("id")
    lab.rung.clear()
    is_broken = False
    outcome = flow.resume("id")
    assert (outcome, outcome.reason, lab.status("id").status) == ({"paused": "id", "step": 0}, "parked", "failed")
    assert flow.start(fragile, "id") == "id"
    assert (lab.rung, lab.status("id").status) == ([], "failed")
    if parked == "ring":
        assert flow.ring("id") is True
        assert (lab.rung, lab.status("id").status, lab.status("id").error) == (["id"], "running", None)
        assert flow.resume("id") == "mended"
    elif parked == "resume":
        assert flow.resume("id", parked=True) == "mended"
    else:
        assert flow.execute(fragile, "id") == "mended"


def test_a_ring_tells_whether_anybody_was_rung(lab: Lab) -> None:
    def fails(id: str) -> None:
        raise OSError("nobody is there")

    flow, deaf = lab.flow(call=echo, retain=True), lab.flow(call=echo, resume=fails)
    flow.execute(workflow, "id")
    assert (flow.ring("id"), deaf.ring("id")) == (True, False)
    flow.to_end(workflow, "id")
    lab.rung.clear()
    assert flow.ring("id") is False
    with pytest.raises(UnknownExecution):
        flow.ring("nobody")
    assert lab.rung == []


# Leases.


@pytest.mark.parametrize(("seconds", "is_over"), [(0.0, False), (61.0, False), (89.999, False), (90.0, True)])
def test_a_lease_counts_as_over_when_half_of_it_again_has_passed(lab: Lab, seconds: float, is_over: bool) -> None:
    others: list[Any] = []

    def call(category: str, name: str, input: Any) -> str:
        lab.clock.advance(seconds)
        assert lab.status("id").busy is not is_over
        others.append(other.execute(workflow, "id"))
        others.append(other.resume("id"))
        return "slow"

    rung: list[str] = []
    other = lab.flow(call=echo, workflows=[workflow], lease=1.0)  # whose lease it is says how long it is
    flow = lab.flow(call=call, resume=rung.append, lease=LEASE)
    if is_over:
        with pytest.raises(Fenced) as caught:
            flow.execute(workflow, "id", "quick")
        assert caught.value.id == "id"
        assert [outcome.reason for outcome in others] == ["tool", "save"]
        assert rung == []  # who lost it rings nobody
    else:
        assert flow.execute(workflow, "id", "quick") == {"paused": "id", "step": 0}
        assert [outcome.reason for outcome in others] == ["busy"] * 2
        assert rung == ["id"]
    assert flow.history("id")[0]["result"] == ("quick" if is_over else "slow")
    assert not lab.status("id").busy


@pytest.mark.parametrize("seconds", [31.0, 89.0, 90.0, 5000.0])
def test_the_sweep_takes_no_lease_away(lab: Lab, seconds: float) -> None:
    def call(category: str, name: str, input: Any) -> str:
        lab.clock.advance(seconds)
        swept.extend(flow.sweep())
        status = lab.status("id")
        attempts.append(status.attempts)
        if not swept:  # it is looked at again when the lease counts as over
            assert status.due == began + 1.5 * LEASE
        return "slow"

    swept, attempts, began = list[str](), list[int](), lab.clock.now
    flow = lab.flow(call=call, workflows=[workflow], lease=LEASE)
    assert flow.execute(workflow, "id") == {"paused": "id", "step": 0}
    is_over = seconds >= 90.0
    assert (swept, attempts) == (["id"] * is_over, [int(is_over)])
    assert lab.status("id").attempts == 0
    assert flow.history("id")[0]["result"] == "slow"


def test_what_is_held_for_ever_becomes_stuck_first(lab: Lab) -> None:
    def call(category: str, name: str, input: Any) -> None:
        while lab.status("id").status != "stuck":
            lab.clock.advance(5000.0)
            flow.sweep()
            assert flow.purge(1000.0) == []

    flow = lab.flow(call=call, lease=LEASE)
    with pytest.raises(Fenced):
        flow.execute(workflow, "id")
    lab.clock.advance(1000.0)
    assert flow.purge(1000.0) == ["id"]


def test_a_lease_nearly_used_up_by_replay_is_renewed_by_the_next_commit(lab: Lab) -> None:
    def thinks() -> Flow:
        lab.clock.advance(30.0)
        yield tool("api", "one")
        lab.clock.advance(30.0)
        yield tool("api", "two")

    def call(category: str, name: str, input: Any) -> None:
        lab.clock.advance(5.0)
        assert lab.status("id").busy

    flow = lab.flow(call=call, lease=40.0, budget=1e9)
    assert flow.execute(thinks, "id") is None


def test_an_endless_lease_is_no_trouble(lab: Lab) -> None:
    assert lab.flow(call=echo, lease=float("inf")).execute(workflow, "id") == {"paused": "id", "step": 0}


@pytest.mark.parametrize("retain", [False, True])
def test_an_execution_deleted_meanwhile_stays_deleted(lab: Lab, retain: bool) -> None:
    flow: Asked = lab.flow(call=lambda *_: flow.delete("id"), retain=retain)
    with pytest.raises(Fenced):
        flow.execute(workflow, "id")
    assert flow.status("id") is None


SCRIPT = """
import sys
from sequential import FlowExecutor
from sequential.stores.sqlite import SQLiteStorage
from tests.test_sweep import workflow
def call(category, name, input):
    print("calling", flush=True)
    sys.stdin.readline()
FlowExecutor(SQLiteStorage(sys.argv[1]), call=call).execute_sync(workflow, "id", 1)
"""


def test_the_lease_of_a_dead_process_is_void_at_once(tmp_path: Path) -> None:
    path, rung = tmp_path / "flows.db", list[str]()
    command = [sys.executable, "-c", SCRIPT, str(path)]
    storage = SQLiteStorage(path)
    flow = FlowExecutor(storage, call=echo, workflows=[workflow], resume=rung.append)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"calling\n"
        held = flow.resume_sync("id")
        status = flow.status_sync("id")
        assert (held.reason, status and status.busy) == ("busy", True)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        status = flow.status_sync("id")
        assert (status and status.busy) is False
        assert flow.resume_sync("id") == {"paused": "id", "step": 0}
    storage.close()
