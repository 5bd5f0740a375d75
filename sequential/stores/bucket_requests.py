"""Requests to a store of obstore's, plain or ``async``, and saying what to do about what it raises."""

from __future__ import annotations

import atexit
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from sys import modules
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from ..blocking import usable_loop
from ..errors import StorageError
from .clients import extra

with extra("objects"):
    import obstore
    from obstore import exceptions
    from obstore.store import LocalStore, ObjectStore

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutMode

T = TypeVar("T")
R = TypeVar("R")

REFUSED = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
"""What obstore raises when the condition of a write does not hold."""

_TOGETHER = 32
"""Requests on their way at once: more make one process's share of a store's patience too large."""

_MOMENT = 0.05
"""Seconds after an answer until obstore's threads are done with it: far more than it takes."""

_CANNOT = (exceptions.NotSupportedError, NotImplementedError)
"""What obstore raises when a store has no way to do what it is asked: the one or the other, as the store may be."""

_REMEDIES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (FileNotFoundError, "create the bucket or folder, or correct its name"),
    (exceptions.PermissionDeniedError, "allow to read, write, delete and list: else S3 hides what is missing"),
    (exceptions.UnauthenticatedError, "give it credentials that are valid"),
    (_CANNOT, "use a store that takes conditional writes, and leave conditional_put= alone"),
)
_REACH = "check that it can be reached: its endpoint, region, bucket and credentials, or the folder's rights and room"


class Requests:
    """What is asked of an object store.

    Args:
        store: The store.

    Raises:
        StorageError: When it is a folder on a system that cannot lock files.
        TypeError: When it is none of obstore's.
    """

    def __init__(self, store: ObjectStore) -> None:
        if not isinstance(store, get_args(ObjectStore)):
            raise TypeError(f"a store is one of obstore's, like obstore.store.S3Store(...), not {store!r:.100}")
        self._store = store
        self.is_local = isinstance(store, LocalStore)
        """Whether the store is a folder, where locks do what conditions do elsewhere."""
        if isinstance(store, LocalStore):
            try:
                import fcntl  # noqa: PLC0415 - other systems have none, and other stores need none
            except ImportError as error:
                raise StorageError(f"object store: {store!r} needs fcntl to lock files: use SQLiteStorage") from error
            self._fcntl = fcntl
            self._lock_path = (store.prefix or Path("/")) / ".sequential.lock"

    def is_async(self) -> bool:
        """Whether requests are to be awaited: where an event loop runs, unless they only go to the disk."""
        return not self.is_local and usable_loop() is not None

    def check(self, path: str) -> None:
        """Find out whether conditions are honoured, without an event loop.

        Args:
            path: Where nothing is, to write there meanwhile.

        Raises:
            StorageError: When they are not, or nothing can be written.
        """
        with explained():
            first = version_of(obstore.put(self._store, path, b"1", mode="create"))
            try:
                self._check_refusal(path, "create")
                if not self.is_local:
                    obstore.put(self._store, path, b"2", mode=first)
                    self._check_refusal(path, first)
            finally:
                obstore.delete(self._store, path)

    async def ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request by a function of obstore's, or its ``async`` twin, and return the answer.

        Raises:
            FileNotFoundError: When an object is not there.
            StorageError: With what else obstore said, and the remedy; only what is `REFUSED` passes as it is.
        """
        with explained(FileNotFoundError, *REFUSED):
            if self.is_async():
                return await _wait_for(
                    getattr(obstore, f"{function.__name__}_async")(self._store, *arguments, **options)
                )
            return function(self._store, *arguments, **options)

    async def get(self, path: str) -> tuple[GetResult, bytes]:
        """Read an object.

        Raises:
            FileNotFoundError: When it is not there.
        """
        answer = await self.ask(obstore.get, path)
        with explained(FileNotFoundError):
            data = await _wait_for(answer.bytes_async()) if self.is_async() else answer.bytes()
        return answer, data.to_bytes()

    async def list_all(self, folder: str) -> Sequence[ObjectMeta]:
        """Return what is known of all objects in a folder, and in those within."""
        with explained():
            found = obstore.list(self._store, folder)
            return await _wait_for(found.collect_async()) if self.is_async() else found.collect()

    async def together(self, work: Callable[[T], Awaitable[R]], items: list[T]) -> list[R]:
        """Do the same with all items, with many at once where that is possible."""
        done: list[R] = []
        for start in range(0, len(items), _TOGETHER):
            some = items[start : start + _TOGETHER]
            if self.is_async():
                done += await modules["asyncio"].gather(*map(work, some))
            else:
                done += [await work(item) for item in some]
        return done

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        if self.is_async():
            await modules["asyncio"].sleep(seconds)
        else:
            sleep(seconds)  # noqa: ASYNC251 - no event loop runs

    @contextmanager
    def locked(self) -> Iterator[None]:
        """In a folder, let nobody else write meanwhile: not even a folder can be made while another is cleared away."""
        if not self.is_local:
            yield
            return
        with explained():
            file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._fcntl.flock(file, self._fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would leave it locked by whoever was forked meanwhile.
            self._fcntl.flock(file, self._fcntl.LOCK_UN)
            os.close(file)

    def _check_refusal(self, path: str, mode: PutMode) -> None:
        with suppress(*REFUSED):
            obstore.put(self._store, path, b"3", mode=mode)
            header = "If-None-Match" if mode == "create" else "If-Match"
            raise StorageError(
                f"object store: {self._store!r} ignores {header}, so two writers at once would both win: use a store "
                "that honours conditions (S3, GCS, Azure Blob, SeaweedFS), or another Journal (PostgresStorage, ...)"
            )


_awaited = [0.0]
"""When an answer was last awaited, by the monotonic clock."""


async def _wait_for(answer: Awaitable[T]) -> T:
    try:
        return await answer
    finally:
        _awaited[:] = [monotonic()]


@atexit.register
def _outlast_threads() -> None:
    """Wait for obstore's threads: they touch what belongs to Python a moment longer, and would abort its end."""
    sleep(max(0.0, _awaited[0] + _MOMENT - monotonic()))


def version_of(answer: Any) -> PutMode:
    """Return the condition that an object is still the one that was read or written."""
    version: Any = {name: answer[name] for name in ("e_tag", "version") if answer[name] is not None}
    mode: PutMode = version
    return mode


@contextmanager
def explained(*known: type[Exception]) -> Iterator[None]:
    """Explain what an object store raises in the body, but for the errors that the caller knows how to deal with."""
    try:
        yield
    except known:
        raise
    except (exceptions.BaseError, *_CANNOT, OSError, ValueError) as error:
        raise explain(error) from error


def explain(error: Exception) -> StorageError:
    """Return what was said, and what to do about it."""
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), _REACH)
    return StorageError(f"object store: {brief(error)}: {remedy}")


def brief(error: Exception) -> str:
    """Return what was said, in a line."""
    return " ".join(str(error).partition("\n\nDebug source:")[0].split()) or type(error).__name__
