"""The ASGI application apart from servers: how it reads, answers, and holds on to what it has begun."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable
from time import process_time
from typing import Any

import anyio
import pytest

from sequential import FlowExecutor
from sequential.http import Request, asgi_app
from sequential.http.asgi import App, Message
from tests.http.support import SECRET, World, callback_for, request_for, three
from tests.servers.processes import until


def http(request: Request, **more: Any) -> Message:
    headers = [(name.title().encode(), value.encode()) for name, value in request.headers.items()]
    return {"type": "http", "method": request.method, "path": request.path, "headers": headers, **more}


async def serve(
    app: App, scope: Message, messages: Iterable[Message], refuse: Callable[[Message], bool] = lambda _: False
) -> list[Message]:
    """Have an application answer; nothing comes behind the messages."""
    sent: list[Message] = []
    left = iter(messages)

    async def receive() -> Message:
        for message in left:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if refuse(message):
            raise OSError("the client has gone")
        sent.append(message)

    await app(scope, receive, send)
    return sent


def chunks(body: bytes, size: int) -> list[Message]:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]


@pytest.mark.parametrize("threads", [False, True])
def test_it_answers_as_soon_as_the_lease_is_taken(threads: bool) -> None:
    world = World()
    request = request_for(callback_for(world.start()))
    told: list[tuple[str, int]] = []
    begun = threading.Event()
    if threads:
        world.during = lambda: begun.wait(20)

    async def receive() -> Message:
        return {"type": "http.request", "body": request.body}

    async def send(message: Message) -> None:
        told.append((message["type"], world.record().step))
        if message.get("more_body"):
            begun.set()

    asyncio.run(asgi_app(world.flow, SECRET, threads=threads)(http(request), receive, send))
    assert told == [("http.response.start", 0), ("http.response.body", 0), ("http.response.body", 1)]


def test_a_body_may_come_in_pieces() -> None:
    world = World()
    request = request_for(callback_for(world.start()))
    sent = asyncio.run(serve(asgi_app(world.flow, SECRET), http(request), chunks(request.body, 7)))
    assert sent[0]["status"] == 202
    assert (b"content-type", b"application/json") in sent[0]["headers"]
    assert json.loads(b"".join(message["body"] for message in sent[1:])) == {
        "status": "paused", "id": "exec-1", "reason": "tool",
    }  # fmt: skip
    assert [message["more_body"] for message in sent[1:]] == [True, False]


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    world = World()
    request = request_for(callback_for(world.start()))

    def endless() -> Iterable[Message]:
        for number in range(1000):
            read.append(number)
            yield {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    read: list[int] = []
    sent = asyncio.run(serve(asgi_app(world.flow, SECRET), http(request), endless()))
    assert (sent[0]["status"], len(read)) == (413, 5)


def test_a_client_that_goes_before_its_request_is_there_asks_for_nothing() -> None:
    world = World()
    request = request_for(callback_for(world.start()))
    messages = [*chunks(request.body, 7)[:2], {"type": "http.disconnect"}]
    assert asyncio.run(serve(asgi_app(world.flow, SECRET), http(request), messages)) == []
    assert world.called == []


def test_a_client_that_cannot_be_answered_keeps_nothing_from_being_done() -> None:
    world = World()
    request = request_for(callback_for(world.start()))
    sent = asyncio.run(serve(asgi_app(world.flow, SECRET), http(request), chunks(request.body, 999), lambda _: True))
    assert (sent, world.called, world.record().step) == ([], [0], 1)


def test_the_path_that_an_app_is_mounted_under_counts() -> None:
    world = World()
    request = request_for(callback_for(world.start()), path="/exec-1")
    scope = http(request, root_path="/flows/resume")
    assert asyncio.run(serve(asgi_app(world.flow, SECRET), scope, chunks(request.body, 999)))[0]["status"] == 202


def waiting_flow(seconds: float) -> tuple[FlowExecutor, World]:
    async def call(category: str, name: str, input: int) -> int:
        world.during()
        await asyncio.sleep(seconds)
        world.called.append(input)
        return input

    world = World(call=call)
    return world.flow, world


def test_who_cancels_again_and_again_neither_cancels_the_step_nor_keeps_the_loop_busy() -> None:
    flow, world = waiting_flow(0.3)

    async def run() -> float:
        await flow.start(three, id="exec-1")
        request = request_for(callback_for(world.record()))
        began = process_time()
        with anyio.move_on_after(0.02):
            await serve(asgi_app(flow, SECRET), http(request), chunks(request.body, 999))
        async with asyncio.timeout(20):
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        return process_time() - began

    used = asyncio.run(run())
    assert world.called == [0]
    assert used < 0.15  # of the 0.3 seconds that it took


def test_who_cancels_once_waits_until_the_step_is_done() -> None:
    flow, world = waiting_flow(0.05)

    async def run() -> None:
        await flow.start(three, id="exec-1")
        request = request_for(callback_for(world.record()))
        begun = asyncio.Event()
        world.during = begun.set
        view = asyncio.create_task(serve(asgi_app(flow, SECRET), http(request), chunks(request.body, 999)))
        await begun.wait()
        view.cancel()
        with pytest.raises(asyncio.CancelledError):
            await view
        assert world.called == [0]

    asyncio.run(run())


def test_a_server_that_stops_gives_the_lease_back() -> None:
    flow, world = waiting_flow(60)

    async def run() -> None:
        await flow.start(three, id="exec-1")
        request = request_for(callback_for(world.record()))
        begun = asyncio.Event()

        async def send(message: Message) -> None:
            begun.set()

        async def receive() -> Message:
            return {"type": "http.request", "body": request.body}

        serving = asyncio.create_task(asgi_app(flow, SECRET)(http(request), receive, send))
        await begun.wait()
        assert world.lease()
        assert not serving.done()

    asyncio.run(run())  # cancels what is left
    assert (world.lease(), world.called) == (0.0, [])


def test_a_server_that_stops_before_the_answer_gives_the_lease_back() -> None:
    flow, world = waiting_flow(0)

    async def run() -> None:
        await flow.start(three, id="exec-1")
        request = request_for(callback_for(world.record()))

        async def receive() -> Message:
            return {"type": "http.request", "body": request.body}

        async def send(message: Message) -> None:
            assert world.lease()
            raise KeyboardInterrupt

        await asgi_app(flow, SECRET)(http(request), receive, send)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())
    assert (world.lease(), world.called) == (0.0, [])


def test_a_step_in_a_thread_is_done_though_its_server_stops() -> None:
    world, begun, stopped = World(), threading.Event(), threading.Event()

    def during() -> None:
        begun.set()
        stopped.wait(20)

    async def run() -> None:
        world.during = during
        request = request_for(callback_for(world.start()))
        app = asgi_app(world.flow, SECRET, threads=True)
        serving = asyncio.create_task(serve(app, http(request), chunks(request.body, 999)))
        await asyncio.to_thread(begun.wait, 20)
        assert not serving.done()

    asyncio.run(run())
    stopped.set()
    until(lambda: world.record().step == 1 and not world.lease(), "the step is done")


@pytest.mark.parametrize("threads", [False, True])
def test_what_is_not_run_is_answered_all_the_same(threads: bool) -> None:
    world = World()
    late = request_for(callback_for(world.start()))
    app = asgi_app(world.flow, SECRET, threads=threads)
    for status in (202, 200):
        sent = asyncio.run(serve(app, http(late), chunks(late.body, 999)))
        assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["status"] == "stale"
    assert asyncio.run(serve(app, http(late._replace(method="GET")), chunks(b"x", 1)))[0]["status"] == 405


def test_tools_of_one_loop_are_not_held_up_by_a_blocking_one() -> None:
    """With ``threads=True`` two invocations are under way at the same time."""
    both = threading.Barrier(2)
    world = World()
    world.during = lambda: both.wait(20)
    app = asgi_app(world.flow, SECRET, threads=True)

    async def run() -> None:
        requests = [request_for(callback_for(world.start(id))) for id in ("exec-1", "exec-2")]
        await asyncio.gather(*(serve(app, http(each), chunks(each.body, 999)) for each in requests))

    asyncio.run(run())
    assert world.called == [0, 0]


def test_lifespan_is_answered_and_web_sockets_are_closed() -> None:
    app = asgi_app(World().flow, SECRET)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = asyncio.run(serve(app, {"type": "lifespan"}, messages))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert asyncio.run(serve(app, {"type": "websocket"}, [])) == [{"type": "websocket.close"}]
