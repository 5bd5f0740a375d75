"""Retries, compensations and typed calls are ordinary generators: they are right when driven by hand, and when killed."""

from __future__ import annotations

import doctest
import itertools
import math
import pickle
from collections.abc import Callable, Collection, Generator
from contextlib import suppress
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sequential.patterns
from sequential import (
    AlreadyEnded,
    Cancelled,
    FlowExecutor,
    NotSupported,
    ToolError,
    current,
    sleep,
    tool,
    version,
    wait,
)
from sequential.patterns import call, check, retry, saga
from sequential.requests import is_error
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock, crash_points
from sequential.tools import Tools
from tests.support import PlainStorage, echo

Flow = Generator[Any, Any, Any]
Errors = Literal["value", "raise"]
Answer = Callable[[str, Any], Any]
"""What a tool of this name is answered with, given its input."""

MODES = pytest.mark.parametrize("errors", ["value", "raise"])
ERROR = {"__error": "busy"}
DEFAULTS = {"attempts": 3, "delay": 1.0, "factor": 2.0, "max_delay": 3600.0, "jitter": 0.1}


def driven(
    flow: Flow, answer: Answer, errors: Errors = "value", cancel_at: Collection[int] = ()
) -> tuple[Any, list[Any]]:
    """Answer what a generator asks for, or cancel it there; return its value, or what it raised, and a list of the tools and the pauses."""
    trace: list[Any] = []
    reply: Any = None
    try:
        request = next(flow)
        for place in itertools.count():
            asked = request.get("__tool")
            if place in cancel_at:
                request = flow.throw(Cancelled())
                continue
            trace.append(asked[1] if asked else request["__sleep"])
            reply = answer(asked[1], asked[2]) if asked else None
            if errors == "raise" and is_error(reply):
                request = flow.throw(ToolError(str(reply["__error"]), f"{asked[0]}.{asked[1]}"))
            else:
                request = flow.send(reply)
    except StopIteration as stop:
        return stop.value, trace
    except (Exception, Cancelled) as error:
        return error, trace
    raise AssertionError("it goes on for ever")


def fails(*names: str) -> Answer:
    return lambda name, input: ERROR if name in names else name


def error_in(outcome: Any) -> tuple[str, str | None] | None:
    """The message and the tool of what `retry` ends with when it gives up, in either mode."""
    try:
        check(outcome)
    except ToolError as error:
        outcome = error
    return (outcome.message, outcome.tool) if isinstance(outcome, ToolError) else None


def run(workflow: Any, perform: Any = echo, input: Any = None, errors: Errors = "value") -> Any:
    """Run a workflow to its end, moving a clock on while it sleeps; return its value and how long it slept."""
    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=perform, budget=math.inf, retain=True, clock=clock, errors=errors)
    start = clock.now
    flow.execute_sync(workflow, "r", input)
    while True:
        status = flow.status_sync("r")
        assert status is not None
        if status.status != "sleeping":
            return status.value, clock.now - start
        assert status.due is not None
        clock.now = status.due
        flow.execute_sync(workflow, "r")


def test_the_examples_in_the_docstrings_run() -> None:
    found = {test.name.partition("patterns.")[2]: test for test in doctest.DocTestFinder().find(sequential.patterns)}
    assert all(found[name].examples for name in sequential.patterns.__all__)
    assert doctest.testmod(sequential.patterns).failed == 0


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(json | st.dictionaries(st.sampled_from(["__error", "other"]), json))
def test_check_returns_whatever_is_not_an_error_value(result: Any) -> None:
    if isinstance(result, dict) and list(result) == ["__error"]:
        with pytest.raises(ToolError) as caught:
            check(result)
        assert (caught.value.message, caught.value.tool) == (str(result["__error"]), None)
    else:
        assert check(result) is result


def test_a_tool_error_tells_all_it_knows_and_survives_pickling() -> None:
    error = ToolError("full", "hotel.book", (ToolError("closed", "flight.cancel"), ToolError("KeyError: 'id'")))
    text = "hotel.book failed: full; not undone: flight.cancel failed: closed; not undone: KeyError: 'id'"
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == text
    assert (copy.message, copy.tool) == ("full", "hotel.book")
    assert [(each.message, each.tool) for each in copy.not_undone] == [
        ("closed", "flight.cancel"),
        ("KeyError: 'id'", None),
    ]
    assert str(ToolError("full")) == "full"


tools = Tools()


