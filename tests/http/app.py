"""The applications that the web servers of these tests load, told by their environment what to do.

``SEQUENTIAL_STORE``, ``SEQUENTIAL_SECRET``: as for ``python -m sequential``
``SEQUENTIAL_URL``: where to ring; of several URLs one that listens, as a load balancer would have it
``TEST_DIRECTORY``: where to note what happens, and to find what holds a step up
``TEST_LEASE``, ``TEST_CLOCK``, ``TEST_HOP_LIMIT``: as for `FlowExecutor`, `Clock` and `HttpResume`
``TEST_PAUSE``: seconds that a tool takes
``TEST_STRIKE``: ``before SIGKILL``, ``after SIGSTOP``: the signal that it sends itself, before or after it rings
``TEST_GUARD``: how many self-calls in a row the platform allows
``TEST_REFUSAL``: the status with which it refuses another
``TEST_SWEEP``: a URL that a sweep in the background rings
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, suppress
from contextvars import ContextVar
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sequential import Event, FlowExecutor, current, stores
from sequential.blocking import Maybe
from sequential.http import HttpResume, asgi_app, wsgi_app
from sequential.http.asgi import App, Message, Receive, Send
from sequential.http.wsgi import Environ, StartResponse
from sequential.sweeper import sweep_forever
from tests.servers.processes import _die_with_parent
from tests.servers.web import Clock
from tests.worker import workflow

_SETTINGS = os.environ
_DIRECTORY = Path(_SETTINGS["TEST_DIRECTORY"])
_STORE = _SETTINGS["SEQUENTIAL_STORE"]
_SECRET = _SETTINGS["SEQUENTIAL_SECRET"]
_CLOCK = Clock(*map(float, _SETTINGS.get("TEST_CLOCK", "").split()))
_GUARD = int(_SETTINGS.get("TEST_GUARD", "0"))
_LIMIT = int(_SETTINGS.get("TEST_HOP_LIMIT", "0")) or None
_WHEN, _, _BLOW = _SETTINGS.get("TEST_STRIKE", "").partition(" ")
_PAUSE = 0.005
_PAUSES = round(float(_SETTINGS.get("TEST_PAUSE", "0")) / _PAUSE)
_LONGEST = 60.0  # seconds that a step is held up
_LOG = os.open(_DIRECTORY / "notes", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
_NOTED = frozenset({"rang", "ring failed", "not rung", "fenced", "stuck"})
_HEADER = "x-self-calls"

_self_calls: ContextVar[int] = ContextVar("self_calls")

_die_with_parent(signal.SIGKILL)  # as a server's worker


def note(what: str, id: str = "", step: int = 0, status: int | None = None) -> None:
    line = json.dumps({"what": what, "id": id, "step": step, "status": status, "pid": os.getpid()})
    os.write(_LOG, f"{line}\n".encode())  # in one piece, whoever else is writing


def note_event(event: Event) -> None:
    if event.kind in _NOTED:
        note(event.kind, event.id, event.step, getattr(event.error, "status", None))


def note_callback(message_id: str | None) -> None:
    if message_id is not None:
        id, _, step = message_id.rpartition(":")
        note("asked", id, int(step) if step.isdecimal() else -1)  # strangers write what they like


def while_called() -> Iterator[None]:
    """Note that a tool is called, and yield for as long as the call lasts."""
    step, give_up = current(), time.monotonic() + _LONGEST
    note("called", step.id, step.step)
    for _ in range(_PAUSES):
        yield
    while (_DIRECTORY / f"hold {step.id} {step.step}").exists():
        assert time.monotonic() < give_up
        yield


def call(category: str, name: str, input: dict[str, int]) -> dict[str, int]:
    for _ in while_called():
        time.sleep(_PAUSE)
    return {"square": input["number"] ** 2}


async def call_async(category: str, name: str, input: dict[str, int]) -> dict[str, int]:
    for _ in while_called():
        await asyncio.sleep(_PAUSE)
    return {"square": input["number"] ** 2}


def post(url: str, headers: dict[str, str], body: bytes) -> int:
    """Send a request from a platform that counts how often in a row a function calls itself."""
    parts = urlsplit(url)
    with closing(HTTPConnection(parts.netloc, timeout=10)) as connection:
        connection.request("POST", parts.path, body, {**headers, _HEADER: str(_self_calls.get() + 1)})
        return connection.getresponse().status


_rings = {
    url: HttpResume(url, _SECRET, hop_limit=_LIMIT, post=post if _GUARD else None)
    for url in _SETTINGS["SEQUENTIAL_URL"].split()
}


def listens(url: str) -> bool:
    parts = urlsplit(url)
    with suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1):
        return True
    return False


def resume(id: str) -> Maybe[int | bool | None]:
    strike("before", id)
    *others, url = random.sample(list(_rings), len(_rings))
    if others and not listens(url):
        url = others[0]
    answer = _rings[url](id)
    if isinstance(answer, Awaitable):
        return resume_later(id, answer)
    strike("after", id)
    return answer


async def resume_later(id: str, ringing: Awaitable[int | bool | None]) -> int | bool | None:
    answer = await ringing
    strike("after", id)
    return answer


def strike(when: str, id: str) -> None:
    if when == _WHEN:
        note("struck", id)
        os.kill(os.getpid(), signal.Signals[_BLOW])


def executor(call: Callable[..., Any]) -> FlowExecutor:
    # Not to wait for the disk loses nothing when a process is killed.
    options = {"synchronous": "NORMAL"} if _STORE.startswith("sqlite") else {}
    return FlowExecutor(
        stores.open(_STORE, **options),
        call=call,
        resume=resume,
        workflows=[workflow],
        lease=float(_SETTINGS.get("TEST_LEASE", "60")),
        retain=True,
        observe=note_event,
        clock=_CLOCK.now,
    )


def on_platform(app: App) -> App:
    """What stands before an application: a guard against loops, and a framework without patience."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await sweep_while(app(scope, receive, send))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        _self_calls.set(int(headers.get(_HEADER, "0")))
        if _GUARD and _self_calls.get() > _GUARD:
            note("refused")
            await send({"type": "http.response.start", "status": int(_SETTINGS["TEST_REFUSAL"]), "headers": []})
            return await send({"type": "http.response.body"})
        note_callback(headers.get("webhook-id"))
        return await cancel_on_hang_up(app, scope, receive, send)

    return serve


