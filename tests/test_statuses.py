"""What each method does to an execution in each status that it can have: a table, every cell of which is a test."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sequential import Paused, sleep, tool, wait
from sequential.blocking import complete
from sequential.record import is_past
from sequential.testing import JournalAround
from tests.lab import PLAIN, Lab, open_lab

HOUR, DAY = 3600.0, 86_400.0


class Scene:
    """An execution in a status, and all that may be done to it.

    Args:
        lab: Where it is.
        row: The status, or what else the table's row says.
    """

    def __init__(self, lab: Lab, row: str) -> None:
        self.lab, self.row, self.calls, self.run = lab, row, list[str](), "none"
        self.asks, self.is_broken = "first", False
        self.within: Callable[[], object] | None = None
        self.flow = lab.flow(call=self.call, workflows=[self.workflow], retain=HOUR, lease=60.0)
        getattr(self, f"make_{row.replace(' ', '_')}")()
        self.calls.clear()
        self.lab.rung.clear()

    def workflow(self, input: str) -> Generator[Any, Any, Any]:
        yield tool("api", self.asks)
        if input == "sleeping":
            yield sleep(HOUR)
        if input.startswith("waiting"):
            yield wait("go", HOUR if input == "waiting" else None)
        if self.is_broken:
            raise ValueError
        yield tool("api", "second")
        yield tool("api", "third")
        return "value"

    def call(self, category: str, name: str, input: Any) -> str:
        self.calls.append(name)
        if self.within is not None:
            within, self.within = self.within, None
            within()
        return name

    # How it comes into each status.

    def begin(self) -> None:
        self.flow.execute(self.workflow, "id", self.row)
        self.run = self.lab.record("id").run

    def go_on(self) -> None:
        self.begin()
        with suppress(Exception):
            self.flow.execute(self.workflow, "id")

    make_running = make_held = begin
    make_sleeping = make_waiting = make_waiting_for_ever = go_on

    def make_cancelling(self) -> None:
        self.begin()
        self.flow.cancel("id")

    def make_failed(self) -> None:
        self.is_broken = True
        self.go_on()
        self.is_broken = False

    def make_diverged(self) -> None:
        self.begin()
        self.asks = "another"
        with suppress(Exception):
            self.flow.execute(self.workflow, "id")
        self.asks = "first"

    def make_stuck(self) -> None:
        self.begin()
        while self.lab.status("id").status != "stuck":
            self.lab.clock.advance(2 * HOUR)
            self.flow.sweep()

    def make_finished(self) -> None:
        for _ in range(4):
            self.go_on()

    def make_cancelled(self) -> None:
        self.begin()
        self.flow.cancel("id", force=True)

    def make_making(self) -> None:
        class Dies(JournalAround):
            writes = 0

            async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
                self.writes += what == "write"
                if self.writes > 1:
                    raise OSError
                return method(*arguments, **options)

        journal = Dies(self.lab.plain)
        journal.part_size = journal.write_size = 4
        with suppress(OSError):
            self.lab.flow(on=journal).start(self.workflow, "id", "longer than one write")
        self.run = self.lab.record("id").run

    def make_absent(self) -> None:
        pass

    # What may be done to it.

    def do(self, act: str) -> str:
        """Do something to it, and tell what was returned or raised, and what has come of it."""
        method = getattr(self, act)
        if self.row != "held":
            return self.act(method, DAY if act in LATER else 0.0)
        told: list[str] = []
        self.within = lambda: told.append(self.act(method, 45.0 if act in LATER else 0.0))
        return "{1}; then {0}".format(outcome(self.execute), *told)

    def act(self, method: Callable[[], Any], seconds: float) -> str:
        self.lab.rung.clear()
        self.calls.clear()
        before = self.standing()
        self.lab.clock.advance(seconds)
        told, after = outcome(method), self.standing()
        told += "; runs" * bool(self.calls) + "; rings" * bool(self.lab.rung)
        return told if after == before else f"{told}; {after}"

    def standing(self) -> str:
        status = self.flow.status("id")
        return "absent" if status is None else str(status.status)

    def execute(self) -> Any:
        return self.flow.execute(self.workflow, "id")

    def resume(self) -> Any:
        return self.flow.resume("id")

    def callback(self, step: int = 1) -> Any:
        record, invocation = complete(self.flow.inner.take("id", self.run, step))
        if invocation is not None:
            return complete(invocation.run(0.0))
        return "unknown" if record is None else "past" if is_past(record, self.run, step) else "not taken"

    def late_callback(self) -> Any:
        return self.callback(0)

    def ring(self) -> Any:
        return self.flow.ring("id")

    def signal(self) -> Any:
        return self.flow.signal("id", "go")

    def cancel(self) -> Any:
        return self.flow.cancel("id")

    def force(self) -> Any:
        return self.flow.cancel("id", force=True)

    def sweep(self) -> Any:
        return self.flow.sweep()

    def purge(self) -> Any:
        return self.flow.purge(1)

    def purge_waiting(self) -> Any:
        return self.flow.purge(1, waiting=True)

    def fork(self) -> Any:
        copy = self.flow.fork("id", 1, "copy")
        assert self.flow.history(copy) == self.flow.history("id")[:1]
        assert (self.lab.status(copy).status, self.lab.status(copy).busy) == ("running", False)
        return copy

    def delete(self) -> Any:
        return self.flow.delete("id")


LATER = {"sweep", "purge", "purge_waiting"}
"""What is done a day later; while it is held, after 45 seconds: then it is due, and its lease is not over."""


def outcome(method: Callable[[], Any]) -> str:
    try:
        value = method()
    except Exception as error:
        return type(error).__name__
    return f"Paused {value.reason}" if isinstance(value, Paused) else str(value)


TABLE = {
    "running": {
        "execute": "Paused tool; runs; rings",
        "resume": "Paused tool; runs; rings",
        "callback": "Paused tool; runs; rings",
        "late_callback": "past",
        "ring": "True; rings",
        "signal": "True",
        "cancel": "True; rings; cancelling",
        "force": "True; cancelled",
        "sweep": "['id']; rings",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "held": {
        "execute": "Paused busy; then Paused tool",
        "resume": "Paused busy; then Paused tool",
        "callback": "not taken; then Paused tool",
        "late_callback": "past; then Paused tool",
        "ring": "True; rings; then Paused tool",
        "signal": "True; then Paused tool",
        "cancel": "True; cancelling; then AlreadyEnded",
        "force": "True; cancelled; then Fenced",
        "sweep": "[]; then Paused tool",
        "purge": "[]; then Paused tool",
        "purge_waiting": "[]; then Paused tool",
        "fork": "copy; rings; then Paused tool",
        "delete": "None; absent; then Fenced",
    },
    "sleeping": {
        "execute": "Paused sleep",
        "resume": "Paused sleep",
        "callback": "Paused sleep",
        "late_callback": "past",
        "ring": "True; rings",
        "signal": "True",
        "cancel": "True; rings; cancelling",
        "force": "True; cancelled",
        "sweep": "['id']; rings",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "waiting": {
        "execute": "Paused wait",
        "resume": "Paused wait",
        "callback": "Paused wait",
        "late_callback": "past",
        "ring": "True; rings",
        "signal": "True; rings",
        "cancel": "True; rings; cancelling",
        "force": "True; cancelled",
        "sweep": "['id']; rings",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "waiting for ever": {
        "execute": "Paused wait",
        "resume": "Paused wait",
        "callback": "Paused wait",
        "late_callback": "past",
        "ring": "True; rings",
        "signal": "True; rings",
        "cancel": "True; rings; cancelling",
        "force": "True; cancelled",
        "sweep": "[]",
        "purge": "[]",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "cancelling": {
        "execute": "AlreadyEnded; cancelled",
        "resume": "None; cancelled",
        "callback": "None; cancelled",
        "late_callback": "past",
        "ring": "True; rings",
        "signal": "True",
        "cancel": "True",
        "force": "True; cancelled",
        "sweep": "['id']; rings",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "failed": {
        "execute": "Paused tool; runs; rings; running",
        "resume": "Paused parked",
        "callback": "not taken",
        "late_callback": "past",
        "ring": "True; rings; running",
        "signal": "True",
        "cancel": "True; cancelled",
        "force": "True; cancelled",
        "sweep": "[]",
        "purge": "['id']; absent",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "diverged": {
        "execute": "Paused tool; runs; rings; running",
        "resume": "Paused parked",
        "callback": "not taken",
        "late_callback": "past",
        "ring": "True; rings; running",
        "signal": "True",
        "cancel": "True; cancelled",
        "force": "True; cancelled",
        "sweep": "[]",
        "purge": "['id']; absent",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "stuck": {
        "execute": "Paused tool; runs; rings; running",
        "resume": "Paused parked",
        "callback": "not taken",
        "late_callback": "past",
        "ring": "True; rings; running",
        "signal": "True",
        "cancel": "True; cancelled",
        "force": "True; cancelled",
        "sweep": "[]",
        "purge": "['id']; absent",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "finished": {
        "execute": "value",
        "resume": "value",
        "callback": "past",
        "late_callback": "past",
        "ring": "False",
        "signal": "AlreadyEnded",
        "cancel": "AlreadyEnded",
        "force": "AlreadyEnded",
        "sweep": "[]; absent",
        "purge": "['id']; absent",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "cancelled": {
        "execute": "AlreadyEnded",
        "resume": "None",
        "callback": "not taken",
        "late_callback": "past",
        "ring": "False",
        "signal": "AlreadyEnded",
        "cancel": "True",
        "force": "True",
        "sweep": "[]; absent",
        "purge": "['id']; absent",
        "purge_waiting": "['id']; absent",
        "fork": "copy; rings",
        "delete": "None; absent",
    },
    "making": {
        "execute": "Paused busy",
        "resume": "None",
        "callback": "not taken",
        "late_callback": "not taken",
        "ring": "UnknownExecution",
        "signal": "UnknownExecution",
        "cancel": "UnknownExecution",
        "force": "True; absent",
        "sweep": "[]; absent",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "UnknownExecution",
        "delete": "None; absent",
    },
    "absent": {
        "execute": "Paused tool; runs; rings; running",
        "resume": "None",
        "callback": "unknown",
        "late_callback": "unknown",
        "ring": "UnknownExecution",
        "signal": "UnknownExecution",
        "cancel": "UnknownExecution",
        "force": "UnknownExecution",
        "sweep": "[]",
        "purge": "[]",
        "purge_waiting": "[]",
        "fork": "UnknownExecution",
        "delete": "None",
    },
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(("row", "act"), [(row, act) for row, cells in TABLE.items() for act in cells])
def test_what_a_method_does_in_each_status(kind: str, row: str, act: str, tmp_path: Path) -> None:
    with open_lab(kind, tmp_path) as lab:
        assert Scene(lab, row).do(act) == TABLE[row][act]
