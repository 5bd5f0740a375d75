"""What `ObjectStorage` and `Offload` have in common: a folder for each execution in a store of obstore's.

Its object ``record`` is replaced by compare-and-swap.  The body of that begins with the nonces of its last writes.  The
first makes each body another: S3's ETag is a checksum, and two writers with equal bodies would both win.  The others
tell a writer that is refused whether it was by its own success, the answer to which was lost.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from math import inf
from pathlib import Path
from sys import modules
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from ..blocking import usable_loop
from ..errors import StorageError
from ..storage import Record, is_name
from .clients import extra, split

with extra("objects"):
    import obstore
    from obstore import exceptions
    from obstore.store import LocalStore, ObjectStore

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")
R = TypeVar("R")

PART_SIZE = 1 << 22
"""Bytes of a large value in one object: more would be in memory twice, and take longer than a request may."""

_MAGIC = "sequential/1"
_NONCES = 16
"""How many writes of others may come between a write and the look whether it was done."""

_TOGETHER = 32
"""Requests on their way at once: more make one process's share of a store's patience too large."""

_MOMENT = 0.05
"""Seconds after an answer until obstore's threads are done with it: far more than it takes."""

_LEFT_OVER = 86_400.0
"""Seconds after which no process is any more about to refer to what it has written."""

_CANNOT = (exceptions.NotSupportedError, NotImplementedError)
"""What obstore raises when a store has no way to do what it is asked: the one or the other, as the store may be."""

_REMEDIES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (FileNotFoundError, "create the bucket or folder, or correct its name"),
    (exceptions.PermissionDeniedError, "allow to read, write, delete and list: else S3 hides what is missing"),
    (exceptions.UnauthenticatedError, "give it credentials that are valid"),
    (_CANNOT, "use a store that takes conditional writes, and leave conditional_put= alone"),
)
_REACH = "check that it can be reached: its endpoint, region, bucket and credentials, or the folder's rights and room"


class Found(NamedTuple):
    """An object that is replaced by compare-and-swap, as it was read or written."""

    data: bytes
    nonces: list[str]
    """Of its last writes, the latest first."""
    mode: PutMode
    modified: float = inf
    """When it was written, by the store's clock, in seconds since the epoch; not known of what was written here."""


class Kept(NamedTuple):
    """A large value, which is kept on its own."""

    name: str
    """Within the execution's folder."""
    size: int


class Damaged(StorageError):
    """The object ``record`` of an execution is not what was written."""


class Conflict(Exception):
    """The object is not the one that was to be replaced."""

    def __init__(self, found: Found | None) -> None:
        super().__init__()
        self.found = found


