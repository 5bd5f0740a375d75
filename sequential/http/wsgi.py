"""The handler as a WSGI application."""

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, TypeAlias

from ..executor import FlowExecutor
from .callback import LIMIT
from .handler import ACCEPTED, Handler, Request, Response, Run, Turn, drive
from .signing import Secret

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
_DIGITS = 15
"""Of a length: enough to see that it is too much, and fewer than `int` refuses."""


def wsgi_app(
    flow: FlowExecutor, secret: Secret | None = None, *, insecure: bool = False, run: Run | None = None
) -> Callable[[Environ, StartResponse], Iterable[bytes]]:
    """Return a WSGI application that answers ``POST .../resume/{id}``, to be mounted anywhere.

    It answers 202 as soon as the lease is taken; a client that hangs up never keeps the step from being done.

    Args:
        flow: As for `Handler`.
        secret: As for `Handler`.
        insecure: As for `Handler`.
        run: Runs the invocations of an executor whose hooks or storage are ``async``; it then answers 200 at the end.

    Raises:
        NotSupported, ValueError: As from `Handler`.
    """
    handler = Handler(flow, secret, insecure=insecure)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = _request(environ)
        turn: Turn | Response = drive(handler.accept(request)) if run is None else run(handler.handle(request))
        answer = turn if isinstance(turn, Response) else ACCEPTED
        try:
            start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(answer.headers.items()))
        except BaseException as error:  # of a middleware's
            if isinstance(turn, Turn):
                drive(turn.invocation.release(error))
            raise
        if request.method == "HEAD":
            return []  # a body would be taken for the next answer
        if isinstance(turn, Response):
            return [turn.body]
        return _Stream(lambda: ACCEPTED.body, lambda: drive(handler.run(turn)).body)

    return app


def _request(environ: Environ) -> Request:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return Request(environ["REQUEST_METHOD"], path, headers, _body(environ))


def _body(environ: Environ) -> bytes:
    """Return a request's body, or as much of it as shows that it is too long."""
    given, length = environ.get("CONTENT_LENGTH") or "", LIMIT + 1
    if given.isascii() and given.isdigit():
        length = min(int(given[:_DIGITS]), length)
    elif not environ.get("wsgi.input_terminated"):
        length = 0  # only a server that knows where a body in chunks ends can be asked for one
    body: bytes = environ["wsgi.input"].read(length)
    return body


class _Stream:
    """A response whose first bytes leave before the step is done.

    Args:
        parts: Its body, each part made when its turn has come.
    """

    def __init__(self, *parts: Callable[[], bytes]) -> None:
        self._left = iter(parts)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._left)()

    def close(self) -> None:
        """Do the step, if the client has hung up before it: servers call this whatever happens (PEP 3333)."""
        for _ in self:
            pass
