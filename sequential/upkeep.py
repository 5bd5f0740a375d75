"""What is done for executions from outside: ring those that are late, remove those that are old, copy one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from time import time
from typing import Any

from . import record as records
from .blocking import settle
from .codec import fingerprint
from .context import ends_at
from .errors import Damaged, Fenced, IdInUse, StorageError
from .owner import is_dead
from .record import ENDED, GRACE, INPUT, MAKING, PARKED, Changed, Entry, Record, Since, State
from .setup import Setup, Status

_PAGE = 100
"""Records that are looked at together when old ones are removed."""


class Swept(list[str]):
    """The ids that a sweep has rung."""

    __slots__ = ("failed",)

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[str] = []
        """The ids of those that could not be rung, or written: the next sweep will try again."""


async def sweep(setup: Setup, limit: int) -> Swept:
    """Look at up to `limit` executions whose time has come."""
    rung, failures = Swept(), list[StorageError]()
    for record in await settle(setup.journal.due(setup.clock(), limit)):
        if time() >= ends_at.get():
            break  # the rest stays due
        try:
            if record.status in ENDED or record.status == "making":
                await _remove(setup, record)
            else:
                await _look_at(setup, record, rung)
        except Damaged as error:
            setup.observer.tell("damaged", record, "it is parked as stuck", error)
            await _change(setup, record, lambda stored: stored._replace(status="stuck", due=None))
        except StorageError as error:  # of this record alone, perhaps; the others must not wait for that
            failures.append(error)
            rung.failed.append(record.id)
            setup.observer.tell("ring failed", record, "the next sweep will try again", error)
    if failures and not rung:
        raise failures[0]
    return rung


async def _look_at(setup: Setup, record: Record, rung: Swept) -> None:
    """Ring an execution, unless it is held, or another sweep was first."""
    now, before = setup.clock(), records.state_of(record).attempts

    def factor(attempt: int) -> float:
        # From the id and the attempt: spread like a random one, yet the same in every sweep.
        return 0.75 + (fingerprint([record.id, attempt]) or 0) / 2**33

    moved = await _change(setup, record, lambda stored: records.swept(stored, now, is_dead, factor))
    if moved is None:
        return
    state = records.state_of(moved)
    if moved.status == "stuck":
        setup.observer.tell("stuck", moved, state.error)
    elif state.attempts == before + 1:
        if await setup.ring(moved):
            rung.append(record.id)
        else:
            rung.failed.append(record.id)
            with suppress(StorageError):
                await _change(setup, moved, lambda stored: records.not_rung(stored, before))


async def purge(setup: Setup, older_than: float, waiting: bool) -> list[str]:
    """Remove what has ended or is parked, and has not changed for `older_than` seconds, and return its ids."""
    now, purged = setup.clock(), list[str]()
    for status in sorted(ENDED | PARKED | ({"waiting"} if waiting else set())):
        async for record in _found(setup, "", lambda: _PAGE, status, None, now - older_than):
            if status == "waiting" and (record.due is not None or records.is_held(record, now, is_dead)):
                continue
            if await _remove(setup, record):
                purged.append(record.id)
    return purged


async def fork(setup: Setup, source: Record, at: int, id: str) -> Record:
    """Begin an execution with the first `at` answers of another.

    Raises:
        Fenced: When the other was deleted, or began anew, meanwhile.
        IdInUse: When there is one of this id.
    """
    now, run, state = setup.clock(), records.nonce(), records.state_of(source)
    begun = State(errors=state.errors, version=state.version, started=state.started, input=state.input)
    made = Record(id, run, "", 0, source.workflow, "making", now + MAKING, now, records.state_text(begun))
    known: Record | None = None
    place, part = INPUT, 0
    while True:
        found, page = await settle(setup.journal.read(source.id, (place, part), at))
        if found is None or found.run != source.run:
            raise Fenced(source.id)
        if not page:
            break
        known = await _make(setup, known, made, [entry._replace(run=run) for entry in page])
        place, part = page[-1].place, page[-1].part + 1
    return await _make(setup, known, made._replace(step=at, status="running", due=setup.clock() + GRACE), [])


async def _make(setup: Setup, known: Record | None, made: Record, entries: list[Entry]) -> Record:
    """Write a part of an execution that is being made."""

    def change(stored: Record | None, _: Since) -> Changed:
        if stored is not None and stored.run == made.run and stored.status != "making":
            return None  # it was made, though the answer to that was lost, and others may have gone on with it
        if (stored and stored.run) != (known and made.run) and (stored is None or stored.run != made.run):
            raise IdInUse(made.id, "history")
        return made, entries

    record = await setup.journal.update(made.id, known, change)
    assert record is not None
    return record


async def _remove(setup: Setup, record: Record) -> bool:
    """Remove an execution that is as it was seen, and return whether it is gone."""

    def change(stored: Record | None, _: Since) -> Changed:
        return (None, ()) if stored is not None and stored.stamp == record.stamp else None

    return await setup.journal.update(record.id, record, change) is None


async def _change(setup: Setup, record: Record, change: Callable[[Record], Record]) -> Record | None:
    """Apply a change to an execution that is as it was seen; ``None``: it is not, so somebody takes care of it."""
    is_ours = False

    def changed(stored: Record | None, _: Since) -> Changed:
        nonlocal is_ours
        is_ours = stored is not None and stored.stamp == record.stamp
        return (change(stored), ()) if is_ours and stored is not None else None

    found = await setup.journal.update(record.id, record, changed)
    return found if is_ours else None


async def statuses(setup: Setup, after: str, limit: int, status: str | None, workflow: str | None) -> list[Status]:
    """Return how executions stand, without those whose record cannot be read."""
    standing = list[Status]()
    async for record in _found(setup, after, lambda: limit - len(standing), status, workflow):
        try:
            standing.append(setup.status(record))
        except StorageError as error:
            setup.observer.tell("damaged", record, "its record cannot be read", error)
    return standing


async def _found(setup: Setup, after: str, wanted: Callable[[], int], *what: Any) -> AsyncIterator[Record]:
    """Find records page by page, for as long as more are wanted."""
    while (limit := wanted()) > 0:
        page = await settle(setup.journal.find(after, limit, *what))
        for record in page:
            yield record
        # An id that cannot be read sorts elsewhere than in the store, and would be found for ever.
        if len(page) < limit or page[-1].id <= after:
            return
        after = page[-1].id
