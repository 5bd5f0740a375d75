"""The keys of `sequential.stores.redis`: those of each execution, and the two indexes of all of them.

The index by time may be too early for a record, never too late, so that a commit that renews a lease leaves it alone;
whoever lists puts right what it finds too early.

In a cluster all keys of an execution are in one slot, and the index of all executions is in another; no script writes
both.  There the index holds entries that are written once, under a fresh name, before the record that names them:

* A record names an entry whose time is not after its own.  A script that would make this untrue does nothing and says
  so; its caller offers a new entry to the index, and the script, called again, names it in the record.
* So an entry may be too early, never too late; and a crash leaves at most an entry that no record names.
* Whoever lists reads the records.  An entry that its record does not name is removed, but not before its name is void
  for this record, in the one script that has seen it: whoever was about to name it, in a claim or a signal say, is told
  to offer another.  An entry that is too early is replaced by an offer, and its name void, too.

A name stays void for an hour: only a process that stops for so long between its two requests could leave an execution
without an entry.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from contextlib import suppress
from os import urandom
from typing import Any, TypeAlias

from ..errors import Fenced, StorageError
from . import redis_lua as lua
from .clients import check_ttl
from .redis_macros import DONE, NEW, REFUSED
from .redis_records import joined
from .redis_scripts import Scripts

Row: TypeAlias = tuple[str, list[bytes] | None]
"""An id and its record as a script has found it, `None` if it is not to be listed, or no longer."""


class Keys:
    """Runs scripts on the keys of one execution each, and keeps the indexes so that whoever lists finds it.

    Args:
        scripts: What runs them.
        prefix: What the names of keys begin with.
        ttl: Seconds after which an execution expires; `None`: never.

    Raises:
        ValueError: When `prefix` is no such text, or `ttl` is not above 0.
    """

    def __init__(self, scripts: Scripts, prefix: str, ttl: float | None) -> None:
        if not isinstance(prefix, str) or not re.fullmatch(r"[^{}\0\ud800-\udfff]+", prefix):
            raise ValueError(
                f"prefix= begins the names of keys; it is not empty and has no braces, NUL or lone surrogates: "
                f"not {prefix!r}"
            )
        self._scripts, self._is_cluster = scripts, scripts.is_cluster
        self._prefix, self._ttl = prefix, b"" if (seconds := check_ttl(ttl)) is None else repr(float(seconds)).encode()
        begin = f"{{{prefix}}}" if self._is_cluster else prefix
        self._indexes = self._due, self._ids = f"{begin}due".encode(), f"{begin}ids".encode()

    def run(self, script: str, id: str, head: bytes = b"", data: bytes = b"", offered: bytes = b"") -> Awaitable[Any]:
        """Run a script on the keys of one execution.

        Args:
            script: Its text.
            id: Whose keys.
            head: The short values that it has besides those of every one.
            data: What may be large.
            offered: An entry that the index by time of a cluster has for it.

        Raises:
            StorageError: With what the server or the driver said, and the remedy.
        """
        record = f"{self._prefix}{{{id}}}"
        # The key that never exists makes a cluster refuse the script while it moves the slot, key by key.
        others = (f"{record}:none".encode(),) if self._is_cluster else self._indexes
        short = b"%b\0%b\0%b%b" % (id.encode(), offered, self._ttl, head)
        return self._scripts.run(script, (record.encode(), *others), short, data)

    async def apply(self, script: str, id: str, head: bytes, token: int = 0, data: bytes = b"") -> list[Any]:
        """Run a script, after giving the index what the script asks for, and return what it answers.

        Args:
            script: Its text.
            id: Whose keys.
            head: As for `run`.
            token: The one in `head`, if there is one.
            data: As for `run`.

        Raises:
            Fenced: When `token` is no longer the execution's.
            StorageError: As `run` does.
        """
        offered = b""
        while True:
            answer = await self.run(script, id, head, data, offered)
            status, *others = answer if isinstance(answer, list) else (answer,)
            if status == REFUSED:
                raise Fenced(id, token)
            if status == DONE:
                break
            listed = ":listed" if status == NEW else ""
            offered = b"%b:%b" % (others[0], (urandom(8).hex() + listed).encode())
            offer = (others[0], b"%b %b" % (id.encode(), offered), listed)
            await self._scripts.run(lua.OFFER, self._indexes, *offer)
        if not others:
            return others
        superfluous, *others = others
        if superfluous:
            with suppress(StorageError):  # all is done that matters, and whoever lists does the rest
                await self._forget(self._due, id, superfluous)
                if superfluous == offered:
                    await self._forget(self._ids, id, superfluous)
        return others

    async def unlist(self, id: str, name: bytes) -> None:
        """Remove an entry from the index by id, or else whoever lists does it."""
        with suppress(StorageError):
            await self._forget(self._ids, id, name)

    async def due(self, now: float, limit: int) -> list[Row]:
        """Return up to `limit` executions that the sweep should ring, the earliest first."""
        if not self._is_cluster:
            rows = await self._scripts.run(lua.DUE, self._indexes, joined(self._prefix, now, limit)[1:])
            return [(id.decode(), found) for id, found in rows]
        bounds, looked = ("-inf", repr(now), "LIMIT", "0", str(limit)), dict[bytes, Row]()
        while True:
            entries = await self._scripts.run(lua.INDEX, (self._due,), "ZRANGEBYSCORE", *bounds)
            if looked.keys() >= set(entries):
                return list(dict(looked[entry] for entry in entries if looked[entry][1]).items())
            for entry in entries:
                if entry not in looked:  # those that have moved make room for others
                    looked[entry] = await self._look(entry, "entry", self._due)

    def behind(self, id: str) -> bytes:
        """Return where `page` begins behind an id; if that is empty, at the first one."""
        # An entry's id ends with a space, which is before all that an id is made of.
        return joined(f"({id}{'!' * self._is_cluster}" if id else "-")[1:]

    async def page(
        self, start: bytes, limit: int, missing: int, status: str | None, workflow: str | None
    ) -> tuple[bytes | None, list[Row]]:
        """Return executions in the order of their ids, in a cluster whatever their status and their workflow.

        Args:
            start: Where to begin.
            limit: How many to look at in a cluster.
            missing: How many to find otherwise.
            status: Only those of this status.
            workflow: Only those of this workflow.

        Returns:
            Where the next page begins, unless this is the last one, and the executions.
        """
        if self._is_cluster:
            bounds = (start, "+", "LIMIT", "0", str(limit))
            entries = await self._scripts.run(lua.INDEX, (self._ids,), "ZRANGEBYLEX", *bounds)
            rows = [await self._look(entry, "listed", self._ids) for entry in entries]
            last = entries[-1] if entries else None
        else:
            values = (self._prefix, start.decode(), missing, status, workflow)
            last, rows = await self._scripts.run(lua.FIND, self._indexes, joined(*values)[1:])
            rows = [(id.decode(), found) for id, found in rows]
        return b"(" + last if last else None, rows

    async def _look(self, entry: bytes, field: str, index: bytes) -> Row:
        """Read the record of an entry; when the record does not name it there, or no longer, remove it."""
        id, _, name = entry.decode().rpartition(" ")
        (found,) = await self.apply(lua.LOOK, id, joined(field, name))
        if not found:  # it has moved, or is gone
            await self._forget(index, id, name.encode())
        return id, found

    async def _forget(self, index: bytes, id: str, name: bytes) -> None:
        """Remove an entry that no record names, or will ever name."""
        await self._scripts.run(lua.INDEX, (index,), "ZREM", b"%b %b" % (id.encode(), name))
