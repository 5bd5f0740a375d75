"""What the handler answers, and what it does before that."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Generator
from typing import Any

import pytest

from sequential import Damaged, FlowExecutor, NotSupported, StorageError, tool
from sequential.http import Handler, HttpResume, Request, Response
from sequential.http.callback import Callback
from sequential.http.handler import Turn
from sequential.record import Entry, Record
from sequential.stores.memory import MemoryStorage
from sequential.testing import FakeClock
from tests.http.support import OTHER_SECRET, SECRET, World, callback_for, mutated, request_for, stranger, three
from tests.support import AsyncJournal, PlainStorage


def said(response: Response) -> dict[str, str]:
    value: dict[str, str] = json.loads(response.body)
    return value


def test_a_callback_runs_one_step_and_the_last_one_ends_the_flow() -> None:
    world = World()
    handler, record = Handler(world.flow, SECRET), world.start()
    for step in range(3):
        response = handler.handle_sync(request_for(callback_for(world.record())))
        assert (response.status, said(response)) == (200, {"status": "paused", "id": "exec-1", "reason": "tool"})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["content-length"] == str(len(response.body))
        assert world.called == list(range(step + 1))
    response = handler.handle_sync(request_for(callback_for(world.record())))
    assert (response.status, said(response)) == (200, {"status": "finished", "id": "exec-1"})
    assert world.flow.execute_sync(three, "exec-1") == [0, 1, 4]
    assert world.record().run == record.run


def test_the_same_over_an_async_store_and_hooks() -> None:
    async def call(category: str, name: str, input: int) -> int:
        await asyncio.sleep(0)
        return input + 1

    async def run() -> Any:
        flow = FlowExecutor(AsyncJournal(MemoryStorage()), call=call, workflows=[three], retain=True)
        await flow.start(three, id="exec-1")
        handler = Handler(flow, SECRET)
        answers = [await handler.handle(request_for(Callback("exec-1"))) for _ in range(4)]
        assert [said(answer)["status"] for answer in answers] == ["paused"] * 3 + ["finished"]
        return await flow.execute(three, "exec-1")

    assert asyncio.run(run()) == [1, 2, 3]


@pytest.mark.parametrize(
    "path",
    [
        "/resume/exec-1", "/resume/exec-1/", "resume/exec-1", "/wf/resume/exec-1", "/prod/wf/resume/exec-1/",
        "/resume/resume/exec-1", "//resume/exec-1", "/a b/\n/resume/exec-1",
    ],
)  # fmt: skip
def test_the_route_is_a_suffix(path: str) -> None:
    world = World()
    response = Handler(world.flow, SECRET).handle_sync(request_for(callback_for(world.start()), path=path))
    assert (response.status, world.called) == (200, [0])


CALLBACK = Callback("exec-1", hop=1)
SIGNED = request_for(CALLBACK)
REFUSED: list[tuple[Request, int, str]] = [
    (SIGNED._replace(path=""), 404, "answers POST .../resume/{id} alone"),
    (SIGNED._replace(path="/resume/"), 404, "alone"),
    (SIGNED._replace(path="/resume/exec-1/more"), 404, "alone"),
    (SIGNED._replace(path="/presume/exec-1"), 404, "alone"),
    (SIGNED._replace(method="GET"), 405, "a callback is a POST"),
    (SIGNED._replace(method="DELETE"), 405, "a callback is a POST"),
    (request_for(CALLBACK, body=b" " * 4097), 413, "at most 4096 bytes"),
    (SIGNED._replace(headers={}), 401, "webhook-id is missing"),
    (SIGNED._replace(body=SIGNED.body + b" "), 401, "not one of this body by this secret"),
    (SIGNED._replace(headers={**SIGNED.headers, "webhook-signature": "v1"}), 401, "not one of this body"),
    (SIGNED._replace(headers={**SIGNED.headers, "webhook-signature": "garbage ,,, v1,%%% v1,"}), 401, "not one of this"),
    (SIGNED._replace(headers={**SIGNED.headers, "webhook-id": "exec-2:0"}), 401, "not one of this body"),
    (SIGNED._replace(headers={**SIGNED.headers, "webhook-timestamp": "soon"}), 401, "not a whole number"),
    (request_for(CALLBACK, OTHER_SECRET), 401, "by this secret"),
    (request_for(CALLBACK, at=1_000_000_000), 401, "300 are allowed"),
    (request_for(CALLBACK, path="/resume/exec-2"), 401, "for another execution"),
    (request_for(CALLBACK, path="/resume/exec-1%3A"), 401, "for another execution"),
    (request_for(Callback("..")), 400, "'..' cannot be an execution id"),
    (request_for(Callback("é")), 400, "'é' cannot be an execution id"),
    (request_for(CALLBACK, body=b"{"), 400, "not that of a callback"),
    (request_for(CALLBACK, body=b"\xff"), 400, "not that of a callback"),
    (request_for(CALLBACK, body=b"[" * 4000), 400, "not that of a callback"),
    (request_for(CALLBACK, body=b"[]"), 400, "a JSON object for execution 'exec-1'"),
    (request_for(CALLBACK, body=b'{"id": "exec-2"}'), 400, "a JSON object for execution 'exec-1'"),
    (request_for(CALLBACK, body=b'{"run": 1}'), 400, '"run" is not the nonce of a run'),
    (request_for(CALLBACK, body=b'{"run": "a\\u0000b"}'), 400, '"run" is not the nonce of a run'),
    *(
        (request_for(CALLBACK, body=json.dumps({name: value}).encode()), 400, "not whole numbers from 0 on")
        for name in ("step", "hop")
        for value in (-1, 0.5, "1", True, [1], 1 << 31, "", [], False, 0.0, None)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "reason"), REFUSED)
def test_what_is_refused_is_refused_before_the_store_is_asked(request_: Request, status: int, reason: str) -> None:
    world = World()
    record, asked = world.start(), world.storage.asked
    response = Handler(world.flow, SECRET).handle_sync(request_)
    assert response.status == status
    assert reason in said(response)["error"]
    assert (world.storage.asked, world.called, world.record()) == (asked, [], record)
    assert (response.headers.get("allow") == "POST") is (status == 405)


def test_a_secret_that_is_being_replaced_and_one_that_was() -> None:
    world = World()
    record = world.start()
    for known, status in (([SECRET, OTHER_SECRET], 200), ([OTHER_SECRET], 401)):
        response = Handler(world.flow, known).handle_sync(request_for(callback_for(record)))
        assert response.status == status
    assert world.called == [0]


def test_clocks_that_are_ten_minutes_apart_lose_nothing() -> None:
    world = World()
    record, clock = world.start(), FakeClock()
    handler = Handler(world.flow, SECRET, clock=clock)
    response = handler.handle_sync(request_for(callback_for(record), at=clock() + 600))
    assert (response.status, world.called, world.record()) == (401, [], record)
    assert "600 seconds ahead of this clock" in said(response)["error"]
    assert handler.handle_sync(request_for(callback_for(record), at=clock() + 299)).status == 200


def test_without_a_secret_it_says_so_or_does_not_start() -> None:
    world = World()
    record = world.start()
    wrong: list[dict[str, Any]] = [{}, {"secret": SECRET, "insecure": True}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"needs secret=.*or else insecure=True"):
            Handler(world.flow, **options)
    response = Handler(world.flow, insecure=True).handle_sync(Request("post", f"/resume/{record.id}", {}, b""))
    assert (response.status, world.called) == (200, [0])


def test_what_is_no_executor_on_a_built_in_store_is_refused_at_once() -> None:
    with pytest.raises(NotSupported, match="resume by id alone needs more than the five storage methods"):
        Handler(FlowExecutor(PlainStorage()), SECRET)
    with pytest.raises(TypeError, match="needs a FlowExecutor"):
        Handler(MemoryStorage(), SECRET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs workflows=, in which it finds them"):
        Handler(FlowExecutor(MemoryStorage()), SECRET)


def test_late_duplicates_are_stale_and_leave_no_trace() -> None:
    world = World()
    handler = Handler(world.flow, SECRET)
    first = callback_for(world.start())
    handler.handle_sync(request_for(first))
    second = world.record()
    response = handler.handle_sync(request_for(first))
    assert (response.status, said(response)) == (200, {"status": "stale", "id": "exec-1"})
    assert world.called == [0]
    assert world.record() == second  # not even its lease was taken, which would turn others away meanwhile
    while world.record().status != "finished":
        handler.handle_sync(request_for(callback_for(world.record())))
    assert said(handler.handle_sync(request_for(first)))["status"] == "stale"
    assert said(handler.handle_sync(request_for(callback_for(world.record()))))["status"] == "stale"
    assert world.called == [0, 1, 2]


def test_a_callback_for_an_earlier_execution_of_the_same_id_is_stale() -> None:
    world = World()
    old = callback_for(world.start())
    world.flow.delete_sync("exec-1")
    world.start()
    assert said(Handler(world.flow, SECRET).handle_sync(request_for(old)))["status"] == "stale"
    assert world.called == []


STALE, UNKNOWN = (
    (200, {"status": "stale", "id": "exec-1"}),
    (404, {"error": "there is no such execution: it was never started, or has finished"}),
)
STANDING: dict[str, tuple[int, dict[str, str]]] = {
    **dict.fromkeys(("failed", "diverged", "stuck", "finished", "cancelled"), STALE),
    **dict.fromkeys(("making", "absent"), UNKNOWN),
    **dict.fromkeys(("running", "sleeping", "waiting"), (200, {"status": "paused", "id": "exec-1", "reason": "tool"})),
}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("status", STANDING)
def test_what_it_answers_for_each_status(status: str, bare: bool) -> None:
    world = World()
    record = world.start()
    if status == "absent":
        world.flow.delete_sync("exec-1")
    else:
        world.put(status=status)
    response = Handler(world.flow, SECRET).handle_sync(
        request_for(Callback("exec-1") if bare else callback_for(record))
    )
    assert (response.status, said(response)) == STANDING[status]
    runs = status in {"running", "sleeping", "waiting"}
    assert world.called == [0] * runs
    if not runs and status != "absent":
        assert world.record() == record._replace(status=status, stamp="changed")


def test_what_is_being_cancelled_ends_so() -> None:
    world = World()
    handler, record = Handler(world.flow, SECRET), world.start()
    handler.handle_sync(request_for(callback_for(record)))
    world.flow.cancel_sync("exec-1")
    assert world.record().status == "cancelling"
    for status in ("cancelled", "stale"):
        response = handler.handle_sync(request_for(callback_for(world.record())))
        assert (response.status, said(response)) == (200, {"status": status, "id": "exec-1"})
    assert world.called == [0]


@pytest.mark.parametrize(("lease", "passed", "seconds"), [(90.0, 0, 135), (90.0, 100, 35), (math.inf, 0, 3600)])
def test_while_another_has_the_lease_it_says_when_that_will_count_as_over(
    lease: float, passed: float, seconds: int
) -> None:
    clock, inside = FakeClock(), list[Response]()
    world = World(lease=lease, clock=clock)
    handler, record = Handler(world.flow, SECRET), world.start()

    def ring_again() -> None:
        clock.advance(passed)
        inside.append(handler.handle_sync(request_for(callback_for(record))))

    world.during = ring_again
    assert handler.handle_sync(request_for(callback_for(record))).status == 200
    assert [(each.status, each.headers["retry-after"]) for each in inside] == [(409, str(seconds))]
    assert world.called == [0]


def test_a_lease_that_was_lost_meanwhile_is_as_if_another_had_it() -> None:
    world = World()
    handler, record = Handler(world.flow, SECRET), world.start()
    world.during = lambda: world.flow.delete_sync("exec-1")
    response = handler.handle_sync(request_for(callback_for(record)))
    assert (response.status, response.headers["retry-after"]) == (409, "30")


class Away(MemoryStorage):
    """A store that cannot be reached from some moment on."""

    error: Exception | None = None

    def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        if self.error:
            raise self.error
        return super().read(id, start, stop)

    def write(self, *arguments: Any, **options: Any) -> bool:
        if self.error:
            raise self.error
        return super().write(*arguments, **options)


AWAY = (503, {"error": "the store is away; nothing is lost"}, "30")
FAILED = (500, {"error": "the execution has failed and keeps its state; the reason is in this service's log"}, None)


@pytest.mark.parametrize(
    ("error", "at_first", "later"),
    [
        (StorageError("the server is away"), AWAY, AWAY),
        (ConnectionResetError("a user's own store"), AWAY, FAILED),
        (Damaged("exec-1", None), FAILED, FAILED),
    ],
)
@pytest.mark.parametrize("in_between", [False, True])
def test_when_the_store_is_away_nothing_is_lost(
    error: Exception, at_first: Any, later: Any, in_between: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage, clock = Away(), FakeClock()

    def call(*_: Any) -> None:
        storage.error = error if in_between else None

    flow = FlowExecutor(storage, call=call, workflows=[three], clock=clock)
    flow.start_sync(three, "exec-1")
    storage.error = None if in_between else error
    response = Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1")))
    found = response.status, said(response), response.headers.get("retry-after")
    assert found == (later if in_between else at_first)
    assert caplog.messages == ["the callback for execution 'exec-1' failed"]
    storage.error, in_between = None, False
    clock.advance(1000)  # beyond the lease, which could not be given back
    assert Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1"))).status == 200


def test_an_error_of_the_workflow_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def failing(input: Any) -> Generator[Any, Any, Any]:
        yield tool("api", "first")
        raise RuntimeError("the password is 1234")

    flow = FlowExecutor(MemoryStorage(), call=lambda *_: None, workflows=[failing], budget=math.inf)
    flow.start_sync(failing, id="exec-1")
    handler = Handler(flow, SECRET)
    response = handler.handle_sync(request_for(Callback("exec-1")))
    assert response.status == 500
    assert said(handler.handle_sync(request_for(Callback("exec-1"))))["status"] == "stale"
    assert "keeps its state" in said(response)["error"]
    assert b"1234" not in response.body
    status = flow.status_sync("exec-1")
    assert status is not None
    assert (status.status, status.step) == ("failed", 1)
    (logged,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], RuntimeError)


def test_a_workflow_that_is_not_deployed_here_is_an_error_of_this_service(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    record = world.start()

    def another() -> Generator[Any, Any, Any]:
        yield tool("api", "first")

    other = FlowExecutor(world.storage, workflows=[another])
    assert Handler(other, SECRET).handle_sync(request_for(callback_for(record))).status == 500
    assert Handler(world.flow, SECRET).handle_sync(request_for(callback_for(record))).status == 200


def test_the_lease_is_there_before_anything_runs_and_the_answer_can_come_in_between() -> None:
    world = World()
    handler, record = Handler(world.flow, SECRET), world.start()

    async def run() -> None:
        turn = await handler.accept(request_for(callback_for(record)))
        assert isinstance(turn, Turn)
        assert world.called == []
        busy = await handler.accept(request_for(callback_for(record)))
        assert isinstance(busy, Response)
        assert busy.status == 409
        assert (await handler.run(turn)).status == 200
        assert world.called == [0]

    asyncio.run(run())


def test_an_invocation_ends_before_the_platform_ends_it() -> None:
    clock = FakeClock()
    world = World(budget=math.inf, clock=clock)
    world.during = lambda: clock.advance(60)
    request = request_for(callback_for(world.start()), at=clock())._replace(deadline=clock() + 100)
    response = Handler(world.flow, SECRET, clock=clock).handle_sync(request)
    assert said(response) == {"status": "paused", "id": "exec-1", "reason": "budget"}
    assert world.called == [0, 1]


def test_self_calls_are_counted_from_one_invocation_to_the_next() -> None:
    posted: list[tuple[str, dict[str, str], bytes]] = []

    def post(*request: Any) -> int:
        posted.append(request)
        return 202

    resume = HttpResume("https://example.org/flows/", SECRET, post=post, hop_limit=2)
    told: list[str] = []
    world = World(resume=resume, observe=lambda event: told.append(event.kind))
    handler = Handler(world.flow, SECRET)

    def deliver() -> None:
        url, headers, body = posted[-1]
        assert (
            handler.handle_sync(Request("POST", url.removeprefix("https://example.org"), headers, body)).status == 200
        )

    world.start()
    deliver()
    assert [json.loads(body)["hop"] for *_, body in posted] == [1, 2]
    told.clear()
    deliver()
    assert len(posted) == 2
    assert told[-1] == "not rung"
    assert resume("exec-1") == 202  # whoever rings outside of a callback begins a new row
    assert [json.loads(body)["hop"] for *_, body in posted] == [1, 2, 1]


def test_ten_thousand_requests_of_strangers_reach_nothing() -> None:
    world = World()
    record = world.start()
    asked, handler = world.storage.asked, Handler(world.flow, SECRET)
    chance = random.Random(7)
    seen: set[int] = set()
    for _ in range(10_000):
        request = stranger(chance, request_for(callback_for(record)))
        response = handler.handle_sync(request)
        seen.add(response.status)
        assert "error" in said(response)
    assert seen == {401, 404, 405, 413}
    assert (world.storage.asked, world.called, world.record()) == (asked, [], record)


def test_five_thousand_requests_of_who_knows_the_secret_are_never_an_error_of_ours() -> None:
    world = World()
    world.start()
    handler, chance = Handler(world.flow, SECRET), random.Random(8)
    seen: set[int] = set()
    for _ in range(5_000):
        body = mutated(chance, callback_for(world.record()).encode())
        request = request_for(Callback(chance.choice(["exec-1", "exec-2", ".", "é/", ""])), body=body)
        seen.add(handler.handle_sync(request).status)
    assert seen == {200, 400, 401, 404}