class Bucket:
    """An object store, and a prefix for all that is kept there.

    Args:
        store: The store.
        prefix: What all keys begin with, empty or ending with ``/``.

    Raises:
        StorageError: When it is a folder on a system that cannot lock files.
        ValueError: When `prefix` cannot begin a key.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        if not isinstance(store, get_args(ObjectStore)):
            raise TypeError(f"a store is one of obstore's, like obstore.store.S3Store(...), not {store!r:.100}")
        *parts, last = prefix.split("/")
        if last or not all(map(is_name, parts)):
            raise ValueError(
                f"prefix= is empty, or names of A-Z a-z 0-9 _ . : @ ~ - and a / behind each: not {prefix!r}"
            )
        self._store = store
        self.prefix = prefix
        self.is_local = isinstance(store, LocalStore)
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

    def check(self) -> None:
        """Find out whether conditions are honoured, without an event loop.

        Raises:
            StorageError: When they are not, or nothing can be written.
        """
        path = f"{self.prefix}.check-{nonce()}"
        with explained():
            first = _mode(obstore.put(self._store, path, b"1", mode="create"))
            try:
                self._refuses(path, "create")
                if not self.is_local:
                    obstore.put(self._store, path, b"2", mode=first)
                    self._refuses(path, first)
            finally:
                obstore.delete(self._store, path)

    def _path(self, id: str, name: str = "record") -> str:
        return f"{self.prefix}{id}/{name}"

    def _parts(self, id: str, kept: Kept) -> list[str]:
        return [f"{self._path(id, kept.name)}.{number}" for number in range(-(-kept.size // PART_SIZE))]

    def _refuses(self, path: str, mode: PutMode) -> None:
        with suppress(exceptions.AlreadyExistsError, exceptions.PreconditionError):
            obstore.put(self._store, path, b"3", mode=mode)
            header = "If-None-Match" if mode == "create" else "If-Match"
            raise StorageError(
                f"object store: {self._store!r} ignores {header}, so two writers at once would both win: use a store "
                "that honours conditions (S3, GCS, Azure Blob, SeaweedFS), or another Journal (PostgresStorage, ...)"
            )

    async def get(self, id: str) -> Found | None:
        """Return the object ``record`` of an execution, or ``None``."""
        try:
            answer, data = await self._get(self._path(id))
        except FileNotFoundError:
            return None
        head, _, body = data.partition(b"\n")
        magic, *nonces = head.decode(errors="replace").split(" ")
        if magic != _MAGIC:
            path = self._path(id)
            raise Damaged(f"object store: {path!r} is damaged, or of a later release: restore it, or upgrade")
        return Found(body, nonces, _mode(answer.meta), answer.meta["last_modified"].timestamp())

    async def swap(self, id: str, data: bytes, found: Found | None) -> Found:
        """Write the object ``record`` in the place of what was found, and return what is there then.

        Raises:
            Conflict: When something else is there by now; nothing is written.
        """
        nonces = [nonce(), *(found.nonces if found else ())][:_NONCES]
        body = b"%s\n%s" % (" ".join([_MAGIC, *nonces]).encode(), data)
        if self.is_local:
            with self._locked():
                there = await self.get(id)
                if (there and there.nonces) != (found and found.nonces):
                    raise Conflict(there)
                return Found(data, nonces, _mode(await self._ask(obstore.put, self._path(id), body)))
        try:
            mode = found.mode if found else "create"
            return Found(data, nonces, _mode(await self._ask(obstore.put, self._path(id), body, mode=mode)))
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError) as error:
            if found is None and isinstance(error, FileNotFoundError):  # not even a place to write it
                raise _explain(error) from error
            there = await self.get(id)
            if there and nonces[0] in there.nonces:
                return there
            raise Conflict(there) from error

    async def erase(self, id: str, found: Found) -> None:
        """Delete the object ``record``, which in a folder must be the one that was found."""
        if not self.is_local:
            await self.delete([self._path(id)])
            return
        with self._locked():
            there = await self.get(id)
            if there and there.nonces == found.nonces:
                await self._ask(obstore.delete, self._path(id))

    async def keep(self, id: str, kept: Kept, data: bytes) -> None:
        """Write a large value, in as many objects as it takes."""
        for path, part in zip(self._parts(id, kept), split(data, PART_SIZE), strict=True):
            with explained(), self._locked():
                await self._ask(obstore.put, path, part)

    async def load(self, id: str, kept: Kept) -> bytes:
        """Read a large value.

        Raises:
            FileNotFoundError: When it is not there.
        """
        whole = BytesIO()
        for path in self._parts(id, kept):
            whole.write((await self._get(path))[1])
        return whole.getvalue()

    async def exists(self, id: str, kept: Kept) -> bool:
        """Whether a large value was written, and not deleted."""
        try:
            await self._ask(obstore.head, self._parts(id, kept)[0])
        except FileNotFoundError:
            return False
        return True

    async def discard(self, id: str, kept: Iterable[Kept]) -> None:
        """Delete large values, parts of which may not be there."""
        await self.delete(path for each in kept for path in self._parts(id, each))

    async def remains(self, id: str, dead: Iterable[str], spared: str) -> list[str]:
        """Return what can be deleted of an execution.

        Args:
            id: Which.
            dead: The names of folders in its own that nobody needs any more.
            spared: What the names begin with that are left alone: of all others, what is a day old can only have been
                left by a process that died.
        """
        folder = self._path(id, "")
        mine = tuple(f"{folder}{name}/" for name in dead)
        with explained():
            found = obstore.list(self._store, folder)
            listed = await _wait_for(found.collect_async()) if self.is_async() else found.collect()
        old = time() - _LEFT_OVER
        return [
            path
            for path, at in ((each["path"], each["last_modified"].timestamp()) for each in listed)
            if path.startswith(mine) or (at < old and not path.startswith(folder + spared))
        ]

    async def folders(self) -> list[str]:
        """Return the names of all folders under the prefix, in order."""
        with explained():
            listed = await self._ask(obstore.list_with_delimiter, self.prefix or None)
        return sorted(path.rpartition("/")[2] for path in listed["common_prefixes"])

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, some of which may not be there."""

        async def delete(path: str) -> None:
            with suppress(FileNotFoundError), self._locked():
                await self._ask(obstore.delete, path)

        await self.together(delete, list(paths))

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
    def _locked(self) -> Iterator[None]:
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

    async def _get(self, path: str) -> tuple[obstore.GetResult, bytes]:
        answer = await self._ask(obstore.get, path)
        with explained(FileNotFoundError):
            data = await _wait_for(answer.bytes_async()) if self.is_async() else answer.bytes()
        return answer, data.to_bytes()

    async def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with explained(FileNotFoundError, exceptions.AlreadyExistsError, exceptions.PreconditionError):
            if self.is_async():
                return await _wait_for(
                    getattr(obstore, f"{function.__name__}_async")(self._store, *arguments, **options)
                )
            return function(self._store, *arguments, **options)


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


def nonce() -> str:
    """Return what nobody else has."""
    return os.urandom(8).hex()


def _mode(answer: Any) -> PutMode:
    mode: Any = {name: answer[name] for name in ("e_tag", "version") if answer[name] is not None}
    known: PutMode = mode
    return known


@contextmanager
def explained(*known: type[Exception]) -> Iterator[None]:
    """Explain what an object store raises in the body, but for the errors that the caller knows how to deal with."""
    try:
        yield
    except known:
        raise
    except (exceptions.BaseError, *_CANNOT, OSError, ValueError) as error:
        raise _explain(error) from error


def _explain(error: Exception) -> StorageError:
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), _REACH)
    return StorageError(f"object store: {_brief(error)}: {remedy}")


def check_missing(record: Record, stored: Record | None, error: FileNotFoundError) -> None:
    """Refuse to go on when something is missing although the run that it belongs to was not removed.

    Args:
        record: Whose it is.
        stored: What is stored under its id now.
        error: How it was missed.
    """
    if stored is not None and stored.run == record.run:
        raise StorageError(f"object store: a part of {record.id!r} is gone: restore it: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).partition("\n\nDebug source:")[0].split()) or type(error).__name__
