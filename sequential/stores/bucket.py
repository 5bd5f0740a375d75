"""What `ObjectStorage` and `Offload` have in common: a folder for each execution in a store of obstore's.

Its object ``record`` is replaced by compare-and-swap.  The body of that begins with the nonces of its last writes.  The
first makes each body another: S3's ETag is a checksum, and two writers with equal bodies would both win.  The others
tell a writer that is refused whether it was by its own success, the answer to which was lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from math import inf
from time import time
from typing import TYPE_CHECKING, NamedTuple

from ..errors import StorageError
from ..storage import Record, is_name
from .bucket_requests import REFUSED, Requests, brief, explain, explained, version_of
from .clients import extra, split

with extra("objects"):
    import obstore

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

PART_SIZE = 1 << 22
"""Bytes of a large value in one object: more would be in memory twice, and take longer than a request may."""

_MAGIC = "sequential/1"
_NONCES = 16
"""How many writes of others may come between a write and the look whether it was done."""

_LEFT_OVER = 86_400.0
"""Seconds after which no process is any more about to refer to what it has written."""


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
        self.requests = Requests(store)
        *parts, last = prefix.split("/")
        if last or not all(map(is_name, parts)):
            raise ValueError(
                f"prefix= is empty, or names of A-Z a-z 0-9 _ . : @ ~ - and a / behind each: not {prefix!r}"
            )
        self._prefix = prefix

    async def get(self, id: str) -> Found | None:
        """Return the object ``record`` of an execution, or ``None``."""
        try:
            answer, data = await self.requests.get(self._path(id))
        except FileNotFoundError:
            return None
        head, _, body = data.partition(b"\n")
        magic, *nonces = head.decode(errors="replace").split(" ")
        if magic != _MAGIC:
            path = self._path(id)
            raise Damaged(f"object store: {path!r} is damaged, or of a later release: restore it, or upgrade")
        return Found(body, nonces, version_of(answer.meta), answer.meta["last_modified"].timestamp())

    async def swap(self, id: str, data: bytes, found: Found | None) -> Found:
        """Write the object ``record`` in the place of what was found, and return what is there then.

        Raises:
            Conflict: When something else is there by now; nothing is written.
        """
        nonces = [nonce(), *(found.nonces if found else ())][:_NONCES]
        body = b"%s\n%s" % (" ".join([_MAGIC, *nonces]).encode(), data)
        if self.requests.is_local:
            with self.requests.locked():
                there = await self.get(id)
                if (there and there.nonces) != (found and found.nonces):
                    raise Conflict(there)
                return Found(data, nonces, version_of(await self.requests.ask(obstore.put, self._path(id), body)))
        try:
            mode = found.mode if found else "create"
            return Found(
                data, nonces, version_of(await self.requests.ask(obstore.put, self._path(id), body, mode=mode))
            )
        except (*REFUSED, FileNotFoundError) as error:
            if found is None and isinstance(error, FileNotFoundError):  # not even a place to write it
                raise explain(error) from error
            there = await self.get(id)
            if there and nonces[0] in there.nonces:
                return there
            raise Conflict(there) from error

    async def erase(self, id: str, found: Found) -> None:
        """Delete the object ``record``, which in a folder must be the one that was found."""
        if not self.requests.is_local:
            await self.delete([self._path(id)])
            return
        with self.requests.locked():
            there = await self.get(id)
            if there and there.nonces == found.nonces:
                await self.requests.ask(obstore.delete, self._path(id))

    async def keep(self, id: str, kept: Kept, data: bytes) -> None:
        """Write a large value, in as many objects as it takes."""
        for path, part in zip(self._parts(id, kept), split(data, PART_SIZE), strict=True):
            with explained(), self.requests.locked():
                await self.requests.ask(obstore.put, path, part)

    async def load(self, id: str, kept: Kept) -> bytes:
        """Read a large value.

        Raises:
            FileNotFoundError: When it is not there.
        """
        whole = BytesIO()
        for path in self._parts(id, kept):
            whole.write((await self.requests.get(path))[1])
        return whole.getvalue()

    async def exists(self, id: str, kept: Kept) -> bool:
        """Whether a large value was written, and not deleted."""
        try:
            await self.requests.ask(obstore.head, self._parts(id, kept)[0])
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
        listed = await self.requests.list_all(folder)
        old = time() - _LEFT_OVER
        return [
            path
            for path, at in ((each["path"], each["last_modified"].timestamp()) for each in listed)
            if path.startswith(mine) or (at < old and not path.startswith(folder + spared))
        ]

    async def folders(self) -> list[str]:
        """Return the names of all folders under the prefix, in order."""
        with explained():
            listed = await self.requests.ask(obstore.list_with_delimiter, self._prefix or None)
        return sorted(path.rpartition("/")[2] for path in listed["common_prefixes"])

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete objects, some of which may not be there."""

        async def delete(path: str) -> None:
            with suppress(FileNotFoundError), self.requests.locked():
                await self.requests.ask(obstore.delete, path)

        await self.requests.together(delete, list(paths))

    def _path(self, id: str, name: str = "record") -> str:
        return f"{self._prefix}{id}/{name}"

    def _parts(self, id: str, kept: Kept) -> list[str]:
        return [f"{self._path(id, kept.name)}.{number}" for number in range(-(-kept.size // PART_SIZE))]


def nonce() -> str:
    """Return what nobody else has."""
    return os.urandom(8).hex()


def check_missing(record: Record, stored: Record | None, error: FileNotFoundError) -> None:
    """Refuse to go on when something is missing although the run that it belongs to was not removed.

    Args:
        record: Whose it is.
        stored: What is stored under its id now.
        error: How it was missed.
    """
    if stored is not None and stored.run == record.run:
        raise StorageError(f"object store: a part of {record.id!r} is gone: restore it: {brief(error)}") from error
