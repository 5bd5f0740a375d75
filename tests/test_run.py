"""Beginning an execution: `start`, with an input of any size, and `run`, which goes on to the end."""

# Loops here take at least one turn, and a `try` that is left has been entered.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sequential import (
    AlreadyEnded,
    Cancelled,
    Fenced,
    FlowExecutor,
    IdInUse,
    StorageError,
    UnknownExecution,
    again,
    save,
    sleep,
    tool,
    wait,
)
from sequential.blocking import settle
from sequential.record import GRACE
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalAround
from tests.lab import Lab
from tests.support import echo

Flow = Generator[Any, Any, Any]
MB = 1 << 20


def workflow(input: Any) -> Flow:
    first = yield tool("api", "one", input)
    yield save()
    return [first, (yield tool("api", "two", input))]


# start


def test_start_records_and_rings_and_may_be_repeated(lab: Lab) -> None:
    flow = lab.flow(call=echo, workflows=[workflow])
    id = flow.start(workflow, input={"user": 1})
    assert len(id) == 21
    for input in ({"user": 1}, None):
        assert flow.start(workflow, id, input) == id
    assert lab.rung == [id] * 3
    with pytest.raises(IdInUse):
        flow.start(workflow, id, {"user": 5})
    status = lab.status(id)
    told = (status.status, status.step, status.busy, status.due, status.input)
    assert told == ("running", 0, False, lab.clock.now + GRACE, {"user": 1})
    assert lab.go_on(id, call=echo, workflows=[workflow]) == [{"user": 1}] * 2


class Dies(BaseException):
    """The process dies at a write."""


class Fails(JournalAround):
    """Fails at one of its writes: before it, by death, or after it has taken place."""

    left = -1
    takes_place = False

    async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        self.left -= what == "write"
        is_it = what == "write" and self.left == 0
        if is_it and not self.takes_place:
            raise Dies
        done = await settle(method(*values, **options))
        if is_it:
            raise OSError("the answer was lost")
        return done


@pytest.mark.parametrize("begin", ["start", "execute"])
def test_a_large_input_is_written_in_parts_and_counts_when_the_last_is_there(lab: Lab, begin: str) -> None:
    large = {"text": "x" * 205, "rows": list(range(40))}
    calls: list[Any] = []

    def call(category: str, name: str, input: Any) -> Any:
        calls.append(input)
        return input

    journal = Fails(lab.plain)
    journal.part_size, journal.write_size = 10, 35
    flow = lab.flow(on=journal, call=call, workflows=[workflow])
    for dies_at in range(1, 99):
        journal.left, id = dies_at, f"id-{dies_at}"
        calls.clear()
        with suppress(Dies):
            flow.start(workflow, id, large) if begin == "start" else flow.execute(workflow, id, large)
        status = flow.status(id)
        if status is not None and status.status != "making":
            break
        assert status is None or status.input is None
        assert (flow.resume(id), calls, lab.rung) == (None, [], [])
        lab.clock.advance(3600.0)
        assert flow.sweep() == []
        assert flow.status(id) is None
    assert dies_at > 10
    journal.left = -1
    assert status is not None
    assert (status.status, status.input) == ("running", large)
    lab.clock.advance(90.0)  # it may have died with the lease
    assert lab.go_on(id, on=journal, call=call, workflows=[workflow]) == [large, large]
    assert calls[-2:] == [large, large]


def test_of_a_large_input_a_lost_answer_changes_nothing(lab: Lab) -> None:
    journal = Fails(lab.plain)
    journal.part_size, journal.write_size, journal.takes_place = 10, 35, True
    flow = lab.flow(on=journal, call=echo, workflows=[workflow])
    for failing in range(1, 99):
        journal.left, id = failing, f"id-{failing}"
        flow.start(workflow, id, "x" * 300)
        assert lab.rung.count(id) == 1
        assert lab.status(id).input == "x" * 300
        if journal.left > 0:
            break
    assert failing > 8


def test_a_list_of_executions_reads_no_input(tmp_path: Path) -> None:
    storage = SQLiteStorage(tmp_path / "flows.db", synchronous="NORMAL")
    flow = FlowExecutor(storage, call=echo)
    for number in range(40):  # reading but one large input would show
        flow.start_sync(workflow, f"id-{number:02}", "x" * (10 * MB) if number % 13 == 0 else None)
    tracemalloc.start()
    try:
        assert len(flow.list_sync()) == 40
        assert len(flow.sweep_sync()) == 0
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()
        storage.close()


