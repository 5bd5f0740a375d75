"""The handler as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..executor import FlowExecutor
from .callback import LIMIT, Callback
from .handler import Handler, Request, Response, accepted, drive
from .signing import Secret
from .threads import in_thread

if TYPE_CHECKING:
    from asyncio import Task

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class App(Protocol):
    """An ASGI application: a coroutine function, which is what servers look for."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Coroutine[Any, Any, None]:
        """Serve a connection."""
        ...


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
    handler = Handler(flow, secret, insecure=insecure)
    left: set[Task[None]] = set()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif (body := await _body(receive)) is not None:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            path = scope.get("root_path", "") + scope["path"]  # some mounts leave their prefix in both
            request = Request(scope["method"], path, headers, body)
            await _to_the_end(_answer(handler, request, send, threads), left)

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


async def _answer(handler: Handler, request: Request, send: Send, threads: bool) -> None:
    callback = handler.check(request)
    if isinstance(callback, Response):
        await _start(send, callback, False)
    elif threads:
        await _answer_from_thread(handler, callback, send)
    else:
        turn = await handler.take(callback)
        if isinstance(turn, Response):
            return await _start(send, turn, False)
        try:
            await _start(send, accepted(), True)
        except BaseException as error:  # this server stops
            await turn.invocation.release(error)
            raise
        await _send(send, (await handler.run(turn)).body, False)
    return None


async def _answer_from_thread(handler: Handler, callback: Callback, send: Send) -> None:
    """Take the lease and run in one thread, which goes on whatever becomes of the event loop."""
    from asyncio import FIRST_COMPLETED, create_task, get_running_loop, wait  # noqa: PLC0415 - as above

    loop = get_running_loop()
    taken = loop.create_future()

    def serve() -> Response:
        turn = drive(handler.take(callback))
        if isinstance(turn, Response):
            return turn
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(taken.set_result, None)
        return drive(handler.run(turn))

    work = create_task(in_thread(serve))
    await wait({work, taken}, return_when=FIRST_COMPLETED)
    if taken.done():
        await _start(send, accepted(), True)
        await _send(send, (await work).body, False)
    else:
        await _start(send, await work, False)


async def _to_the_end(work: Coroutine[Any, Any, None], left: set[Task[None]]) -> None:
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
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
