"""The handler as an ASGI application."""

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from ..executor import FlowExecutor
from .callback import LIMIT, Callback
from .handler import ACCEPTED, Handler, Request, Response, drive
from .signing import Secret
from .threads import in_thread

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]
"""An ASGI application: a coroutine function, which is what servers look for."""

_PATIENCE = 10.0
"""Seconds that a thread waits until the event loop has sent something: one that is about to end may never do it."""


def asgi_app(flow: FlowExecutor, secret: Secret | None = None, *, insecure: bool = False, threads: bool = False) -> App:
    """Return an ASGI application that answers ``POST .../resume/{id}``, to be mounted anywhere.

    It answers 202 as soon as the lease is taken, and a client that hangs up never cancels the step.  It needs no
    lifespan.

    Args:
        flow: As for `Handler`.
        secret: As for `Handler`.
        insecure: As for `Handler`.
        threads: Whether each invocation runs in a thread of its own, for an executor whose hooks and storage are not
            ``async`` and would hold up the event loop.

    Raises:
        NotSupported, ValueError: As from `Handler`.
    """
    handler, work = Handler(flow, secret, insecure=insecure), _work_in_thread if threads else _work
    left = set[Any]()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif (body := await _body(receive)) is not None:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            path = scope.get("root_path", "") + scope["path"]  # some mounts leave their prefix in both
            callback = handler.check(Request(scope["method"], path, headers, body))
            if isinstance(callback, Response):
                await _start(send, callback, False)
            else:
                await _to_the_end(work(handler, callback, send), left)

    return app


async def _body(receive: Receive) -> bytes | None:
    """Return a request's body, or as much of it as shows that it is too long; ``None`` if the client has gone."""
    body, more = b"", True
    while more and len(body) <= LIMIT:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _start(send: Send, response: Response, more: bool) -> None:
    headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
    with suppress(Exception):
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await _send(send, response.body, more)


async def _send(send: Send, body: bytes, more: bool) -> None:
    with suppress(Exception):  # the client has hung up, which is none of the execution's business
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _work(handler: Handler, callback: Callback, send: Send) -> None:
    """Take the lease, answer, and run."""
    turn = await handler.take(callback)
    if isinstance(turn, Response):
        return await _start(send, turn, False)
    try:
        await _start(send, ACCEPTED, True)
    except BaseException as error:  # this server stops
        await turn.invocation.release(error)
        raise
    return await _send(send, (await handler.run(turn)).body, False)


async def _work_in_thread(handler: Handler, callback: Callback, send: Send) -> None:
    """Do the same in one thread, which goes on whatever becomes of the event loop."""
    from asyncio import get_running_loop, run_coroutine_threadsafe  # noqa: PLC0415 - as below

    loop = get_running_loop()

    async def send_on_loop(message: Message) -> None:
        await send(message)

    async def send_by_loop(message: Message) -> None:
        if loop.is_running():
            run_coroutine_threadsafe(send_on_loop(message), loop).result(_PATIENCE)

    await in_thread(lambda: drive(_work(handler, callback, send_by_loop)))


async def _to_the_end(work: Coroutine[Any, Any, None], left: set[Any]) -> None:
    """Await `work`, even when this is cancelled, as some frameworks do when the client hangs up.

    Who cancels a second time does so at every turn of the event loop (anyio), or is about to leave (a server that
    stops): then `work` goes on alone.
    """
    from asyncio import CancelledError, create_task, shield  # noqa: PLC0415 - whoever gets here has imported it

    task = create_task(work)
    left.add(task)  # the loop itself would forget it
    task.add_done_callback(left.discard)
    try:
        await shield(task)
    except CancelledError:
        await shield(task)
        raise


async def _live(receive: Receive, send: Send) -> None:
    kind = ""
    while kind != "lifespan.shutdown":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
