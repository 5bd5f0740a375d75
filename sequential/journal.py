"""A store: three ways to read, one conditional write, and the one way in which anything is changed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from time import time
from typing import Any

from .blocking import Maybe, complete, settle
from .codec import Codec, JSONCodec, as_bytes, decode_json, encode_json
from .errors import Damaged, Fenced
from .record import LAST, MAKING, Changed, Entry, Record, Since, State, nonce, state_text

_PARTS = '{"parts":['
"""How the `about` begins of a value that is in several parts: how many, and the nonce that all of them carry."""

_LOOKS = 2
"""How often an entry is looked for before what is stored counts as damaged: a page may be older than another write."""

_TRIES = 2
"""Writes without an answer after which the store counts as away."""


class Journal(ABC):
    """A compare-and-swap store of one record per execution, and of its entries.

    Four methods are the store's own, each plain or ``async``; the five methods of `sequential.five.Storage` come with
    them.  `sequential.testing.JournalTests` checks them.
    """

    codec: Codec = JSONCodec()
    """How values become bytes; a store may be given another."""

    part_size: int = 1 << 20
    """Bytes of ``data`` that one entry may have."""

    write_size: int = 4 << 20
    """Bytes that one write may have."""

    @abstractmethod
    def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> Maybe[tuple[Record | None, list[Entry]]]:
        """Return a record, and in the same round trip a page of its run's entries, never older than the record.

        Args:
            id: The execution's id.
            start: The place and the part to begin with.
            stop: The place before which to end.

        Returns:
            The record (``None``: there is none) and entries in the order of places and parts: at least the first
            there is in this range, more as long as their size stays moderate (about a megabyte).
        """

    @abstractmethod
    def write(
        self, old: Record | None, new: Record | None, entries: Sequence[Entry] = (), *, flush: bool = True
    ) -> Maybe[bool]:
        """In one atomic step, put a record in the place of another, and keep entries.

        Args:
            old: What must be stored now, told by its stamp; ``None``: nothing.
            new: What to put there; ``None``: the record is removed, and all its entries.
            entries: Each is kept in place of an earlier one of the same run, place and part.  Those of a run that
                `new` has replaced may be removed now or later.
            flush: Whether a power cut must not undo this.

        Returns:
            Whether it was written; if not, nothing was.
        """

    @abstractmethod
    def due(self, now: float, limit: int) -> Maybe[list[Record]]:
        """Return up to `limit` records whose ``due`` is not after `now`, the earliest first."""

    @abstractmethod
    def find(
        self,
        after: str,
        limit: int,
        status: str | None = None,
        workflow: str | None = None,
        before: float | None = None,
    ) -> Maybe[list[Record]]:
        """Return up to `limit` records in the order of their ids, byte by byte.

        Args:
            after: The id behind which to begin; empty: the first.
            limit: How many at most.
            status: Only records of this status.
            workflow: Only records of this workflow.
            before: Only records whose ``changed`` is not after this.
        """

    def create_schema(self) -> Any:  # noqa: B027 - to be overridden by those who have tables
        """Make the tables unless they are there; may be ``async``, and does nothing where none are needed."""

    def close(self) -> Any:  # noqa: B027 - to be overridden by those who hold something
        """Release what it holds, files or connections; may be ``async``, and does nothing by default."""

    async def update(
        self, id: str, known: Record | None, change: Callable[[Record | None, Since], Changed], *, flush: bool = True
    ) -> Record | None:
        """Apply a change until it is written, or there is nothing left to do.

        Args:
            id: The execution's id.
            known: The record as it was read, or written, last.
            change: Given the record as it is stored and, once an answer was lost, the entries that the log has got
                since `known`, returns what to write, or ``None`` if its wish is fulfilled or cannot be.
            flush: As for `write`.

        Returns:
            The record as it stands then.

        Raises:
            Exception: What `change` raises, and what the store raises when it is away.
        """
        record, failure, failures = known, None, 0
        since: Since = None
        while (changed := change(record, since)) is not None:
            if failures == _TRIES:
                assert failure is not None
                raise failure
            new, entries = changed
            new, failure = new and Record(new.id, new.run, nonce(), *new[3:]), None
            try:
                if await self._put(record, new, entries, flush):
                    return new
            except Exception as error:
                failure, failures = error, failures + 1
            try:
                record, since = await self._look(id, known if failures else None)
            except Exception as error:
                raise failure or error from None
            if record is not None and new is not None and record.stamp == new.stamp:
                return record
        return record

    async def _look(self, id: str, known: Record | None) -> tuple[Record | None, Since]:
        """Read a record, and what the log has got since it was `known`."""
        record, page = await settle(self.read(id, (known.step, 0) if known else (0, 0), LAST if known else 0))
        since = page if known else None
        while since and page and record and page[-1].place < record.step - 1:
            _, page = await settle(self.read(id, (page[-1].place + 1, 0), LAST))
            since += page
        return record, since

    async def _put(self, old: Record | None, new: Record | None, entries: Sequence[Entry], flush: bool) -> bool:
        """Write in as many steps as it takes, of which only the last one counts."""
        if sum([len(entry.data) for entry in entries]) <= min(self.part_size, self.write_size):
            return await settle(self.write(old, new, entries, flush=flush))
        batches = _in_parts(entries, self.part_size, self.write_size)
        batch = next(batches)
        for following in batches:
            # What is not counted yet leaves all else as it is.
            begun = old or (new and new._replace(status="making", due=new.changed + MAKING))
            assert begun is not None
            middle = begun._replace(stamp=nonce())
            if not await settle(self.write(old, middle, batch)):
                return False
            old, batch = middle, following
        return await settle(self.write(old, new, batch, flush=flush))

    def get(self, id: str, /) -> Any:
        """Return ``{"step": int}``, or ``None``."""
        return self._use(id, lambda record, _: _state(record))

    def set(self, id: str, state: dict[str, int], /) -> Any:
        """Keep ``{"step": int}``."""
        return self._use(id, lambda record, _: self._keep(id, record, state["step"], None))

    def delete(self, id: str, /) -> Any:
        """Forget an execution and its results."""
        return self._use(id, lambda record, _: self._forget(id, record))

    def get_result(self, id: str, step: int, /) -> Any:
        """Return the result of a step."""
        return self._use(id, lambda record, page: self._result(record, page, step), (step, 0), step + 1)

    def set_result(self, id: str, step: int, data: Any, /) -> Any:
        """Keep the result of a step."""
        encoded = as_bytes(self.codec, self.codec.dumps(data))
        return self._use(id, lambda record, _: self._keep(id, record, None, (step, encoded)))

    def _use(
        self,
        id: str,
        use: Callable[[Record | None, list[Entry]], Coroutine[Any, Any, Any]],
        start: tuple[int, int] = (0, 0),
        stop: int = 0,
    ) -> Any:
        """Read, and do something with it: at once if the store is plain, or else in an awaitable."""
        found: Any = self.read(id, start, stop)
        if not hasattr(type(found), "__await__"):
            return complete(use(*found))

        async def later() -> Any:
            return await use(*await found)

        return later()

    async def _keep(self, id: str, record: Record | None, step: int | None, result: tuple[int, bytes] | None) -> None:
        """Set the step, or keep a result, of an execution that is created if need be."""
        run = nonce() if record is None else record.run

        def change(record: Record | None, _: Since) -> Changed:
            if record is None or record.status == "making":  # it is new, or but the first parts of it are there
                record = Record(id, run, "", 0, "", "running", None, time(), state_text(State()))
            entries = [] if result is None else [Entry(record.run, result[0], 0, "{}", result[1])]
            return record._replace(step=record.step if step is None else step, changed=time()), entries

        await self.update(id, record, change)

    async def _forget(self, id: str, record: Record | None) -> None:
        await self.update(id, record, lambda record, _: None if record is None else (None, ()))

    async def _result(self, record: Record | None, page: list[Entry], step: int) -> Any:
        if record is None or not page:
            return None
        return self.codec.loads((await Log(self, record, page, step + 1).take(step))[1].pop())


async def _state(record: Record | None) -> dict[str, int] | None:
    return None if record is None or record.status == "making" else {"step": record.step}


class Log:
    """Reads entries of a run, one after the other.

    Args:
        journal: Where they are.
        record: Whose.
        page: The first of them, if they were read with the record; they are given up as they are taken.
        stop: The place before which to end.
    """

    __slots__ = ("_journal", "_page", "_record", "_stop")

    def __init__(self, journal: Journal, record: Record, page: list[Entry], stop: int) -> None:
        self._journal, self._record, self._stop = journal, record, stop
        page.reverse()
        self._page = page

    async def take(self, place: int) -> tuple[str, list[bytes]]:
        """Return what an entry is about, and its data alone in a list, so that whoever needs it can give it up.

        Args:
            place: Its place, above those taken before.

        Raises:
            Damaged: When it is missing, or in parts that do not belong together, at a second look, too.
            Fenced: When the run has ended meanwhile.
        """
        page = self._page
        for _ in range(_LOOKS):
            while page and page[-1].place < place:
                page.pop()  # parts that a dead process has left
            if not page:
                await self._read(place, 0)
            if page and page[-1][1:3] == (place, 0):
                about, data = page.pop()[3:]
                if not about.startswith(_PARTS):
                    return about, [data]
                if (whole := await self._join(place, about, data)) is not None:
                    return whole
            page.clear()
        raise Damaged(self._record.id, place)

    async def _join(self, place: int, about: str, data: bytes) -> tuple[str, list[bytes]] | None:
        """Put the parts of a value together, of which the first was taken."""
        page, pieces = self._page, [data]
        try:
            (count, mark), about = decode_json(about[len(_PARTS) - 1 : (end := about.index("]") + 1)]), about[end + 1 :]
            parts = range(1, count)
        except (ValueError, TypeError):
            return None
        for part in parts:
            if not page:
                await self._read(place, part)
            if not page or page[-1][1:4] != (place, part, encode_json(mark)):
                return None
            pieces.append(page.pop().data)
        return f"{{{about}", [b"".join(pieces)]

    async def _read(self, place: int, part: int) -> None:
        record, page = await settle(self._journal.read(self._record.id, (place, part), self._stop))
        if record is None or record.run != self._record.run:
            raise Fenced(self._record.id)
        page.reverse()
        self._page += page


def _in_parts(entries: Sequence[Entry], part_size: int, write_size: int) -> Iterator[list[Entry]]:
    """Return entries, in parts where they are large, in lists of at most `write_size` bytes; at least one list."""
    batch, size = list[Entry](), 0
    for entry in entries:
        for part in [entry] if len(entry.data) <= part_size else _parts(entry, part_size):
            size += len(part.data)
            if size > write_size and batch:
                yield batch
                batch, size = [], len(part.data)
            batch.append(part)
    yield batch


def _parts(entry: Entry, size: int) -> Iterator[Entry]:
    mark, view = encode_json(nonce()), memoryview(entry.data)
    about = f"{_PARTS}{-(-len(view) // size)},{mark}],{entry.about[1:]}"
    for part, start in enumerate(range(0, len(view), size)):
        yield entry._replace(part=part, about=mark if part else about, data=bytes(view[start : start + size]))
