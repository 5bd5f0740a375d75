"""Keeping what has ended: for ever, for so many seconds, or not at all."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from sequential import AlreadyEnded, IdInUse, Paused, UnknownExecution, save, tool
from tests.lab import Lab

Flow = Generator[Any, Any, Any]


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, category: str, name: str, input: Any) -> int:
        self.calls += 1
        return self.calls


def workflow(input: Any) -> Flow:
    first = yield tool("api", "one", input)
    yield save()
    return {"first": first, "input": input}


@pytest.mark.parametrize("retain", [True, 3600, 0.5, 0])
def test_what_is_kept_gives_its_value_and_runs_nothing(lab: Lab, retain: bool | float) -> None:
    call = Counter()
    flow = lab.flow(call=call, workflows=[workflow], retain=retain)
    value = flow.to_end(workflow, "id", 5)[-1]
    assert value == {"first": 1, "input": 5}
    lab.rung.clear()
    for again in (
        flow.execute(workflow, "id"),
        flow.execute(workflow, "id", 5),
        flow.resume("id"),
        flow.run(workflow, "id"),
    ):
        assert again == value
    assert flow.start(workflow, "id", 5) == "id"
    assert flow.ring("id") is False
    with pytest.raises(IdInUse):
        flow.execute(workflow, "id", 6)
    status = lab.status("id")
    due = None if retain is True else lab.clock.now + retain
    assert (status.status, status.step, status.value, status.input, status.due) == ("finished", 2, value, 5, due)
    assert [step["result"] for step in flow.history("id")] == [1, None]
    assert (call.calls, lab.rung) == (1, [])


@pytest.mark.parametrize("seconds", [3600, 0.5, 0])
@pytest.mark.parametrize("end", ["finished", "cancelled", "cancelled by force", "cancelled while failed"])
def test_the_sweep_removes_what_was_kept_for_long_enough(lab: Lab, seconds: float, end: str) -> None:
    def fails() -> Flow:
        yield save()
        raise ValueError

    call = Counter()
    flow = lab.flow(call=call, workflows=[workflow, fails], retain=seconds)
    asks: Any = fails if end.endswith("failed") else workflow
    flow.execute(asks, "id")
    if end.endswith("failed"):
        with pytest.raises(ValueError, match=r"^$"):
            flow.execute(asks, "id")
    if end != "finished":
        flow.cancel("id", force=end.endswith("force"))
    while isinstance(flow.resume("id"), Paused):
        pass
    assert lab.status("id").status == end.split(maxsplit=1)[0]
    lab.rung.clear()
    if seconds:
        lab.clock.advance(seconds / 2)
        assert flow.sweep() == []
        assert lab.status("id").status == end.split(maxsplit=1)[0]
        lab.clock.advance(seconds / 2)
    assert flow.sweep() == lab.rung == []
    assert flow.status("id") is flow.resume("id") is None
    with pytest.raises(UnknownExecution):
        flow.history("id")
    assert flow.to_end(workflow, "id", "anew")[-1]["input"] == "anew"


@pytest.mark.parametrize("retain", [True, False])
def test_what_was_cancelled_is_kept_whatever_becomes_of_what_finishes(lab: Lab, retain: bool) -> None:
    flow = lab.flow(call=Counter(), workflows=[workflow], retain=retain)
    flow.execute(workflow, "id", 5)
    flow.cancel("id")
    assert flow.resume("id") is None
    lab.clock.advance(1e9)
    assert flow.sweep() == []
    status = lab.status("id")
    assert (status.status, status.due, status.input, status.value) == ("cancelled", None, 5, None)
    with pytest.raises(AlreadyEnded):
        flow.execute(workflow, "id", 5)
    flow.delete("id")
    assert isinstance(flow.execute(workflow, "id", 6), Paused)


def test_it_is_kept_as_the_executor_says_that_ends_it(lab: Lab) -> None:
    for first, last, status in ((True, False, None), (False, True, "finished")):
        lab.flow(call=Counter(), retain=first).execute(workflow, "id")
        flow = lab.flow(call=Counter(), retain=last)
        flow.to_end(workflow, "id")
        found = flow.status("id")
        assert (found and found.status) == status
