"""What the documents of `sequential.stores.firestore` look like, and what to do about what Firestore says.

An execution is the document ``x-{id}``.  Below it are its results ``steps/{run}-{step}`` and its signals
``signals/{key}``, of which the record names those that wait to be taken.  A value too large for one document names the
stem of its parts, which nobody else writes: what a writer leaves behind that is refused, nobody looks at.  Whatever is
written below a record, even ahead of it, its writer commits only as long as the document of the record is there as it
was read: who removes that first may remove all that was below it then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import methodcaller
from time import time
from typing import Any, NamedTuple, TypeAlias

from ..errors import InvalidId, StorageError
from ..storage import Record
from .clients import extra

with extra("firestore"):
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.firestore import LastUpdateOption

Fields: TypeAlias = dict[str, Any]
Write: TypeAlias = Callable[[Any], Any]
"""What to do to a batch."""

SCHEMA = 1
"""The version of the documents; newer ones are refused."""

INPUT = -1
"""The step under which a large input is kept."""

INLINE = 1 << 18
"""Bytes of an input that stands in the record's own document, where names of signals need room too."""

NAMES = (1 << 20) - INLINE - (1 << 16)
"""Bytes that the names of signals may take in a record's document, which stays writable whatever else changes."""

RESERVED: Fields = {"schema": SCHEMA, "expires": datetime.fromtimestamp(0, UTC)}
"""A document that counts as absent, for a record whose large input is being written."""

_LATEST = 253_402_300_799
"""The last second that a timestamp can tell: the end of the year 9999."""

AGAIN = (
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
    exceptions.Unknown,
)
REFUSED = (exceptions.AlreadyExists, exceptions.FailedPrecondition, exceptions.NotFound)
TOO_MUCH = exceptions.InvalidArgument

_LOGIN = "run gcloud auth application-default login, or give the client credentials="
_UNSURE = "try again; a write may have been recorded all the same"
_AWAY = f"check that it can be reached, or give a longer timeout=: {_UNSURE}"
_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.NotFound, "create the database, or give the client the right project= and database="),
    (exceptions.PermissionDenied, "grant the client's account the role roles/datastore.user"),
    (exceptions.Unauthenticated, _LOGIN),
    (GoogleAuthError, _LOGIN),
    (exceptions.ResourceExhausted, "a quota is used up: raise it, or wait for the next day"),
    (exceptions.Aborted, "too many write to one execution at once: try again"),
    (exceptions.ServiceUnavailable, _AWAY),
    (exceptions.DeadlineExceeded, _AWAY),
    (exceptions.FailedPrecondition, "the database must be in native mode, with single-field indexes as they are made"),
    (TOO_MUCH, "nothing was recorded; a document holds at most 1 MiB"),
    (OSError, "name the project, firestore://project, or set GOOGLE_CLOUD_PROJECT"),
    (ValueError, "nothing was recorded"),
)


class Stored(NamedTuple):
    """A record's document: when it was last written, if it is there, and its fields, unless it has expired."""

    time: Any
    fields: Fields


ABSENT = Stored(None, {})


def document(records: Any, id: str) -> Any:
    """Return the document of an execution.

    Raises:
        InvalidId: When it can have none.
    """
    if "/" in id:
        raise InvalidId(id)
    return records.document(f"x-{id}")  # names like __this__ are not allowed


def changing(record: Record) -> Fields:
    """Return what a commit may change of a record."""
    return dict(zip(Record._fields[6:], record[6:], strict=True)) | {"rings": record.rings_at}


def fields_of(record: Record) -> Fields:
    """Return all fields of a record that has just begun, with its input unless that is large."""
    fixed = dict(zip(Record._fields[1:6], record[1:6], strict=True))
    input = None if len(record.input) > INLINE else record.input
    return fixed | {"input": input, "schema": SCHEMA, "closed": [], "expires": None} | changing(record)


def is_execution(found: Any) -> bool:
    """Whether it is one of ours that was found in the collection of executions."""
    return found.id.startswith("x-") and isinstance(found.to_dict().get("schema"), int)


def stored(found: Any) -> Stored:
    """Return what was read of a record's document.

    Raises:
        StorageError: When a later release has written it, or something else.
    """
    fields: Fields = found.to_dict() or {}
    if found.exists and not is_execution(found):
        raise StorageError(f"Firestore: {found.reference.path} is no execution: give another collection=")
    version = fields.get("schema", 0)
    if version > SCHEMA:
        raise StorageError(
            f"Firestore: documents are of version {version}, this release knows {SCHEMA}: upgrade sequential-flow"
        )
    expires = fields.get("expires")  # Google may take a day to remove what has expired
    return Stored(found.update_time, {} if expires is not None and expires.timestamp() <= time() else fields)