@tools.add("api")
def fetch_user(id: int, fn: str = "Ada") -> dict[str, Any]:
    if id < 0:
        raise LookupError(f"no user {id}")
    return {"id": id, "name": fn}


@tools.add("api", name="later")
async def fetch_later(id: int) -> int:
    return id + 1


@MODES
def test_call_asks_for_the_tool_that_the_function_is_registered_as(errors: Errors) -> None:
    def workflow(input: Any) -> Flow:
        user = yield from call(fetch_user, id=input["id"], fn="Bob")
        later = yield from call(fetch_later, id=user["id"])
        try:
            yield from call(fetch_user, id=-1)
        except ToolError as error:
            return [user, later, error.message, error.tool]

    found = [{"id": 5, "name": "Bob"}, 6, "no user -1", "api.fetch_user"]
    assert run(workflow, tools, {"id": 5}, errors) == (found, 0.0)
    assert crash_points(workflow, {"id": 5}, call=tools, errors=errors) > 40


@MODES
def test_an_error_that_nobody_catches_parks_the_execution_with_the_tools_name(errors: Errors) -> None:
    def workflow() -> Flow:
        yield from call(fetch_user, id=-1)

    flow = FlowExecutor(MemoryStorage(), call=tools, budget=math.inf, errors=errors)
    with pytest.raises(ToolError, match=r"^api\.fetch_user failed: no user -1$"):
        flow.execute_sync(workflow, "e")
    status = flow.status_sync("e")
    assert status is not None
    assert (status.status, status.error) == ("failed", "ToolError: api.fetch_user failed: no user -1")


def test_call_refuses_what_it_cannot_ask_for() -> None:
    error, _ = driven(call(abs, 5), fails())
    assert isinstance(error, TypeError)
    assert str(error) == (
        "abs is not registered as a tool: put `@tools.add(category)` before it, where tools is a sequential.tools.Tools, "
        "or ask by name with check((yield tool(category, name, input)))"
    )
    error, _ = driven(call(fetch_user, 5), fails())
    assert isinstance(error, TypeError)
    assert str(error) == "call(fetch_user, ...) got a int by position: give its arguments by name"


numbers = st.floats(0, 1e6)
options = st.fixed_dictionaries(
    {"attempts": st.integers(1, 8), "delay": numbers, "factor": st.floats(1, 1e6), "max_delay": numbers, "jitter": st.floats(0, 1)}
)  # fmt: skip


@given(errors=st.sampled_from(["value", "raise"]), failures=st.integers(0, 8), options=options, input=json)
def test_retry_asks_until_it_succeeds_and_sleeps_ever_longer(
    errors: Errors, failures: int, options: Any, input: Any
) -> None:
    attempts, delay, factor, max_delay, jitter = (
        options[name] for name in ("attempts", "delay", "factor", "max_delay", "jitter")
    )

    def attempt() -> tuple[Any, list[Any]]:
        answers = iter([*[ERROR] * failures, *["done"] * attempts])
        value, trace = driven(retry(tool("api", "x", input), **options), lambda *_: next(answers), errors)
        assert (value == "done") == (failures < attempts)
        assert error_in(value) == (None if failures < attempts else ("busy", "api.x"))
        assert isinstance(value, ToolError) == (failures >= attempts and errors == "raise")
        return repr(value), trace

    value, trace = attempt()
    asked = min(failures + 1, attempts)
    assert trace.count("x") == asked
    pauses, pause = [each for each in trace if each != "x"], min(delay, max_delay)
    assert len(pauses) == (asked - 1 if pause else 0)
    for found in pauses:
        assert pause * (1 - jitter) <= found * (1 + 1e-9)
        assert found <= pause * (1 + jitter) * (1 + 1e-9)
        pause = min(pause * factor, max_delay)
    assert attempt() == (value, trace)


def test_without_jitter_the_delays_are_exact() -> None:
    _, trace = driven(retry(tool("api", "x"), attempts=6, delay=10, factor=3, max_delay=500, jitter=0), fails("x"))
    assert trace == ["x", 10, "x", 30, "x", 90, "x", 270, "x", 500, "x"]
    _, trace = driven(
        retry(tool("api", "x"), attempts=2000, delay=1e-9, max_delay=math.inf, factor=1, jitter=0), fails("x")
    )
    assert len(trace) == 3999
    _, trace = driven(retry(tool("api", "x"), attempts=20, delay=1, max_delay=math.inf, factor=10), fails("x"))
    assert trace[-2] <= 1e12  # the longest sleep there is


