"""What the stores have in common that are reached through a client of the user's, plain or ``async``."""

from __future__ import annotations

from _thread import allocate_lock
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from math import inf
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from ..blocking import complete, is_blocked
from ..codec import Codec, JSONCodec
from ..errors import EventLoopNeeded, Fenced, NotInstalled, StorageError
from ..storage import Journal, Maybe, Record, Result, is_number, settle

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="ClientJournal")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import a driver in the body; when it is missing, say how to install it.

    Args:
        name: The optional extra that brings it.

    Raises:
        NotInstalled: When it is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotInstalled(name, error.name) from error


@overload
def plain_or_async(  # what returns nothing can be awaited, or not, without a word to a type checker
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, P], Any]: ...
@overload
def plain_or_async(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Maybe[T]]: ...
def plain_or_async(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], Any]:
    """Return a method that answers at once when the client is plain, and with a coroutine when it is ``async``."""

    @wraps(method)
    def answer(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Maybe[T]:
        if not self.is_async():
            return complete(method(self, *args, **kwargs))
        if is_blocked():
            raise EventLoopNeeded  # before anything is sent whose answer nobody would wait for
        return method(self, *args, **kwargs)

    return answer


class ClientJournal(Journal):
    """A Journal over a client: a write whose answer was lost is looked up before it counts as failed.

    Args:
        codec: How values become bytes; strict JSON when left out.
    """

    def __init__(self, codec: Codec | None) -> None:
        self.codec = codec or JSONCodec()

    @abstractmethod
    def is_async(self) -> bool:
        """Whether what the client returns is to be awaited."""

    @plain_or_async
    async def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> None:
        """Write a record and a result in one step."""
        try:
            await self._commit(record, token, result, absent, taken)
        except (Fenced, StorageError):
            # A client that repeats a request whose answer was lost is refused by its own success.
            if not await self._is_written(record, result):
                raise

    @plain_or_async
    async def restart(self, record: Record, held: Record) -> None:
        """Replace a record and remove its results in one step."""
        try:
            await self._restart(record, held)
        except (Fenced, StorageError):
            if not await self._is_written(record, None):
                raise

    @plain_or_async
    async def remove(self, id: str, held: Record | None = None) -> None:
        """Remove an execution, its results and its signals."""
        try:
            await self._remove(id, held)
        except StorageError:
            # Who has finished keeps the value, whatever became of the answer, or of what is left to be removed.
            if held is None or not await self._is_gone(held):
                raise

    @abstractmethod
    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        """Do what `Journal.commit` says, once."""

    @abstractmethod
    async def _restart(self, record: Record, held: Record) -> None:
        """Do what `Journal.restart` says, once."""

    @abstractmethod
    async def _remove(self, id: str, held: Record | None) -> None:
        """Do what `Journal.remove` says, once."""

    async def _is_gone(self, record: Record) -> bool:
        with suppress(StorageError):
            found = await settle(self.read(record.id))
            return found is None or found.run != record.run
        return False

    async def _is_written(self, record: Record, result: Result | None) -> bool:
        with suppress(StorageError):
            if await settle(self.read(record.id)) == record:
                return result is None or await settle(self.results(record, result.step, result.step + 1)) == [result]
        return False


class Recent(Generic[T]):
    """The values that were put last, by key; safe with any number of threads.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[str, T] = {}
        self._lock = allocate_lock()

    def get(self, key: str) -> T | None:
        """Return a value, or ``None``."""
        return self._values.get(key)

    def put(self, key: str, value: T | None) -> T | None:
        """Put a value, or none, and return the one before."""
        with self._lock:
            before = self._values.pop(key, None)
            if value is not None:
                self._values[key] = value
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        return before


def check_ttl(ttl: float | None) -> float | None:
    """Return the `ttl` of a storage if executions can expire after it.

    Raises:
        ValueError: When it is not above 0.
    """
    if ttl is None or (is_number(ttl) and 0 < ttl < inf and ttl is not True):  # which would be a second
        return ttl
    raise ValueError(f"ttl= is a number of seconds above 0, or left out to keep executions for ever: not {ttl!r}")


def split(data: bytes, size: int) -> Iterator[bytes]:
    """Return `data` in parts of `size` bytes, each made when it is asked for."""
    return (data[start : start + size] for start in range(0, len(data), size))
