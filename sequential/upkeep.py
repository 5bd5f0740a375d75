"""What is done for executions from outside: ring those that are late, remove those that are old."""

from contextlib import suppress
from time import time

from .codec import fingerprint
from .context import ends_at
from .errors import Fenced, StorageError
from .setup import GRACE, Setup
from .storage import CLOSED, Record, is_whole, settle

LONGEST_WAIT = 3600.0
"""Seconds that the sweep waits at most before it rings the same execution again."""

ATTEMPTS = 10
"""Rings of the sweep without a new step after which an execution is parked: some four hours of backoff."""

PAGE = 100
"""Records that are looked at together when old ones are removed."""


async def sweep(setup: Setup, limit: int) -> list[str]:
    """Ring up to `limit` executions whose time has come, and return their ids."""
    rung, failures = list[str](), list[StorageError]()
    for record in await settle(setup.journal.due(setup.clock(), check_limit(limit))):
        if time() >= ends_at.get():
            break  # the rest stays due
        stuck = record.attempts >= ATTEMPTS
        # Jitter from the id and the attempt: spread like a random one, yet the same in every sweep.
        wait = min(GRACE * 2**record.attempts, LONGEST_WAIT)
        wait *= 0.75 + (fingerprint([record.id, record.attempts]) or 0) / 2**33
        moved = record._replace(token=record.token + 1, lease=0.0)
        if stuck:
            last = f", the last error being {record.error}" if record.error else ""
            reason = f"no progress in {ATTEMPTS} attempts of the sweep{last}: mend what is wrong, then resume it"
            moved = moved._replace(status="stuck", due=None, attempts=0, error=reason, changed=setup.clock())
        else:
            moved = moved._replace(due=setup.clock() + wait, attempts=record.attempts + 1)
        try:
            await settle(setup.journal.commit(moved, record.token))
        except Fenced:
            continue  # another sweep or an invocation was first
        except StorageError as error:  # of this record alone, perhaps; the others must not wait for that
            failures.append(error)
            setup.observer.tell("ring failed", record, "the next sweep will try again", error)
            continue
        if stuck:
            setup.observer.tell("stuck", moved, moved.error or "")
        elif await setup.ring(moved):
            rung.append(record.id)
        else:  # that nobody can be rung is not the execution's fault, and must not park it
            with suppress(Fenced, StorageError):
                tried = moved._replace(token=moved.token + 1, attempts=record.attempts)
                await settle(setup.journal.commit(tried, moved.token))
    if failures and not rung:
        raise failures[0]
    return rung


async def purge(setup: Setup, older_than: float) -> list[str]:
    """Remove what has not changed for `older_than` seconds and is not to be due, and return its ids."""
    journal, before = setup.journal, setup.clock() - older_than
    purged, after = list[str](), ""
    while records := await settle(journal.find(after, PAGE)):
        after = records[-1].id
        for record in records:
            if max(record.changed, record.rings_at or 0.0) > before:
                continue
            with suppress(Fenced):  # it has just gone on, or is about to
                last = record
                if record.status not in CLOSED:
                    last = cancelled(record, record.changed)
                    await settle(journal.commit(last, record.token, absent=record.waits))
                await settle(journal.remove(last.id, last))
                purged.append(record.id)
    return purged


def check_limit(limit: int) -> int:
    """Return `limit` if a page can be that long."""
    if not is_whole(limit, 1, 2**31 - 1):
        raise ValueError(f"limit= is a number of executions from 1 to {2**31 - 1:,}, not {limit!r}")
    return limit


def cancelled(record: Record, now: float) -> Record:
    """Return the record of an execution that never runs again."""
    ended = record._replace(token=record.token + 1, status="cancelled", due=None, lease=0.0, waits=None)
    return ended._replace(changed=now)