def test_jitter_spreads_executions_and_is_the_same_at_every_replay() -> None:
    clock, asleep = FakeClock(), dict[str, set[float]]()

    def workflow() -> Generator[Any, Any, Any]:
        return (yield from retry(tool("api", "x"), delay=1000, factor=1, jitter=0.5))

    def call(category: str, name: str, input: Any) -> Any:
        raise ConnectionError("busy")

    flow = FlowExecutor(MemoryStorage(), call=call, workflows=[workflow], clock=clock)
    for id in ("a", "b", "c"):
        flow.execute_sync(workflow, id)
        for _ in range(3):
            assert flow.resume_sync(id).reason == "sleep"
            status = flow.status_sync(id)
            assert status is not None
            assert status.due is not None
            asleep.setdefault(id, set()).add(status.due - clock.now)
    assert [len(pauses) for pauses in asleep.values()] == [1, 1, 1]
    assert len(set.union(*asleep.values())) == 3


def test_jitter_spreads_executions_that_differ_in_their_input_or_in_their_error() -> None:
    def pauses(input: Any, error: str = "busy") -> list[float]:
        _, trace = driven(retry(tool("api", "x", input), jitter=0.5), lambda *_: {"__error": error})
        return [pause for pause in trace if pause != "x"]

    first = [pauses({"n": number})[0] for number in range(100)]
    assert len(set(first)) == 100
    assert [sum(0.5 + 0.25 * k <= pause < 0.75 + 0.25 * k for pause in first) > 10 for k in range(4)] == [True] * 4
    assert pauses({}, "request 1 was too much") != pauses({}, "request 2 was too much")
    one, two = pauses({})
    assert two / one != 2
    assert pauses({"no JSON": {1, 2}}) == [0.5, 1.0]


@MODES
@pytest.mark.parametrize(
    ("retry_on", "message", "again"),
    [
        (None, "busy", True), (None, "interrupted", False), (lambda message: message == "interrupted", "interrupted", True),
        (lambda message: message == "busy", "very busy", False), (["timeout", "busy"], "very busy", True), (["timeout"], "busy", False),
        ((), "busy", False), ("busy", "very busy", True), ("bus", "su", False),
        ({"interrupted"}, "interrupted", True), ("5", 503, True),
    ],
)  # fmt: skip
def test_retry_on_says_which_errors_are_worth_it(errors: Errors, retry_on: Any, message: Any, again: bool) -> None:
    retry_on = iter(retry_on) if isinstance(retry_on, list) else retry_on
    value, trace = driven(retry(tool("api", "x"), retry_on=retry_on), lambda *_: {"__error": message}, errors)
    assert (error_in(value), trace.count("x")) == ((str(message), "api.x"), 3 if again else 1)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"delay": -1}, {"factor": 0.5}, {"max_delay": -1.0}, {"jitter": 1.5}, {"jitter": -0.1}, {"delay": math.nan}, {"attempts": "3"}]
)  # fmt: skip
def test_retry_and_saga_refuse_numbers_out_of_range(wrong: Any) -> None:
    error, trace = driven(retry(tool("api", "x"), **wrong), fails())
    assert isinstance(error, ValueError)
    assert trace == []
    assert str(error) == (
        "attempts= and factor= must be at least 1, delay= and max_delay= at least 0 seconds, and jitter= from 0 to 1, "
        "got attempts={attempts!r}, factor={factor!r}, delay={delay!r}, max_delay={max_delay!r}, jitter={jitter!r}"
    ).format(**(DEFAULTS | wrong))
    with pytest.raises(ValueError, match="attempts= and factor= must be at least 1"):
        saga(**wrong)


@pytest.mark.parametrize("wrong", [5, [5], b"busy", ConnectionError])
def test_retry_and_saga_refuse_what_cannot_choose_errors(wrong: Any) -> None:
    error, _ = driven(retry(tool("api", "x"), retry_on=wrong), fails())
    assert isinstance(error, TypeError)
    assert str(error) == f"retry_on= got {wrong!r}: give a function of the error's message, or a list of texts"
    with pytest.raises(TypeError, match="retry_on= got"):
        saga(retry_on=wrong)


