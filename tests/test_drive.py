"""`sequential.testing.run` takes a workflow to its value."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from sequential import Diverged, ToolError, again, install, save, sleep, tool, version, wait
from sequential.testing import FakeClock, run
from tests.support import echo

Flow = Generator[Any, Any, Any]


def everything(input: dict[str, int]) -> Flow:
    got: list[Any] = [(yield tool("api", "one", input)), (yield [tool("api", "two", n) for n in range(2)])]
    got.append((yield version()))
    yield sleep(1000)
    yield save()
    got.append((yield wait("first")))
    got.append((yield wait("second", timeout=60)))
    got.append((yield wait("never", timeout=60)))
    return again({"round": 2}) if input["round"] == 1 else got


async def echo_async(category: str, name: str, input: Any) -> Any:
    await asyncio.sleep(0)
    return input


@pytest.mark.parametrize("call", [echo, echo_async])
def test_it_goes_through_every_request_to_the_value(call: Any) -> None:
    clock = FakeClock(5000.0)
    signals = {"first": "yes", "second": [1, 2]}
    got = run(everything, {"round": 1}, call=call, signals=signals, clock=clock, version=7)
    assert got == [{"round": 2}, [0, 1], 7, "yes", [1, 2], {"__error": "timeout"}]
    assert clock() == 5000.0 + 2 * (1000 + 60)


def test_the_clock_stands_still_where_nobody_has_to_wait() -> None:
    def quick() -> Flow:
        yield sleep(0)
        yield sleep(-5)
        yield tool("api", "one")
        yield wait("never", timeout=0)

    clock = FakeClock(5000.0)
    run(quick, call=echo, clock=clock)
    assert clock() == 5000.0


def two(input: Any) -> Flow:
    return [(yield wait("next")), (yield wait("next"))]


def test_an_iterator_has_one_payload_for_each_wait() -> None:
    assert run(two, signals={"next": iter(["one", "two"])}) == ["one", "two"]
    with pytest.raises(AssertionError, match=r"^the workflow waits for 'next' once more than signals= has it$"):
        run(two, signals={"next": iter(["one"])})


def test_what_nobody_sends_is_told_by_name() -> None:
    with pytest.raises(AssertionError, match=r"^the workflow waits for 'next' for ever: give it in signals=$"):
        run(two, signals={"Next": 1})


def test_a_workflow_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sequential.testing.drive._INVOCATIONS", 100)

    def endless() -> Flow:
        while True:
            yield sleep(1)

    with pytest.raises(AssertionError, match="the workflow did not end within 100 invocations"):
        run(endless)


def test_what_the_workflow_raises_is_raised() -> None:
    def fails(input: dict[str, Any]) -> Flow:
        yield tool("api", "one")
        raise KeyError(input["key"])

    with pytest.raises(KeyError, match="missing"):
        run(fails, {"key": "missing"}, call=echo)


def test_a_tool_that_fails_answers_or_raises() -> None:
    def broken(*_: Any) -> Any:
        raise ConnectionError("no route")

    def one() -> Flow:
        return (yield tool("api", "one"))

    assert run(one, call=broken) == {"__error": "no route"}
    with pytest.raises(ToolError, match=r"^api.one failed: no route$"):
        run(one, call=broken, errors="raise")


def test_each_step_is_replayed_so_that_another_way_is_found() -> None:
    ways = iter("abc")

    def unsteady() -> Flow:
        yield tool("api", next(ways))

    with pytest.raises(Diverged, match=r"recorded 'tool api.a' at step 0, but its workflow now asks for 'tool api.b'"):
        run(unsteady, call=echo)


def test_the_process_wide_hooks_call_but_do_not_ring() -> None:
    rung: list[str] = []

    def one() -> Flow:
        return (yield tool("api", "one", 5))

    with install(call=echo, resume=rung.append):
        assert run(one) == 5
    assert rung == []


def test_the_fake_clock_moves_only_when_told() -> None:
    clock = FakeClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(2.5)
    assert clock() == 7.5
