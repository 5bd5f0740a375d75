"""The WSGI application apart from servers: how it reads, answers, and does what it has begun."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from sequential.http import Request, wsgi_app
from tests.http.support import SECRET, World, callback_for, request_for


class Sent:
    """What a server was told to send."""

    def __init__(self) -> None:
        self.status, self.headers = "", dict[str, str]()

    def start(self, status: str, headers: list[tuple[str, str]], error: Any = None) -> Callable[[bytes], object]:
        self.status, self.headers = status, dict(headers)
        return lambda _: None


def environ_for(request: Request, **more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(
        {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()},
        REQUEST_METHOD=request.method,
        SCRIPT_NAME="",
        PATH_INFO=request.path,
        QUERY_STRING="",
        CONTENT_LENGTH=str(len(request.body)),
    )
    environ["wsgi.input"] = io.BytesIO(request.body)
    return {**environ, **more}


def close(answer: Iterable[bytes]) -> None:
    getattr(answer, "close", lambda: None)()


def test_it_answers_as_soon_as_the_lease_is_taken_and_keeps_to_the_standard() -> None:
    world, sent = World(), Sent()
    app = validator(wsgi_app(world.flow, SECRET))
    answer = iter(app(environ_for(request_for(callback_for(world.start()))), sent.start))
    begun = next(answer)
    assert (sent.status, begun, world.called) == ("202 Accepted", b" ", [])
    assert "content-length" not in sent.headers
    rest = next(answer)
    assert (world.called, list(answer)) == ([0], [])
    assert json.loads(begun + rest) == {"status": "paused", "id": "exec-1", "reason": "tool"}
    close(answer)
    assert world.called == [0]


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_client_that_goes_away_keeps_nothing_from_being_done(parts: int) -> None:
    """The server stops iterating, or has never begun to, and closes."""
    world = World()
    answer = wsgi_app(world.flow, SECRET)(environ_for(request_for(callback_for(world.start()))), Sent().start)
    iterator = iter(answer)
    for _ in range(parts):
        next(iterator)
    close(answer)
    close(answer)
    assert (world.called, world.record().step, world.lease()) == ([0], 1, 0.0)


def test_a_middleware_that_raises_gives_the_lease_back() -> None:
    def start(*_: Any) -> Any:
        raise LookupError("of the middleware's own")

    world = World()
    app, request = wsgi_app(world.flow, SECRET), request_for(callback_for(world.start()))
    for body in (request.body, b""):
        with pytest.raises(LookupError):
            app(environ_for(request._replace(body=body)), start)
        assert (world.lease(), world.called) == (0.0, [])


def test_a_head_has_no_body() -> None:
    world, sent = World(), Sent()
    request = request_for(callback_for(world.start()))._replace(method="HEAD")
    assert wsgi_app(world.flow, SECRET)(environ_for(request), sent.start) == []
    assert sent.status == "405 Method Not Allowed"


def test_what_is_refused_is_answered_at_once() -> None:
    world, sent = World(), Sent()
    app = validator(wsgi_app(world.flow, SECRET))
    answer = app(environ_for(request_for(callback_for(world.start()), body=b"x" * 5000)), sent.start)
    assert json.loads(b"".join(answer))["error"] == "a callback has at most 4096 bytes"
    assert sent.status == "413 Request Entity Too Large"
    close(answer)


@pytest.mark.parametrize(
    ("length", "terminated", "read"),
    [
        ("5", False, 5), ("4096", False, 4096), ("999999", False, 4097), ("9" * 5000, False, 4097), ("", True, 4097),
        ("", False, 0), (None, False, 0), ("-5", False, 0), ("abc", False, 0), ("٣", False, 0), ("abc", True, 4097),
    ],
)  # fmt: skip
def test_of_a_body_as_much_is_read_as_there_may_be(length: str | None, terminated: bool, read: int) -> None:
    class Input(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(size)
            return super().read(size)

    sizes: list[int | None] = []
    world, sent = World(), Sent()
    more = {"CONTENT_LENGTH": length, "wsgi.input_terminated": terminated, "wsgi.input": Input(b"x" * 9000)}
    b"".join(wsgi_app(world.flow, SECRET)(environ_for(request_for(callback_for(world.start())), **more), sent.start))
    assert sizes == [read]
    assert sent.status[:3] == ("413" if read > 4096 else "401")


def test_hooks_that_are_async_need_a_loop_and_answer_at_the_end() -> None:
    async def call(category: str, name: str, input: int) -> int:
        await asyncio.sleep(0)
        return input

    world, sent = World(call=call), Sent()
    with asyncio.Runner() as runner:
        app = wsgi_app(world.flow, SECRET, run=runner.run)
        answer = app(environ_for(request_for(callback_for(world.start()))), sent.start)
        assert sent.status == "200 OK"
        assert json.loads(b"".join(answer))["status"] == "paused"
    assert world.record().step == 1


def test_the_path_that_an_app_is_mounted_under_counts() -> None:
    world, sent = World(), Sent()
    environ = environ_for(request_for(callback_for(world.start())), SCRIPT_NAME="/flows/resume", PATH_INFO="/exec-1")
    close(wsgi_app(world.flow, SECRET)(environ, sent.start))
    assert (sent.status, world.called) == ("202 Accepted", [0])