@pytest.mark.parametrize(
    "wrong", [None, 5, "x", sleep(1), wait("x"), {"__tool": ["x"]}, [tool("api", "x")], call(fetch_user, id=1)]
)
def test_retry_refuses_what_is_no_tool_call(wrong: Any) -> None:
    error, trace = driven(retry(wrong), fails())
    assert isinstance(error, TypeError)
    assert trace == []
    assert str(error) == (
        f"retry() got a {type(wrong).__name__}: give it what tool(...) returns (a generator runs only once: use retry "
        f"within it)"
    )


def busy_until(step: int) -> Any:
    """Return a hook that fails before a step, whoever asks, and so fails alike in every process."""

    def perform(category: str, name: str, input: Any) -> Any:
        if current().step < step:
            raise ConnectionError("busy")
        return [name, input, current().step]

    return perform


def patient(input: Any) -> Flow:
    return check((yield from retry(tool("api", "x", input), attempts=5, delay=7200.0, max_delay=1e6)))


@MODES
def test_hours_of_retries_take_no_time_and_survive_death_anywhere(errors: Errors) -> None:
    value, slept = run(patient, busy_until(6), {"n": 1}, errors)
    assert value == ["x", {"n": 1}, 6]
    assert 7 * 7200 * 0.9 <= slept <= 7 * 7200 * 1.1
    assert crash_points(patient, {"n": 1}, call=busy_until(6), errors=errors) > 60
    assert crash_points(patient, {"n": 1}, call=busy_until(99), errors=errors) > 60


def test_the_error_value_of_retry_is_stored_like_any_other() -> None:
    def workflow() -> Flow:
        return (yield from retry(tool("api", "x"), attempts=1))

    value, _ = driven(workflow(), fails("x"))
    assert (value, repr(value)) == (ERROR, repr(ERROR))
    assert run(workflow, busy_until(9)) == (ERROR, 0.0)


@MODES
def test_retry_without_delay_needs_no_journal(errors: Errors) -> None:
    def workflow() -> Flow:
        return (yield from retry(tool("api", "x"), delay=0))

    def later() -> Flow:
        return (yield from retry(tool("api", "x")))

    flow = FlowExecutor(PlainStorage(), call=busy_until(2), budget=math.inf, errors=errors)
    assert flow.execute_sync(workflow, "p") == ["x", {}, 2]
    with pytest.raises(NotSupported, match="sleep"):
        flow.execute_sync(later, "q")


@MODES
@pytest.mark.parametrize(("retry_on", "paid"), [(None, False), (["interrupted"], True)])
def test_an_interrupted_call_is_not_made_again_unless_it_is_asked_for(
    errors: Errors, retry_on: Any, paid: bool
) -> None:
    def workflow() -> Flow:
        try:
            return check((yield from retry(tool("bank", "pay", once=True), retry_on=retry_on)))
        except ToolError as error:
            return str(error)

    def killed(category: str, name: str, input: Any) -> Any:
        raise KeyboardInterrupt

    clock, storage = FakeClock(), MemoryStorage()
    with pytest.raises(KeyboardInterrupt):
        FlowExecutor(storage, call=killed, clock=clock, errors=errors).execute_sync(workflow, "p")
    flow = FlowExecutor(storage, call=lambda *_: {"amount": 5}, clock=clock, budget=math.inf, retain=True)
    flow.execute_sync(workflow, "p")
    clock.advance(3600)
    assert flow.execute_sync(workflow, "p") == ({"amount": 5} if paid else "bank.pay failed: interrupted")
    assert crash_points(workflow, call=lambda *_: {"amount": 5}, errors=errors) > 10


def trip_of(steps: int, **options: Any) -> Any:
    """Return a workflow of steps ``do0``, ``do1``, ... each of which has a compensation ``undo0``, ..."""

    def undo(number: int) -> Callable[[Any], Any]:
        return lambda result: tool("api", f"undo{number}", result)

    def workflow(input: Any = None) -> Flow:
        trip = saga(**options)
        done = []
        for number in range(steps):
            step = tool("api", f"do{number}", input)
            done.append((yield from trip.do(step, undo=undo(number))))
        return done

    return workflow


@MODES
@pytest.mark.parametrize(
    ("failing", "flaky"), [("do0", ""), ("do1", "undo0"), ("do2", "undo0"), ("do2", "undo1"), ("nothing", "")]
)
def test_a_saga_survives_death_anywhere(errors: Errors, failing: str, flaky: str) -> None:
    undone: list[str] = []

    def perform(category: str, name: str, input: Any) -> Any:
        if name == failing or (name == flaky and current().step < 7):
            raise ConnectionError(f"{name} is busy")
        undone.extend(name for _ in range(name.startswith("undo")))
        return [name, input]

    assert crash_points(trip_of(3), {"n": 1}, call=perform, errors=errors) >= 20
    assert set(undone) == {"do0": set(), "do1": {"undo0"}, "do2": {"undo0", "undo1"}, "nothing": set()}[failing]


