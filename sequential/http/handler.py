"""The route ``POST .../resume/{id}``, apart from any server: a request in, a response out.

An adapter gives what it received to `Handler.accept`, which checks it and takes the execution's lease, and what that
returns, to `Handler.run`.  In between, a server that can stream answers 202, so that whoever rang need not wait for the
step; the others have both done at once by `Handler.handle`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from json import dumps, loads
from math import ceil, inf
from time import time
from typing import NamedTuple, TypeVar

from ..blocking import blocking
from ..context import run_until
from ..errors import Fenced, StorageError
from ..executor import FlowExecutor
from ..invocation import Invocation
from ..setup import Paused
from ..storage import CLOSED, is_past
from .callback import LIMIT, Callback, hops, parse
from .signing import BadSignature, Secret, Signer

T = TypeVar("T")

_ROUTE = re.compile(r"(?:.*/)?resume/([^/]+)/?", re.DOTALL)
"""A suffix, because mounts differ in what of a path they leave."""

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
        flow._needs_journal("resume by id alone")
        if not flow._workflows:
            raise ValueError("a handler's FlowExecutor needs workflows=, in which it finds them by their names")
        if (secret is None) is not insecure:
            raise ValueError(
                "a handler needs secret=, the one that HttpResume signs with (sequential.http.new_secret() makes one), "
                "or else insecure=True, if something before it checks who rings: one of the two"
            )
        self._flow, self._clock = flow, clock
        self._signer = None if secret is None else Signer(secret)

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
            record, invocation = await self._flow._take(callback.wanted)
            if record is None:
                return _error(404, "there is no such execution: it was never started, or has finished")
            if record.status in CLOSED or is_past(callback.wanted, record):
                return respond(200, {"status": "stale", "id": record.id})
            if invocation is None:
                return _busy(record.lease - self._clock())
        except Exception as error:  # nothing but the store was asked
            return self._failed(callback, error, away=True)
        return Turn(callback, invocation, deadline)

    async def run(self, turn: Turn) -> Response:
        """Run the invocation whose lease was taken; whatever comes of it is in the response.

        Args:
            turn: What `accept` has returned.
        """
        token = hops.set(turn.callback.hop)
        try:
            with run_until(turn.deadline):
                value = await turn.invocation.run()
        except Exception as error:
            return self._failed(turn.callback, error, away=isinstance(error, StorageError))
        finally:
            hops.reset(token)
        if isinstance(value, Paused):
            return respond(200, {"status": "paused", "id": turn.callback.id, "reason": value.reason})
        return respond(200, {"status": "finished", "id": turn.callback.id})

    handle_sync = blocking(handle)

    def check(self, request: Request) -> Callback | Response:
        """Return what a request asks for, or what to answer at once; the store is not looked at.

        Args:
            request: The request.
        """
        found = _ROUTE.fullmatch(request.path)
        if found is None:
            return _error(404, "this handler answers POST .../resume/{id} alone")
        if request.method.upper() != "POST":
            return _error(405, "a callback is a POST", allow="POST")
        if len(request.body) > LIMIT:
            return _error(413, f"a callback has at most {LIMIT} bytes")
        try:
            self._prove(request, found[1])
            return parse(loads(request.body or b"{}"), found[1])
        except BadSignature as error:
            return _error(401, str(error))
        except (ValueError, RecursionError) as error:
            return _error(400, f"the body is not that of a callback: {error}")

    def _prove(self, request: Request, id: str) -> None:
        """Make sure that the request was sent for this execution by who knows the secret."""
        if self._signer is not None:
            signed = self._signer.check(request.headers, self._clock(), request.body)
            if signed.rpartition(":")[0] != id:
                raise BadSignature("the signature is for another execution")

    def _failed(self, callback: Callback, error: Exception, away: bool) -> Response:
        """Say that something has gone wrong, to whoever rang in short and to the log at length."""
        if isinstance(error, Fenced):
            return _busy(_RETRY)
        import logging  # noqa: PLC0415 - slow to import, and seldom needed

        logging.getLogger("sequential").error("the callback for execution %r failed", callback.id, exc_info=error)
        if away:
            return _error(503, "the store is away; nothing is lost", **_retry(_RETRY))
        return _error(500, "the execution has failed and keeps its state; the reason is in this service's log")


async def _itself(work: Awaitable[T]) -> T:
    return await work


drive = blocking(_itself)
"""Runs a coroutine to its end in the calling thread, without an event loop."""


def accepted() -> Response:
    """Return what to answer once a lease is taken; the body, what `Handler.run` returns, comes later."""
    return Response(202, _HEADERS, b" ")


def respond(status: int, said: dict[str, str], **headers: str) -> Response:
    """Return a JSON response."""
    body = dumps(said).encode()
    return Response(status, {**_HEADERS, "content-length": str(len(body)), **headers}, body)


def _error(status: int, reason: str, **headers: str) -> Response:
    return respond(status, {"error": reason}, **headers)


def _busy(seconds: float) -> Response:
    return _error(409, "another invocation has the lease", **_retry(max(1, ceil(min(seconds, _LONGEST_WAIT)))))


def _retry(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}
