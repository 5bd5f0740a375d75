"""The route ``POST .../resume/{id}``, apart from any server: a request in, a response out.

An adapter gives what it received to `Handler.accept`, which checks it and takes the execution's lease, and what that
returns, to `Handler.run`.  In between, a server that can stream answers 202, so that whoever rang need not wait for the
step; the others have both done at once by `Handler.handle`.
"""

import re
from collections.abc import Callable, Coroutine, Mapping
from json import dumps, loads
from math import ceil, inf
from time import time
from typing import Any, NamedTuple, TypeAlias

from ..blocking import blocking, settle
from ..context import run_until
from ..errors import Damaged, Fenced, SequentialError, StorageError
from ..executor import FlowExecutor
from ..invocation import Invocation
from ..record import ENDED, PARKED, is_past, state_of
from ..setup import Paused
from .callback import LIMIT, Callback, hops, parse
from .signing import BadSignature, Secret, signer_for

_ROUTE = re.compile(r"(?:.*/)?resume/([^/]+)/?", re.DOTALL)
"""A suffix, because mounts differ in what of a path they leave."""

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end: ``asyncio.run``; or, where clients belong to one loop, in that one's thread
(``lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()``), or by the ``run`` of an ``asyncio.Runner`` if
there are no other threads.
"""

_HEADERS = {"content-type": "application/json", "cache-control": "no-store"}

_LONGEST_WAIT = 3600.0
"""Seconds after which to ask again at most: a lease may well be infinite."""

_RETRY = 30
"""Seconds after which to ask again when the store is away."""


class Request(NamedTuple):
    """A request, as an adapter received it."""

    method: str
    path: str
    """Decoded, with or without what the app is mounted under."""
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    """Of one that is too large, the first 4,097 bytes are enough."""
    deadline: float = inf
    """When the platform stops this invocation, in seconds since the epoch."""


class Response(NamedTuple):
    """What to answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Turn(NamedTuple):
    """An execution whose lease was taken for a callback."""

    callback: Callback
    invocation: Invocation
    deadline: float


class Handler:
    """Answers callbacks by running invocations.

    Args:
        flow: The executor, on a built-in store, with all its ``workflows=``.
        secret: What `HttpResume` signs with; several, while one is being replaced.
        insecure: Whether to answer without a secret, because something before this checks who rings.
        clock: Returns the time in seconds since the epoch.

    Raises:
        NotSupported: When the executor has a storage of five methods, which cannot resume by id.
        ValueError: When there is no secret, or it is not one, or the executor has no workflows.
    """

    def __init__(
        self,
        flow: FlowExecutor,
        secret: Secret | None = None,
        *,
        insecure: bool = False,
        clock: Callable[[], float] = time,
    ) -> None:
        if not isinstance(flow, FlowExecutor):
            raise TypeError(f"a handler needs a FlowExecutor, not a {type(flow).__name__}")  # it may be the secret
        # Better now than at the first callback.
        flow.setup.needs_journal("resume by id alone")
        if not flow.setup.workflows:
            raise ValueError("a handler's FlowExecutor needs workflows=, in which it finds them by their names")
        self._flow, self._clock = flow, clock
        self._signer = signer_for("a handler", secret, insecure)

    async def handle(self, request: Request) -> Response:
        """Answer a request, after running an invocation if it asks for one.

        Args:
            request: The request.
        """
        turn = await self.accept(request)
        return turn if isinstance(turn, Response) else await self.run(turn)

    async def accept(self, request: Request) -> Turn | Response:
        """Take the lease of the execution that a request asks for, or say why not.

        Args:
            request: The request; nothing is read from the store before its signature has held.
        """
        callback = self.check(request)
        return callback if isinstance(callback, Response) else await self.take(callback, request.deadline)

    async def take(self, callback: Callback, deadline: float = inf) -> Turn | Response:
        """Take the lease of the execution that a callback is for, or say why not.

        Args:
            callback: What was asked for, by whoever may.
            deadline: When the platform stops this invocation, in seconds since the epoch.
        """
        try:
            record, invocation = await self._flow.take(callback.id, callback.run, callback.step)
        except Exception as error:
            return self._failed(callback, error, asked_store=True)
        if invocation is not None:
            return Turn(callback, invocation, deadline)
        if record is None or record.status == "making":
            return _answer(404, error="there is no such execution: it was never started, or has finished")
        if record.status in ENDED | PARKED or is_past(record, callback.run, callback.step):
            return _answer(200, status="stale", id=record.id)
        return _busy(state_of(record).over - self._flow.setup.clock())

    async def run(self, turn: Turn) -> Response:
        """Run the invocation whose lease was taken; whatever comes of it is in the response.

        Args:
            turn: What `accept` has returned.
        """
        invocation, id, token = turn.invocation, turn.callback.id, hops.set(turn.callback.hop)
        try:
            with run_until(turn.deadline):
                value = await invocation.run(self._flow.setup.budget)
        except Exception as error:
            return self._failed(turn.callback, error)
        finally:
            hops.reset(token)
        if isinstance(value, Paused):
            return _answer(200, status="paused", id=id, reason=value.reason)
        return _answer(200, status="cancelled" if invocation.record.status == "cancelled" else "finished", id=id)

    handle_sync = blocking(handle)

    def check(self, request: Request) -> Callback | Response:
        """Return what a request asks for, or what to answer at once; the store is not looked at.

        Args:
            request: The request.
        """
        found = _ROUTE.fullmatch(request.path)
        if found is None:
            return _answer(404, error="this handler answers POST .../resume/{id} alone")
        if request.method.upper() != "POST":
            return _answer(405, {"allow": "POST"}, error="a callback is a POST")
        if len(request.body) > LIMIT:
            return _answer(413, error=f"a callback has at most {LIMIT} bytes")
        try:
            if self._signer is not None:
                signed = self._signer.check(request.headers, self._clock(), request.body)
                if signed.rpartition(":")[0] != found[1]:
                    raise BadSignature("the signature is for another execution")
            return parse(loads(request.body or b"{}"), found[1])
        except BadSignature as error:
            return _answer(401, error=str(error))
        except (ValueError, RecursionError) as error:
            return _answer(400, error=f"the body is not that of a callback: {error}")

    def _failed(self, callback: Callback, error: Exception, *, asked_store: bool = False) -> Response:
        """Say that something has gone wrong, to whoever rang in short and to the log at length."""
        if isinstance(error, Fenced):
            return _busy(_RETRY)
        import logging  # noqa: PLC0415 - slow to import, and seldom needed

        logging.getLogger("sequential").error("the callback for execution %r failed", callback.id, exc_info=error)
        away = isinstance(error, StorageError) if isinstance(error, SequentialError) else asked_store
        if away and not isinstance(error, Damaged):
            return _answer(503, _retry(_RETRY), error="the store is away; nothing is lost")
        return _answer(500, error="the execution has failed and keeps its state; the reason is in this service's log")


drive: Run = blocking(settle)
"""Runs a coroutine to its end in the calling thread, without an event loop."""

ACCEPTED = Response(202, _HEADERS, b" ")
"""What to answer once a lease is taken; the rest of the body, what `Handler.run` returns, comes later."""


def _answer(code: int, headers: Mapping[str, str] | None = None, /, **said: str) -> Response:
    body = dumps(said).encode()
    return Response(code, {**_HEADERS, "content-length": str(len(body)), **(headers or {})}, body)


def _busy(seconds: float) -> Response:
    return _answer(409, _retry(seconds), error="another invocation has the lease")


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, ceil(min(seconds, _LONGEST_WAIT))))}