@MODES
def test_what_cannot_be_undone_is_reported_and_keeps_nothing_else_from_it(errors: Errors) -> None:
    def perform(category: str, name: str, input: Any) -> Any:
        if name in {"do2", "undo1"}:
            raise ConnectionError(f"{name} is closed")
        return input

    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=perform, budget=math.inf, clock=clock, errors=errors)
    workflow, slept = trip_of(3), 0.0
    text = "api.do2 failed: do2 is closed; not undone: api.undo1 failed: undo1 is closed"
    try:
        while True:
            flow.execute_sync(workflow, "s", {"n": 1})
            status = flow.status_sync("s")
            assert status is not None
            assert status.due is not None
            slept, clock.now = slept + status.due - clock.now, status.due
    except ToolError as error:
        assert str(error) == text
    assert 511 * 0.9 < slept < 511 * 1.1
    status = flow.status_sync("s")
    assert status is not None
    assert (status.status, status.error) == ("failed", f"ToolError: {text}")
    asked = [step["asked"] for step in flow.history_sync("s") if step["asked"] != "sleep"]
    assert asked == ["tool api.do0", "tool api.do1", "tool api.do2", *["tool api.undo1"] * 10, "tool api.undo0"]
    assert crash_points(trip_of(3, attempts=2), {"n": 1}, call=perform, errors=errors) > 40


@MODES
@pytest.mark.parametrize("failing", ["do0", "do2", "nothing"])
def test_a_saga_undoes_all_wherever_it_is_cancelled_and_even_if_twice(errors: Errors, failing: str) -> None:
    _, undisturbed = driven(trip_of(3)(), fails(failing), errors)
    for cancels in itertools.combinations(range(len(undisturbed) + 4), 2):
        error, trace = driven(trip_of(3)(), fails(failing), errors, cancels)
        assert isinstance(error, Cancelled) == (cancels[0] < len(undisturbed))
        done = [name for name in trace if name.startswith("do") and name != failing]
        undone = [name for name in trace if name.startswith("undo")]
        if isinstance(error, Cancelled):
            assert undone == [f"un{name}" for name in reversed(done)]
            assert not hasattr(error, "__notes__")


@MODES
def test_a_cancellation_begins_a_compensation_anew_and_tells_what_could_not_be_undone(errors: Errors) -> None:
    flow = trip_of(3, attempts=2, jitter=0)()
    error, trace = driven(flow, fails("do2", "undo1"), errors, {4})
    assert trace == ["do0", "do1", "do2", "undo1", "undo1", 1.0, "undo1", "undo0"]
    assert isinstance(error, Cancelled)
    assert error.__notes__ == ["not undone: api.undo1 failed: busy"]
    assert str(error.__context__) == "api.do2 failed: busy"


class Death(BaseException):
    """A process ends."""


