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

from sequential import FlowExecutor, NotSupported, StorageError, tool
from sequential.http import Handler, HttpResume, Request, Response
from sequential.http.callback import Callback
from sequential.http.handler import Turn
from sequential.storage import Record, Result
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


CALLBACK = Callback("exec-1", None, None, 1)
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
        for value in (-1, 0.5, "1", True, [1], 1 << 31, "", [], False, 0.0)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "reason"), REFUSED)
def test_what_is_refused_is_refused_before_the_store_is_asked(request_: Request, status: int, reason: str) -> None:
    world = World()
    world.start()
    asked = world.storage.asked
    response = Handler(world.flow, SECRET).handle_sync(request_)
    assert response.status == status
    assert reason in said(response)["error"]
    assert (world.storage.asked, world.called, world.record().token) == (asked, [], 1)
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


def test_what_is_cancelled_is_stale_and_what_is_gone_is_unknown() -> None:
    world = World(retain=False)
    handler, record = Handler(world.flow, SECRET), world.start()
    world.flow.cancel_sync("exec-1")
    assert said(handler.handle_sync(request_for(callback_for(record))))["status"] == "stale"
    world.flow.delete_sync("exec-1")
    response = handler.handle_sync(request_for(callback_for(record)))
    assert response.status == 404
    assert "never started, or has finished" in said(response)["error"]


def test_while_another_has_the_lease_it_says_when_to_ask_again() -> None:
    world = World(lease=90.0)
    handler, record = Handler(world.flow, SECRET), world.start()
    inside: list[Response] = []
    world.during = lambda: inside.append(handler.handle_sync(request_for(callback_for(record))))
    assert handler.handle_sync(request_for(callback_for(record))).status == 200
    assert (inside[0].status, world.called) == (409, [0])
    assert 80 <= int(inside[0].headers["retry-after"]) <= 90


def test_a_lease_without_an_end_is_asked_about_again_too() -> None:
    world = World(lease=math.inf)
    handler, record = Handler(world.flow, SECRET), world.start()
    inside: list[Response] = []
    world.during = lambda: inside.append(handler.handle_sync(request_for(callback_for(record))))
    handler.handle_sync(request_for(callback_for(record)))
    assert (inside[0].status, inside[0].headers["retry-after"]) == (409, "3600")


def test_a_lease_that_was_lost_meanwhile_is_as_if_another_had_it() -> None:
    world = World()
    handler, record = Handler(world.flow, SECRET), world.start()
    world.during = lambda: world.flow.delete_sync("exec-1")
    response = handler.handle_sync(request_for(callback_for(record)))
    assert (response.status, response.headers["retry-after"]) == (409, "30")


class Away(MemoryStorage):
    """A store that cannot be reached from some moment on."""

    error: Exception | None = None

    def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        if self.error:
            raise self.error
        return super().claim(wanted, now, create)

    def commit(self, record: Record, token: int, result: Result | None = None, **signal: str | None) -> None:
        if self.error:
            raise self.error
        super().commit(record, token, result, **signal)


@pytest.mark.parametrize("error", [StorageError("the server is away"), ConnectionResetError("a user's own store")])
def test_when_the_store_is_away_nothing_is_lost(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    storage = Away()
    flow = FlowExecutor(storage, call=lambda *_: None, workflows=[three])
    flow.start_sync(three, id="exec-1")
    storage.error = error
    response = Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1")))
    assert (response.status, response.headers["retry-after"]) == (503, "30")
    assert said(response) == {"error": "the store is away; nothing is lost"}
    assert caplog.messages == ["the callback for execution 'exec-1' failed"]
    storage.error = None
    assert Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1"))).status == 200


def test_when_the_store_goes_away_in_between() -> None:
    storage = Away()

    def call(*_: Any) -> None:
        storage.error = StorageError("the server is away")

    flow = FlowExecutor(storage, call=call, workflows=[three])
    flow.start_sync(three, id="exec-1")
    assert Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1"))).status == 503


def test_an_error_of_the_workflow_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def failing(input: Any) -> Generator[Any, Any, Any]:
        yield tool("api", "first")
        raise RuntimeError("the password is 1234")

    flow = FlowExecutor(MemoryStorage(), call=lambda *_: None, workflows=[failing], budget=math.inf)
    flow.start_sync(failing, id="exec-1")
    response = Handler(flow, SECRET).handle_sync(request_for(Callback("exec-1")))
    assert response.status == 500
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
