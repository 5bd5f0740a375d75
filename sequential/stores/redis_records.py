"""What the records and the results of `sequential.stores.redis` look like.

The short fields of a record, and whatever else is short, go in and out as one text, with a NUL between any two.  A
result is a line of JSON, which tells whose it is and what was asked, and then the data.  What is large is in parts, and
in its place are their name and their number: of an input in the record, of a result at the end of its line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from ..codec import prepare
from ..errors import StorageError
from ..storage import Record, Result, as_result

_READERS: tuple[Callable[[str], Any], ...] = (
    *(int, int, int, int, str, float, float, int, json.loads, float, str, float),
)

_pieces = prepare(json.JSONEncoder(ensure_ascii=False))


def joined(*values: Any) -> bytes:
    """Return short values as one text, with a NUL before each.

    Raises:
        StorageError: When a text among them has a NUL, or a lone surrogate.
    """
    texts = ["" if value is None else value if isinstance(value, str) else repr(value) for value in values]
    text = "\0".join(["", *texts])
    if text.count("\0") != len(values):
        raise StorageError(f"Redis: no text may have a NUL ({text!r:.100}): nothing was recorded")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StorageError(f"Redis: no text may have a lone surrogate ({error}): nothing was recorded") from error


def fields_of(record: Record) -> tuple[Any, ...]:
    """Return the short fields of a record but its id."""
    return (record.run, record.workflow, record.version, record.first_input, *changing(record))


def changing(record: Record) -> tuple[Any, ...]:
    """Return those fields that a commit may change; an error as JSON, which is never empty."""
    return (record if record.error is None else record._replace(error=_as_json(record.error)))[6:]


def decode_record(id: str, found: list[bytes]) -> tuple[Record, str]:
    """Return the record that a script has found, and the parts of its input, if it is in some."""
    run, workflow, *values, parts = found[0].decode().split("\0")
    others: Any = (reader(value) if value else None for reader, value in zip(_READERS, values, strict=True))
    return Record(id, run, workflow, found[1], *others), parts


def encode_result(run: str, result: Result, parts: str = "") -> bytes:
    """Return what is kept of a result, and of one in parts which these are."""
    step, asked, fingerprint, data, started, ended, error = result
    told = [run, step, asked, fingerprint, started, ended, error]
    return _as_json([*told, parts]).encode() if parts else b"%b\n%b" % (_as_json(told).encode(), data)


def beginning(*values: Any) -> str:
    """Return how a result begins of which these values are told first."""
    return _as_json([*values, 0])[:-2]


def decode_results(values: list[bytes]) -> Iterator[tuple[Result, str]]:
    """Return results from what is kept of them, each with the parts of its data, if it is in some."""
    kept = [value.partition(b"\n") for value in values]
    lines = json.loads(b"[%b]" % b",".join([line for line, _, _ in kept]))
    for (_, step, asked, fingerprint, started, ended, error, *parts), (_, _, data) in zip(lines, kept, strict=True):
        yield as_result((step, asked, fingerprint, data, started, ended, error)), "".join(parts)


def _as_json(value: Any) -> str:
    return "".join(_pieces(value, 0))
