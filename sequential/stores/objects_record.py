"""What the object ``record`` of an execution holds, for `sequential.stores.objects`, and how it becomes bytes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, TypeAlias

from ..codec import prepare
from ..errors import Fenced
from ..storage import Record, Result, as_result
from .bucket import Damaged, Found, Kept

Value: TypeAlias = bytes | Kept

_pieces = prepare(json.JSONEncoder(separators=(",", ":")))


class State(NamedTuple):
    """What the object ``record`` holds; without a record it is a tombstone, or not there at all."""

    record: Record | None = None
    input: Value = b""
    signals: dict[str, Value | None] = {}  # noqa: RUF012 - never changed; `None`: taken, and closed
    segments: tuple[tuple[int, int, Kept], ...] = ()
    """The first and the last step in each; a later one counts more than an earlier, and the tail more than they."""
    tail: dict[int, bytes] = {}  # noqa: RUF012 - never changed
    """Results by their steps, as `encode_result` has made them: most commits write them once more."""
    gone: tuple[str, ...] = ()
    """Earlier runs, of which something may still be there."""
    found: Found | None = None


def check_held(state: State, record: Record, token: int) -> Record:
    """Return the record if it is of this run and has this token; if not, the writer is fenced off."""
    stored = state.record
    if stored is None or stored.run != record.run or stored.token != token:
        raise Fenced(record.id, token)
    return stored


def encode_result(result: Result, data: Value) -> bytes:
    """Return its step and the length of the rest, a line of JSON, and the data unless that is kept elsewhere."""
    kept, inline = (None, data) if isinstance(data, bytes) else (data, b"")
    line = "".join(_pieces((*result[:3], kept, *result[4:]), 0)).encode()
    return b"%d %d\n%s\n%s" % (result.step, len(line) + 1 + len(inline), line, inline)


def decode_result(item: bytes) -> tuple[Result, Kept | None]:
    """Return a result, and what its data are if that is kept elsewhere."""
    _, line, inline = item.split(b"\n", 2)
    step, asked, checksum, kept, *others = json.loads(line)
    return as_result((step, asked, checksum, inline, *others)), kept and Kept(*kept)


def encode(state: State) -> bytes:
    """Return a line of JSON, the bytes that it gives the lengths of, and the tail."""
    parts: list[bytes] = []

    def place(value: Value | None) -> Any:
        if not isinstance(value, bytes):
            return value
        parts.append(value)
        return {"bytes": len(value)}

    body: dict[str, Any] = {}
    if state.record is not None:
        body["record"] = {name: value for name, value in state.record._asdict().items() if name != "input"}
    if state.input:
        body["input"] = place(state.input)
    if state.signals:
        body["signals"] = {name: place(value) for name, value in state.signals.items()}
    body |= {name: value for name, value in (("segments", state.segments), ("gone", state.gone)) if value}
    line = "".join(_pieces(body, 0)).encode()
    return b"%s\n%s" % (line, b"".join([*parts, *state.tail.values()]))


def decode(found: Found | None) -> State:
    """Return what an object holds.

    Raises:
        Damaged: When it is not what `encode` has made.
    """
    if found is None:
        return State()
    try:
        return decode_body(found.data)._replace(found=found)
    except (ValueError, TypeError, LookupError) as error:
        raise Damaged(f"object store: a record is damaged ({error}): restore it, or delete its object") from error


def decode_body(data: bytes) -> State:
    """Return what `encode` was given."""
    end = data.index(b"\n") + 1

    def take(value: dict[str, Any]) -> Any:
        nonlocal end
        size = value.get("bytes")
        if not isinstance(size, int):
            return value
        end += size
        return data[end - size : end]

    body, tail = json.loads(data[:end], object_hook=take), dict[int, bytes]()
    while end < len(data):
        start, end = end, data.index(b"\n", end) + 1
        step, size = map(int, data[start:end].split())
        end += size
        tail[step] = data[start:end]
    if end > len(data):
        raise ValueError("its end is missing")
    return State(
        Record(**body["record"]) if "record" in body else None,
        _as_value(body.get("input", b"")),
        {name: data if data is None else _as_value(data) for name, data in body.get("signals", {}).items()},
        tuple((first, last, Kept(*kept)) for first, last, kept in body.get("segments", ())),
        tail,
        tuple(body.get("gone", ())),
    )


def _as_value(value: Any) -> Value:
    return value if isinstance(value, bytes) else Kept(*value)