class Booking:
    """A saga on a store, one step per invocation; it may be cancelled, and its process may die, at given moments.

    A moment is before each invocation, before each call and after it.

    Args:
        form: How what is between the steps is covered, ``"a step"`` or ``"caught"``.
        kinds: What each step is, ``"tool"``, ``"retry"`` or ``"sub"``.
        failures: How often each tool fails before it succeeds.
        errors: As for `FlowExecutor`.
        cancel_at: The moment when it is cancelled.
        deaths: The moments when a process dies.
    """

    def __init__(
        self, *, form: str, kinds: list[str], failures: dict[str, int], errors: Errors, cancel_at: int, deaths: Any = ()
    ) -> None:
        self.form, self.kinds, self.cancel_at, self.deaths = form, kinds, cancel_at, deaths
        self.left, self.moments, self.clock = dict(failures), 0, FakeClock()
        self.raised: ToolError | Cancelled | None = None
        self.flow = FlowExecutor(MemoryStorage(), call=self.perform, clock=self.clock, retain=True, errors=errors)

    def moment(self) -> int:
        """Return the number of this moment, at which it may be cancelled."""
        self.moments += 1
        if self.moments - 1 == self.cancel_at:
            assert self.flow.cancel_sync("p")
        return self.moments - 1

    def perform(self, category: str, name: str, input: Any) -> Any:
        if self.moment() in self.deaths:
            raise Death
        self.left[name] = self.left.get(name, 0) - 1
        if self.left[name] >= 0:
            raise ConnectionError("busy")
        if self.moment() in self.deaths:
            raise Death
        return input

    def workflow(self) -> Flow:
        try:
            yield from (self.as_a_step if self.form == "a step" else self.caught)(saga(attempts=3))
        except (ToolError, Cancelled) as error:
            self.raised = error
            raise

    def as_a_step(self, trip: saga) -> Flow:
        yield from trip.do(self.steps(trip))

    def caught(self, trip: saga) -> Flow:
        try:
            yield from self.steps(trip)
        except (Exception, Cancelled):
            yield from trip.undo()
            raise

    def steps(self, trip: saga) -> Flow:
        for number, kind in enumerate(self.kinds):
            check((yield tool("api", f"look{number}")))
            request = tool("api", f"do{number}", number)
            steps: dict[str, Any] = {"tool": request, "retry": retry(request, attempts=2), "sub": self.asked(request)}
            yield from trip.do(steps[kind], undo=self.undo)

    def undo(self, number: int) -> Any:
        request = tool("api", f"undo{number}")
        return self.asked(request) if number % 2 else request

    def asked(self, request: Any) -> Flow:
        return check((yield from retry(request, attempts=1)))

    def end(self) -> str:
        """Run it to its end, and return its status."""
        self.flow.start_sync(self.workflow, "p")
        while True:
            status = self.flow.status_sync("p")
            assert status is not None
            if status.status in {"finished", "failed", "cancelled"}:
                return status.status
            self.clock.now = max(self.clock.now, status.due or 0.0)
            self.moment()
            with suppress(Death, ToolError, AlreadyEnded):
                self.flow.execute_sync(self.workflow, "p")


def undone_at_the_end_of(booking: Booking) -> int:
    """See that what a booking has done is done or undone when it has ended; return how many moments it had."""
    status, error = booking.end(), booking.raised
    history = [step["asked"] for step in booking.flow.history_sync("p") if step["error"] is None]
    names = [asked.removeprefix("tool api.") for asked in history if not asked.startswith("tool api.look")]
    done = [name for name in names if name.startswith("do")]
    undone = [name for name in names if name.startswith("undo")]
    assert done == [f"do{number}" for number in range(len(done))]
    if error is None:
        assert (status, len(done), undone) == ("finished", len(booking.kinds), [])
        return booking.moments
    told = [str(each) for each in error.not_undone] if isinstance(error, ToolError) else getattr(error, "__notes__", [])
    lost = [note.removeprefix("not undone: ").removeprefix("api.").partition(" ")[0] for note in told]
    to_undo = [f"un{name}" for name in reversed(done)]
    assert undone == [name for name in to_undo if name not in lost]
    assert lost == [name for name in to_undo if name not in undone]
    assert all(booking.left[name] >= 0 for name in lost)
    # What fails while a cancellation is yet to come counts as cancelled.
    assert status == "cancelled" or (status == "failed" and isinstance(error, ToolError))
    if booking.form == "a step" or not lost:  # or else `undo` raises what says so
        assert isinstance(error, Cancelled) == ("cancel" in names)
    return booking.moments


PLACES = st.sampled_from([f"{what}{number}" for what in ("look", "do", "undo") for number in range(4)])


@given(
    form=st.sampled_from(["a step", "caught"]), kinds=st.lists(st.sampled_from(["tool", "retry", "sub"]), min_size=1, max_size=4),
    failures=st.dictionaries(PLACES, st.integers(1, 3), max_size=4), errors=st.sampled_from(["value", "raise"]),
    cancel_at=st.integers(0, 40), deaths=st.sets(st.integers(0, 40), max_size=3),
)  # fmt: skip
def test_whatever_was_done_is_undone_once_and_in_reverse(**scenario: Any) -> None:
    undone_at_the_end_of(Booking(**scenario))


@MODES
@pytest.mark.parametrize("form", ["a step", "caught"])
@pytest.mark.parametrize("failures", [{}, {"do2": 2, "undo0": 2}, {"look2": 1, "undo1": 3}])
def test_a_saga_undoes_all_at_whatever_moment_it_is_cancelled(form: str, failures: Any, errors: Errors) -> None:
    def moments(cancel_at: int) -> int:
        kinds = ["tool", "sub", "retry"]
        booking = Booking(form=form, kinds=kinds, failures=failures, errors=errors, cancel_at=cancel_at)
        return undone_at_the_end_of(booking)

    undisturbed = moments(-1)
    assert undisturbed >= 18
    for cancel_at in range(undisturbed):
        moments(cancel_at)


