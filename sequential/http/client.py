"""`HttpResume`: the ``resume`` hook that rings over HTTP.

A platform may freeze or end this process as soon as it has answered, so a ring is never left to a thread or task that
nobody waits for.  It waits for the callee's status line too: whoever hangs up at once may never learn that a platform
refused the call, and some frameworks cancel what they do for a client that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from functools import cached_property
from time import monotonic, time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from ..blocking import Maybe, usable_loop
from ..checks import check_functions, check_id, is_number, is_whole
from ..context import current
from ..errors import CallbackFailed
from .callback import Callback, hops
from .signing import Secret, signer_for
from .threads import in_thread

if TYPE_CHECKING:
    from http.client import HTTPConnection
    from socket import socket
    from ssl import SSLContext

_INTERIM = re.compile(rb"\A(?:HTTP/1\.\d 1\d\d\b[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)+")
_STATUS = re.compile(rb"HTTP/1\.\d ([2-9]\d\d)\b[^\n]*\n")
_BEGINNING = b"HTTP/1."
_PIECE = 4096
_LONGEST_HEAD = 1 << 16
"""Bytes within which the status must have come."""

_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")

_HTTP, _HTTPS = 80, 443
"""Said, or the last group of an IPv6 address would be taken for the port."""

_INSTANT = 0.001
"""Seconds: a timeout of 0 would mean not to wait at all."""

_DAY = 86_400.0
"""Seconds: what is much longer, an operating system does not take for a time to wait."""

_BUSY = 409
"""Somebody else runs the execution, and rings when it is done."""

_GOOD = frozenset({None, *range(200, 300), _BUSY})


class HttpResume:
    """Rings for the next invocation by ``POST {url}/resume/{id}``: a ``resume`` hook.

    In a thread with a running event loop it returns an awaitable, elsewhere it blocks.  It returns the status of the
    answer; ``None`` when all was sent and no answer has come in time, which is all right, for the callee may be at
    work; or ``False`` when it did not ring, because of `hop_limit`.

    Args:
        url: Where the handler is mounted, from your configuration and never from a request: ``https``, or ``http`` on
            this host or with `post`.
        secret: What the handler knows too, to prove who rings (see `sequential.http.new_secret`).
        headers: Sent with every ring, for a platform that asks for more.
        ack_timeout: Seconds to wait for the answer's first line.
        connect_timeout: Seconds to connect to one address of the host, a second attempt counted in.
        hop_limit: How many self-calls in a row are made, before the rest is left to the sweep: platforms stop a
            function that calls itself after some (Vercel about 4, Cloudflare 16, Deno Deploy 1).
        post: Sends the request instead, ``post(url, headers, body)``, plain or ``async``, by a client of yours; it
            returns the status, or ``None`` when it has sent all and has no answer.  The timeouts are then its own.
        insecure: Whether to ring without a secret.

    Raises:
        ValueError: When the URL is none of these, or there is no secret, or it is not one.
    """

    def __init__(
        self,
        url: str,
        secret: Secret | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        ack_timeout: float = 1.0,
        connect_timeout: float = 3.0,
        hop_limit: int | None = None,
        post: Callable[[str, dict[str, str], bytes], Any] | None = None,
        insecure: bool = False,
    ) -> None:
        check_functions(post=post)
        if not all(is_number(seconds, 0, _DAY) and seconds > 0 for seconds in (ack_timeout, connect_timeout)):
            raise ValueError(f"{ack_timeout=} and {connect_timeout=} must be above 0 seconds, and at most a day")
        if not (hop_limit is None or is_whole(hop_limit, 1)):
            raise ValueError(f"hop_limit= is at least 1, or None, not {hop_limit!r}")
        self._url = _checked(url, plain=post is not None)
        self._signer = signer_for("HttpResume", secret, insecure)
        self._headers, self._post = dict(headers or {}), self._ring if post is None else post
        self._ack, self._connect, self._hop_limit = ack_timeout, connect_timeout, hop_limit

    def __call__(self, id: str) -> Maybe[int | bool | None]:
        """Ring.

        Args:
            id: The execution's id.

        Raises:
            CallbackFailed: When it could not be sent, or was refused.
        """
        hop = hops.get() + 1
        if self._hop_limit is not None and hop > self._hop_limit:
            return False
        callback = Callback(check_id(id), hop=hop)
        with suppress(LookupError):  # rung by hand
            step = current()
            if step.id == id:  # and not by a tool of another execution
                callback = callback._replace(run=step.run, step=step.step)
        body = callback.encode()
        headers = {"content-type": "application/json", "user-agent": "sequential", **self._headers}
        if self._signer is not None:
            headers.update(self._signer.sign(callback.message_id, time(), body))
        url = self._url._replace(path=f"{self._url.path.rstrip('/')}/resume/{id}").geturl()
        status: Any = self._post(url, headers, body)
        return _judged(url, status) if hasattr(status, "__await__") else _judge(url, status)

    def _ring(self, url: str, headers: dict[str, str], body: bytes) -> Maybe[int | None]:
        """Send the request from this thread, or from another one that the running loop waits for."""
        if usable_loop() is None:
            return self._send(url, headers, body)
        return in_thread(lambda: self._send(url, headers, body))

    def _send(self, url: str, headers: dict[str, str], body: bytes) -> int | None:
        """Connect, send all, and return the status if it comes in time."""
        parts = urlsplit(url)
        with closing(self._connected(parts)) as connection:
            try:
                connection.sock.settimeout(self._ack)
                give_up = monotonic() + self._ack
                connection.request("POST", parts._replace(scheme="", netloc="").geturl(), body, headers)
                return _status(connection.sock, give_up)
            except OSError as error:
                failure = f"was sent, but the connection ended before an answer: {error!r}"
                raise CallbackFailed(url, failure) from error

    def _connected(self, parts: SplitResult) -> HTTPConnection:
        """Return a connection, made at the second attempt if not at the first."""
        from http.client import HTTPConnection, HTTPSConnection  # noqa: PLC0415 - slow to import, needed when it rings

        host, give_up, is_last = parts.hostname or "", monotonic() + self._connect, False
        if parts.scheme == "http":
            connection = HTTPConnection(host, parts.port or _HTTP)
        else:
            connection = HTTPSConnection(host, parts.port or _HTTPS, context=self._tls)
        while connection.sock is None:
            connection.timeout = max(give_up - monotonic(), _INSTANT)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                if is_last or monotonic() > give_up:
                    raise CallbackFailed(parts.geturl(), f"could not be sent: {error!r}") from error
                is_last = True  # a server that is being restarted is back at once, and one that is away stays so
        return connection

    @cached_property
    def _tls(self) -> SSLContext:
        from ssl import create_default_context  # noqa: PLC0415 - as above

        return create_default_context()


async def _judged(url: str, status: Awaitable[int | None]) -> int | None:
    return _judge(url, await status)


def _judge(url: str, status: int | None) -> int | None:
    """Return a status that means that somebody runs the execution, or will."""
    if status in _GOOD:
        return status
    raise CallbackFailed(url, f"was answered with {status}", status)


def _status(socket: socket, give_up: float) -> int | None:
    """Read the status of the answer, unless it takes too long."""
    head = b""
    with suppress(TimeoutError):
        while (left := give_up - monotonic()) > 0:
            socket.settimeout(left)
            piece = socket.recv(_PIECE)
            head = _INTERIM.sub(b"", head + piece)
            if found := _STATUS.match(head):
                return int(found[1])
            if not piece or len(head) > _LONGEST_HEAD or not head.startswith(_BEGINNING[: len(head)]):
                raise ConnectionError(f"no HTTP/1 status line in {head!r:.100}")
    return None


def _checked(url: str, plain: bool) -> SplitResult:
    """Return the parts of a URL that may be rung; what is none may well be the secret, and is not shown."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"url= is not a URL: {error}") from None
    if not (host and url.isascii() and url.isprintable() and " " not in url) or parts.fragment or parts.username:
        raise ValueError("url= is not a URL to ring at: write https://host/path, as the handler is mounted")
    if parts.scheme != "https" and not (parts.scheme == "http" and (plain or _LOOPBACK.fullmatch(host))):
        raise ValueError(
            f"{url!r} would go over the network for all to read: use https (http is for this host, or for a network "
            "that encrypts by itself, by a client of yours: post=)"
        )
    return parts
