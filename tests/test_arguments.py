"""What is given to an executor: what is refused, and that stores get plain values whatever was given."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any

import pytest

from sequential import FlowExecutor, InvalidId, NotEncodable, Paused, sleep, tool, version, wait
from sequential.blocking import settle
from sequential.codec import JSONCodec
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, JournalAround
from tests.lab import Lab
from tests.support import echo

Flow = Generator[Any, Any, Any]


def one(input: Any) -> Flow:
    return (yield tool("api", "one", input))


@pytest.mark.parametrize("id", ["", "a b", "é", "a/b", ".", "..", "x" * 201, 5, b"a", "a\n", "a%20"])
def test_an_id_that_no_store_could_carry_is_refused(id: Any) -> None:
    storage = MemoryStorage()
    flow = FlowExecutor(storage, call=echo, workflows=[one])
    calls: list[Callable[[], Any]] = [
        lambda: flow.execute_sync(one, id),
        lambda: flow.start_sync(one, id),
        lambda: flow.run_sync(one, id),
        lambda: flow.resume_sync(id),
        lambda: flow.ring_sync(id),
        lambda: flow.status_sync(id),
        lambda: flow.history_sync(id),
        lambda: flow.signal_sync(id, "go"),
        lambda: flow.cancel_sync(id),
        lambda: flow.delete_sync(id),
    ]
    for call in calls:
        with pytest.raises(InvalidId, match="cannot be an execution id: use 1 to 200 characters of A-Z a-z 0-9"):
            call()
    assert storage.find("", 9) == []
    with pytest.raises(InvalidId, match=r"^a dict cannot be .* an input is no id, and has a place of its own: input="):
        flow.execute_sync(one, {"user_id": 1})  # type: ignore[arg-type]
    with pytest.raises(InvalidId) as caught:
        flow.execute_sync(one, "secret " * 1000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("id", ["x" * 200, "a.b:c@d~e-f_G9", "...", "-", "0"])
def test_an_id_that_every_store_can_carry_is_taken(any_lab: Lab, id: str) -> None:
    assert any_lab.flow(call=echo).execute(one, id) == {"paused": id, "step": 0}


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "lease= is a number of seconds above 0, and budget= one not below 0", options)
        for options in (
            {"lease": 0}, {"lease": -1.0}, {"lease": "120"}, {"lease": math.nan}, {"budget": -1}, {"budget": math.nan},
            {"budget": None},
        )
    ]
    + [
        (ValueError, "retain= is True, False or a number of seconds", {"retain": retain})
        for retain in (-1, math.nan, math.inf, "1", None)
    ]
    + [(ValueError, "errors= is 'value' or 'raise', not", {"errors": errors}) for errors in ("values", None, True)]
    + [(ValueError, "version must be an int of at most 64 bits", {"version": version}) for version in ("1", 2**70, None)]
    + [
        (TypeError, f"{next(iter(hook))}= must be a function, got", hook)
        for hook in ({"call": 3}, {"resume": "http://x"}, {"observe": 3}, {"clock": 3})
    ],
)  # fmt: skip
def test_senseless_options_are_refused(error: type[Exception], text: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        FlowExecutor(MemoryStorage(), **options)


@pytest.mark.parametrize("wrong", ["5", None, math.nan])
def test_a_clock_that_cannot_be_advanced_so_stands_still(wrong: Any) -> None:
    clock = FakeClock(5)
    with pytest.raises(ValueError, match=f"time passes by a number of seconds, not {wrong!r}"):
        clock.advance(wrong)
    assert clock() == 5
    with pytest.raises(ValueError, match=f"time passes by a number of seconds, not {wrong!r}"):
        FakeClock(wrong)


def test_a_codec_that_returns_no_bytes() -> None:
    class Text(JSONCodec):
        def dumps(self, value: Any) -> Any:
            return json.dumps(value)

    storage = MemoryStorage(codec=Text())
    with pytest.raises(NotEncodable, match=r"the input of execution 'x' cannot be stored: Text.dumps\(\) returned a s"):
        FlowExecutor(storage, call=echo).execute_sync(one, "x")
    with pytest.raises(TypeError, match="returned a str, not bytes"):
        storage.set_result("x", 0, {})
    assert storage.get("x") is None


class Odd(float):
    """Such as numpy's numbers are, whose repr() is no number."""

    def __add__(self, other: float) -> Odd:
        return Odd(float(self) + other)

    __radd__ = __add__

    def __repr__(self) -> str:
        return f"Odd({float(self)})"


class Release(IntEnum):
    SECOND = 2


class PlainOnly(JournalAround):
    """Refuses numbers that a store might write in a way that nobody can read."""

    async def around(self, what: str, method: Callable[..., Any], *values: Any, **options: Any) -> Any:
        for part in itertools.chain(*(value if isinstance(value, tuple) else [value] for value in values)):
            assert type(part) in {int, float, str, bytes, bool, list, type(None)} or isinstance(part, tuple), (
                what,
                part,
            )
            assert "Odd" not in repr(part)
        return await settle(method(*values, **options))


def test_a_store_gets_plain_numbers_whatever_was_given() -> None:
    def asks() -> Flow:
        yield sleep(Odd(5.0))
        yield wait("go", Odd(7.0))
        yield tool("api", "one")
        return (yield version())

    clock, rounds = FakeClock(), itertools.count()
    flow = FlowExecutor(
        PlainOnly(MemoryStorage()), call=echo, lease=Odd(60), budget=Odd(0), version=Release.SECOND,
        clock=lambda: Odd(clock()), workflows=[asks], retain=Odd(9.0),
    )  # fmt: skip
    outcome: Any = flow.execute_sync(asks, "odd")
    while isinstance(outcome, Paused):
        clock.advance(3.0)
        outcome = flow.resume_sync("odd")
        assert next(rounds) < 9
    assert outcome == 2
    assert flow.sweep_sync() == []
    assert flow.purge_sync(Odd(0.0)) == ["odd"]