@tools.add("flight")
def book(to: str) -> dict[str, str]:
    return {"id": f"flight to {to}"}


@tools.add("flight")
def cancel(id: str) -> str:
    if current().step < 6:
        raise ConnectionError("busy")
    return f"cancelled {id}"


class Refused(Exception):
    """A business reason."""


def mixed(input: Any) -> Flow:
    """Typed calls, retries, a wait and a sub-workflow, all as steps and compensations."""

    def hotel(city: str) -> Generator[Any, Any, str]:
        room = yield tool("hotel", "room", {"city": city})
        if room == {"city": "Nowhere"}:
            raise Refused("no such city")
        booked: dict[str, str] = check((yield from retry(tool("hotel", "book", room))))
        return booked["city"]

    def leave(city: str) -> Flow:
        yield tool("hotel", "key", {"city": city})
        if input["lost"]:
            raise LookupError("the key")
        yield tool("hotel", "leave", {"city": city})

    trip = saga(delay=60.0)
    yield from trip.do(call(book, to=input["to"]), undo=lambda flight: call(cancel, id=flight["id"]))
    try:
        city = yield from trip.do(hotel(input["to"]), undo=leave)
    except Refused as error:
        return [str(error)]
    yield from trip.do(tool("taxi", "call"))
    yield from trip.do(wait("payment", timeout=3600.0))
    return city


def perform_mixed(category: str, name: str, input: Any) -> Any:
    return tools(category, name, input) if category == "flight" else input


@MODES
@pytest.mark.parametrize(
    ("to", "lost", "signals", "asked", "outcome"),
    [
        ("Oslo", False, {"payment": 5}, ["book", "room", "book", "call", "wait"], "Oslo"),
        ("Nowhere", False, {}, ["book", "room", "cancel", "sleep", "cancel", "sleep", "cancel"], ["no such city"]),
        ("Oslo", False, {}, ["book", "room", "book", "call", "wait", "key", "leave", "cancel"], "wait payment failed: timeout"),
        ("Oslo", True, {}, ["book", "room", "book", "call", "wait", "key", "cancel"], "wait payment failed: timeout; not undone: LookupError: the key"),
    ],
)  # fmt: skip
def test_all_patterns_together(
    *, errors: Errors, to: str, lost: bool, signals: Any, asked: list[str], outcome: Any
) -> None:
    points = crash_points(mixed, {"to": to, "lost": lost}, call=perform_mixed, signals=signals, errors=errors)
    assert points > 60
    clock = FakeClock()
    flow = FlowExecutor(MemoryStorage(), call=perform_mixed, budget=math.inf, retain=True, clock=clock, errors=errors)
    flow.start_sync(mixed, "m", {"to": to, "lost": lost})
    for name, payload in signals.items():
        flow.signal_sync("m", name, payload)
    ended: list[Any] = []
    for _ in range(5):
        try:
            ended.append(flow.execute_sync(mixed, "m"))
        except ToolError as error:
            ended.append(str(error))
        clock.advance(3600.0)
    assert ended[-1] == outcome
    assert [step["asked"].rpartition(".")[2].split()[0] for step in flow.history_sync("m")][: len(asked)] == asked


@MODES
def test_an_exception_of_a_step_is_raised_as_it_is_unless_something_could_not_be_undone(errors: Errors) -> None:
    def broken() -> Flow:
        yield tool("api", "begin")
        raise Refused("no")

    def nested() -> Flow:
        inner = saga(attempts=1)
        yield from inner.do(tool("api", "inner"), undo=lambda _: tool("api", "uninner"))
        yield from inner.do(tool("api", "fails"))

    def workflow(step: Flow) -> Flow:
        trip = saga(attempts=1)
        yield from trip.do(tool("api", "first"), undo=lambda _: tool("api", "unfirst"))
        yield from trip.do(step)

    error, trace = driven(workflow(broken()), fails(), errors)
    assert isinstance(error, Refused)
    assert trace == ["first", "begin", "unfirst"]
    error, trace = driven(workflow(broken()), fails("unfirst"), errors)
    assert isinstance(error, ToolError)
    assert isinstance(error.__cause__, Refused)
    assert str(error) == "Refused: no; not undone: api.unfirst failed: busy"
    error, trace = driven(workflow(nested()), fails("fails", "uninner", "unfirst"), errors)
    assert trace == ["first", "inner", "fails", "uninner", "unfirst"]
    assert (
        str(error)
        == "api.fails failed: busy; not undone: api.uninner failed: busy; not undone: api.unfirst failed: busy"
    )