async def sweep_while(lifespan: Any) -> None:
    url = _SETTINGS.get("TEST_SWEEP")
    late = FlowExecutor(stores.open(_STORE), resume=HttpResume(url, _SECRET)) if url else None
    sweeper = asyncio.create_task(sweep_forever(late, 0.05)) if late else None
    await lifespan
    if sweeper is not None:
        sweeper.cancel()


async def cancel_on_hang_up(app: App, scope: Message, receive: Receive, send: Send) -> None:
    """Serve a request as Quart and Django do: a client that hangs up has all cancelled that is done for it."""
    messages = asyncio.Queue[Message]()

    async def listen() -> None:
        kind = ""
        while kind != "http.disconnect":
            messages.put_nowait(message := await receive())
            kind = message["type"]

    work, listener = asyncio.create_task(app(scope, messages.get, send)), asyncio.create_task(listen())
    await asyncio.wait({work, listener}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        note("hung up", scope["path"].rpartition("/")[2])
        work.cancel()
    listener.cancel()
    await asyncio.gather(work, listener, return_exceptions=True)


def noting(app: Callable[[Environ, StartResponse], Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        note_callback(environ.get("HTTP_WEBHOOK_ID"))
        return app(environ, start_response)

    return serve


flow = executor(call)
awaiting = on_platform(asgi_app(executor(call_async), _SECRET))
threaded = on_platform(asgi_app(flow, _SECRET, threads=True))
blocking = noting(wsgi_app(flow, _SECRET))