@pytest.mark.parametrize("begin", ["start", "run"])
def test_a_beginning_that_died_in_the_middle_may_be_repeated(plain_lab: Lab, begin: str) -> None:
    journal = Fails(plain_lab.plain)
    journal.part_size, journal.write_size, journal.left = 10, 35, 3
    with suppress(Dies):
        plain_lab.flow(on=journal).start(workflow, "id", "x" * 300)
    assert plain_lab.status("id").status == "making"
    flow = plain_lab.flow(call=echo, workflows=[workflow])
    with pytest.raises(StorageError, match="is just being begun by another process: start it again"):
        flow.start(workflow, "id", "x" * 300)
    assert flow.execute(workflow, "id", "x" * 300).reason == "busy"
    plain_lab.clock.advance(90.0)  # whoever began it must be dead by now
    if begin == "run":
        assert flow.execute(workflow, "id", "x" * 300).reason == "tool"
    else:
        assert flow.start(workflow, "id", "x" * 300) == "id"
        assert (plain_lab.rung, plain_lab.status("id").status) == (["id"], "running")


# run


@pytest.fixture
def passing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Let the clock go on as far as somebody sleeps, at once; what is in the list happens when 10 seconds are over."""
    really, began, later = asyncio.sleep, lab.clock.now, list[Callable[[], object]]()

    def passes(seconds: float) -> None:
        lab.clock.advance(seconds)
        assert lab.clock.now < began + 500.0
        if later and lab.clock.now > began + 10.0:
            later.pop()()

    async def passes_async(seconds: float) -> None:
        passes(seconds)
        await really(0)

    monkeypatch.setattr(time, "sleep", passes)
    monkeypatch.setattr(asyncio, "sleep", passes_async)
    return later


def everything(input: Any) -> Flow:
    got = [(yield tool("api", "one", input)), (yield [tool("api", "two"), tool("api", "three")])]
    yield save()
    yield sleep(12)
    got.append((yield wait("never", timeout=5.5)))
    got.append((yield wait("go")))
    return again({"round": 2}) if input == {"round": 1} else got


@pytest.mark.usefixtures("passing")
@pytest.mark.parametrize("budget", [0, 1e9])
def test_run_goes_on_to_the_end_asleep_through_timers(lab: Lab, budget: float) -> None:
    signals: list[float] = []

    def call(category: str, name: str, input: Any) -> Any:
        if name == "one":
            signals.append(lab.clock.now)
            assert flow.signal("id", "go", len(signals), queue=True)
        return name

    flow = lab.flow(call=call, budget=budget, retain=True)
    value = flow.run(everything, "id", {"round": 1})
    assert value == ["one", ["two", "three"], {"__error": "timeout"}, 2]
    assert signals[1] - signals[0] == pytest.approx(17.5, abs=1.0)
    assert flow.run(everything, "id") == value
    assert lab.rung.count("id") <= 6  # whoever else is rung finds it busy, or ended


def test_run_waits_for_a_signal(lab: Lab, passing: list[Callable[[], object]]) -> None:
    def waits() -> Flow:
        return [(yield wait("go")), (yield tool("api", "one"))]

    began = lab.clock.now
    passing.append(lambda: FlowExecutor(lab.plain, clock=lab.clock).signal_sync("id", "go", "signalled"))
    assert lab.flow(call=lambda *_: "done").run(waits, "id") == ["signalled", "done"]
    assert lab.clock.now - began == pytest.approx(11.0, abs=1.0)


@pytest.mark.usefixtures("passing")
def test_run_waits_for_another_who_has_the_lease(lab: Lab) -> None:
    flow = lab.flow(call=echo, workflows=[workflow], lease=60.0)
    flow.start(workflow, "id", 1)
    _, other = lab.runner.run(flow.outer.take("id"))
    assert other is not None
    began = lab.clock.now
    assert flow.run(workflow, "id") == [1, 1]
    assert lab.clock.now - began == pytest.approx(90.0, abs=1.0)
    with pytest.raises(Fenced):
        lab.runner.run(other.run(0.0))


class Counting(JournalAround):
    """A store that counts its writes, and bounds them."""

    writes = 0

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.writes += what == "write"
        assert self.writes < 100
        return await settle(method(*arguments, **options))


@pytest.mark.usefixtures("passing")
def test_run_writes_nothing_while_it_is_asleep_or_waits(lab: Lab) -> None:
    def rests(input: Any) -> Flow:
        yield [tool("api", str(number)) for number in range(10)]
        yield sleep(input)
        yield wait("go", timeout=input)

    written = []
    for seconds in (1, 120):
        journal = Counting(lab.plain)
        lab.flow(on=journal, call=echo).run(rests, f"id-{seconds}", seconds)
        written.append(journal.writes)
    assert written[0] == written[1]


@pytest.mark.usefixtures("passing")
def test_run_is_asleep_while_a_cancelled_workflow_rests(lab: Lab) -> None:
    moved = list[str]()

    def undoes() -> Flow:
        try:
            yield sleep(100)
        except Cancelled:
            yield sleep(100)
            yield tool("api", "undo")

    flow = lab.flow(on=Counting(lab.plain), call=echo, observe=lambda event: moved.append(event.kind))
    flow.start(undoes, "id")
    flow.cancel("id")
    assert flow.run(undoes, "id") is None
    assert moved.count("claimed") < 5


@pytest.mark.parametrize("retain", [False, True])
def test_run_never_begins_anew_what_another_has_ended_meanwhile(
    lab: Lab, passing: list[Callable[[], object]], retain: bool
) -> None:
    performed = []

    def call(category: str, name: str, input: Any) -> Any:
        performed.append(name)
        return name

    def waits() -> Flow:
        return [(yield tool("api", "one")), (yield wait("go"))]

    def ends() -> None:
        other = FlowExecutor(lab.plain, call=call, workflows=[waits], retain=retain, clock=lab.clock)
        other.signal_sync("id", "go")
        assert other.resume_sync("id") == ["one", None]

    passing.append(ends)
    flow = lab.flow(call=call, retain=retain)
    if retain:
        assert flow.run(waits, "id") == ["one", None]
    else:
        with pytest.raises(UnknownExecution):
            flow.run(waits, "id")
    assert performed == ["one"]


@pytest.mark.usefixtures("passing")
def test_run_waits_until_a_beginning_that_died_in_the_middle_may_be_repeated(lab: Lab) -> None:
    journal = Fails(lab.plain)
    journal.part_size, journal.write_size, journal.left = 10, 35, 3
    with suppress(Dies):
        lab.flow(on=journal).start(workflow, "id", "x" * 300)
    assert lab.status("id").status == "making"
    assert lab.flow(call=echo).run(workflow, "id", "x" * 300) == ["x" * 300] * 2


def test_run_raises_what_execute_raises(lab: Lab) -> None:
    def fails(input: Any) -> Flow:
        yield save()
        raise ValueError(input)

    flow = lab.flow(call=echo)
    for _ in range(2):
        with pytest.raises(ValueError, match="mistake"):
            flow.run(fails, "id", "mistake")
        assert lab.status("id").status == "failed"
    flow.start(workflow, "cancelled")
    flow.cancel("cancelled")
    with pytest.raises(AlreadyEnded):
        flow.run(workflow, "cancelled")


def test_run_needs_no_id(any_lab: Lab) -> None:
    assert any_lab.flow(call=echo).run(workflow, None, 5) == [5, 5]


def scripted(input: Any) -> Flow:
    got: list[Any] = []
    for number in range(input):
        got.append((yield tool("api", "square", number)))
        yield sleep(0.001)
    return got


SCRIPT = """
import os, signal, sys
from sequential import FlowExecutor, current
from sequential.stores.sqlite import SQLiteStorage
from tests.test_run import scripted
path, log, dies_at = sys.argv[1:]
def call(category, name, input):
    with open(log, "a") as file:
        print(input, current().key, file=file)
    if str(input) == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return input**2
flow = FlowExecutor(SQLiteStorage(path), call=call, retain=True)
print(flow.run_sync(scripted, "id", 5))
"""


def test_a_script_that_is_killed_and_run_again_goes_on_at_once(tmp_path: Path) -> None:
    path, log = tmp_path / "flows.db", tmp_path / "log"

    def script(dies_at: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, str(path), str(log), dies_at]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)

    for dies_at in "024":
        assert script(dies_at).returncode == -signal.SIGKILL
    for _ in range(2):
        assert script("never").stdout == "[0, 1, 4, 9, 16]\n"
    calls = [line.split() for line in log.read_text().splitlines()]
    assert [number for number, _ in calls] == list("00122344")
    assert len({key for _, key in calls}) == 5
    storage = SQLiteStorage(path)
    assert [step["result"] for step in FlowExecutor(storage).history_sync("id")][::2] == [0, 1, 4, 9, 16]
    storage.close()