@pytest.mark.parametrize(
    ("undo", "text"), [(None, "disk full"), (lambda _: tool("api", "una"), "ignored GeneratorExit")]
)
def test_a_finally_that_fails_at_a_pause_is_not_taken_for_a_failed_step(undo: Any, text: str) -> None:
    def untidy() -> Flow:
        try:
            return (yield tool("api", "b"))
        finally:
            raise OSError("disk full")

    def workflow() -> Flow:
        trip = saga()
        yield from trip.do(tool("api", "a"), undo=undo)
        yield from trip.do(untidy())

    flow = FlowExecutor(MemoryStorage(), call=echo)
    flow.execute_sync(workflow, "u")
    with pytest.raises((OSError, RuntimeError), match=text) as caught:
        flow.execute_sync(workflow, "u")
    assert "raised while the workflow was left at a pause" in caught.value.__notes__[0]
    assert [step["asked"] for step in flow.history_sync("u")] == ["tool api.a", "tool api.b"]


@MODES
def test_giving_up_undoes_once_and_says_what_failed(errors: Errors) -> None:
    def gives_up() -> Flow:
        trip = saga(attempts=1)
        try:
            for name in "abc":
                yield from trip.do(tool("api", name), undo=lambda result: tool("api", f"un{result}"))
            raise Refused("too expensive")
        except Exception:
            yield from trip.undo()
            yield from trip.undo()
            raise

    error, trace = driven(gives_up(), fails(), errors)
    assert isinstance(error, Refused)
    assert trace == ["a", "b", "c", "unc", "unb", "una"]
    error, trace = driven(gives_up(), fails("b"), errors)
    assert (str(error), trace) == ("api.b failed: busy", ["a", "b", "una"])
    error, trace = driven(gives_up(), fails("unc", "una"), errors)
    assert isinstance(error, ToolError)
    assert trace == ["a", "b", "c", "unc", "unb", "una"]
    assert str(error) == (
        "not everything could be undone; not undone: api.unc failed: busy; not undone: api.una failed: busy"
    )
    assert isinstance(error.__context__, Refused)
    assert crash_points(gives_up, call=lambda category, name, input: name) > 40


def test_a_saga_begins_anew_after_it_was_undone() -> None:
    def tries_twice() -> Flow:
        trip = saga()
        try:
            yield from trip.do(tool("api", "a"), undo=lambda _: tool("api", "una"))
            yield from trip.do(tool("api", "b"))
        except ToolError:
            yield from trip.do(tool("api", "c"), undo=lambda _: tool("api", "unc"))
            yield from trip.undo()

    assert driven(tries_twice(), fails("b")) == (None, ["a", "b", "una", "c", "unc"])


@pytest.mark.parametrize("wrong", [None, 5, tool, [tool("api", "x")], [], version(), {"__tool": ["x"]}])
def test_a_saga_refuses_what_is_no_step_and_can_go_on_when_mended(wrong: Any) -> None:
    def step() -> Flow:
        trip = saga()
        yield from trip.do(tool("api", "a"), undo=lambda _: tool("api", "una"))
        yield from trip.do(wrong)

    def undo() -> Flow:
        trip = saga()
        yield from trip.do(tool("api", "a"), undo=lambda _: tool("api", "una"))
        yield from trip.do(tool("api", "b"), undo=lambda _: wrong)

    error, trace = driven(step(), fails())
    assert (type(error), trace) == (TypeError, ["a"])
    assert str(error) == f"do() got a {type(wrong).__name__}: give what tool(...) returns, or a generator"
    error, trace = driven(undo(), fails())
    assert (type(error), trace) == (TypeError, ["a", "b"])
    assert str(error) == f"undo= of do() got a {type(wrong).__name__}: give what tool(...) returns, or a generator"


def test_a_saga_refuses_a_compensation_that_is_no_function() -> None:
    wrong: Any = tool("api", "una")
    error, trace = driven(saga().do(tool("api", "a"), undo=wrong), fails())
    assert (type(error), trace) == (TypeError, [])
    assert str(error) == "do(..., undo=) got a Request: give a function, `lambda result: tool(...)`"
