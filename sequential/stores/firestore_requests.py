"""Requests to Firestore, by a client that is plain or ``async``: tried again for a while, and none too large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, filterfalse, islice
from typing import Any

from ..errors import StorageError
from ..storage import settle
from . import firestore_documents as docs
from .clients import extra
from .firestore_documents import Write

with extra("firestore"):
    from google.api_core.retry import AsyncRetry, Retry, if_exception_type
    from google.cloud.firestore import AsyncClient

TOGETHER = 8
"""Documents of up to 1 MiB that one request writes or removes: its limit of 10 MiB counts both."""

_WRITES = 450
"""Documents that are probably small and go into one request, which takes 500 writes."""


class Requests:
    """What a storage asks of Firestore.

    Args:
        client: A client of google-cloud-firestore, plain or ``async``.
        timeout: Seconds to try again for.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        self.is_async = isinstance(client, AsyncClient)
        self._client = client
        retry: Any = AsyncRetry if self.is_async else Retry
        self._retry = partial(retry, if_exception_type(*docs.AGAIN), initial=0.1, maximum=5.0, timeout=timeout)

    async def ask(self, request: Callable[..., Any], on_error: Callable[[Exception], None] | None = None) -> Any:
        """Make a request and return its answer."""
        with docs.explained():
            return await settle(request(retry=self._retry(on_error=on_error)))

    async def stream(self, query: Any, take: Callable[[Any], object]) -> None:
        """Hand out what a query finds, as long as there is more and `take` wants more."""
        with docs.explained():
            stream = query.stream(retry=self._retry())
            following: Any = anext if self.is_async else next
            try:
                while (found := await settle(following(stream, None))) is not None and take(found):
                    pass
            finally:
                await settle(stream.aclose() if self.is_async else stream.close())

    async def send(self, writes: Iterable[Write]) -> list[Any] | None:
        """Commit a batch.

        Returns:
            What it has done: nothing if a precondition of it does not hold, and ``None`` if that is what Google's
            client was told when it asked again; then the first request may have done it.
        """
        batch, failures = self._client.batch(), list[Exception]()
        with docs.explained():
            for write in writes:
                write(batch)
        try:
            done: list[Any] = await self.ask(batch.commit, failures.append)
        except StorageError as error:
            if isinstance(error.__cause__, docs.REFUSED):  # if the database is missing, the next request says so
                return None if failures else []
            raise
        return done

    async def send_all(self, writes: Iterable[Write], at_once: int) -> bool:
        """Do so many writes with each request, or fewer if that is too much, until one is refused; tell if none was."""
        writes = iter(writes)
        while some := list(islice(writes, at_once)):
            try:
                if not await self.send(some):
                    return False
            except StorageError as error:
                if len(some) == 1 or not isinstance(error.__cause__, docs.TOO_MUCH):
                    raise
                at_once, writes = len(some) // 2, chain(some, writes)
        return True

    async def send_each(self, documents: Sequence[Any], write: Callable[[Any], Write]) -> bool:
        """Do a write to each document, those that are large in small batches; tell as `send_all`."""
        parts, others = filter(docs.is_part, documents), filterfalse(docs.is_part, documents)
        return await self.send_all(map(write, parts), TOGETHER) and await self.send_all(map(write, others), _WRITES)