def is_held(found: Stored, held: Record, absent: str | None = None) -> bool:
    """Whether what is stored has a record's run and token, and no signal of the name `absent`."""
    fields = found.fields
    return (fields.get("run"), fields.get("token")) == (held.run, held.token) and absent not in pending(fields)


def pending(fields: Fields) -> dict[str, str]:
    """Return the entries of the signals that wait to be taken, by their names."""
    return {entry.split()[0]: entry for entry in fields.get("pending", ())}


def entry_of(name: str, key: str, count: int) -> str:
    """Return what a record says of a signal: its name, its document and how many parts that has."""
    return f"{name} {key} {count}"


def keys_of(entry: str) -> list[str]:
    """Return the document of a signal, and those of its parts."""
    _, key, count = entry.split()
    return [key, *(part_key(key, number) for number in range(int(count)))]


def add(fields: Fields, entry: str, id: str) -> Fields:
    """Return a record's signals after one was sent.

    Raises:
        StorageError: When its document has no room for one more.
    """
    waits = [*fields["pending"], entry]
    if sum(len(each) + 1 for each in (*waits, *fields["closed"])) > NAMES:
        raise StorageError(
            f"Firestore: the signals of execution {id!r} fill its document, and this one was not recorded: let it take "
            f"those that wait, or forget those it took by again()"
        )
    return {"pending": waits, "signal": entry}


def take(fields: Fields, absent: str | None, taken: str | None) -> tuple[Fields, list[str]]:
    """Return a record's signals after one name was opened and one signal taken, and the entry of that if it waited."""
    closed, waiting = [name for name in fields["closed"] if name != absent], pending(fields)
    gone = [entry for name, entry in waiting.items() if name == taken]
    waits = [entry for name, entry in waiting.items() if name != taken]
    return {"pending": waits, "closed": closed if taken is None else [*closed, taken]}, gone


def step_key(run: str, step: int) -> str:
    """Return the document of a result."""
    return f"{run}-{step:010}"


def part_key(stem: str, number: int) -> str:
    """Return the document of a part."""
    return f"{stem}-{number:06}"


def is_part(document: Any) -> bool:
    """Whether a document is a part, and so as large as can be."""
    return re.search(r"-\d{6}$", document.id) is not None


def expires_at(fields: Fields, ttl: float) -> float:
    """Return when a record expires: so long after its last change, or after the next one if that is known."""
    return float(max(fields["changed"], fields["rings"] or 0.0, fields["wake"] or 0.0) + ttl)


def expiring(seconds: float | None) -> Fields:
    """Return the field that tells Firestore when to remove a document."""
    return {} if seconds is None else {"expires": datetime.fromtimestamp(min(seconds, _LATEST), UTC)}


def write_of(document: Any, stored: Stored, changes: Fields | None) -> Write:
    """Return how to create, change or remove (``None``) a record's document, as long as it is as it was read."""
    if stored.time is None:
        return methodcaller("create", document, changes)
    unchanged = LastUpdateOption(stored.time)
    if changes is None:
        return methodcaller("delete", document, unchanged)
    # What changes nothing leaves the document as it is, but is refused like anything else.
    differs = {name: value for name, value in changes.items() if stored.fields.get(name, document) != value}
    return methodcaller("update", document, differs or {"run": stored.fields["run"]}, unchanged)


def removal(document: Any) -> Write:
    """Return how to remove a document."""
    return methodcaller("delete", document)


def renewal(document: Any, lives: float) -> Write:
    """Return how to let a document live longer, if it is there."""
    return methodcaller("update", document, expiring(lives))


def between(collection: Any, start: str, stop: str) -> Any:
    """Return a query for documents in the order of their names, from `start` up to `stop`."""
    first, last = {"__name__": collection.document(start)}, {"__name__": collection.document(stop)}
    return collection.order_by("__name__").start_at(first).end_before(last)


@contextmanager
def explained() -> Iterator[None]:
    """Raise what the driver raises as an error of ours."""
    try:
        yield
    except (exceptions.GoogleAPIError, GoogleAuthError, OSError, ValueError) as error:
        raise _explanation(error) from error
    except TypeError as error:
        broken = error.__context__  # at a stream that breaks before its first document, Google's client fails itself
        if not isinstance(broken, exceptions.GoogleAPIError):
            raise
        raise _explanation(broken) from error


def _explanation(error: Exception) -> StorageError:
    cause = getattr(error, "cause", None) or error
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(cause, kind)), _UNSURE)
    return StorageError(f"Firestore: {' '.join(str(error).split())}: {remedy}")
