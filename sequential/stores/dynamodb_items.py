"""What the items of `sequential.stores.dynamodb` look like, and how DynamoDB is spoken to about them.

The items of an execution share the partition key ``id``.  By the sort key ``part`` they are its record, its results
``{run}#{step}``, and the parts of what is too large for one item, ``{run}:...:{nonce}:{number}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf
from time import time
from typing import Any, TypeAlias

from ..errors import StorageError
from ..storage import CLOSED, Record, Result

Value: TypeAlias = dict[str, Any]
Item: TypeAlias = dict[str, Value]

SCHEMA = 1
"""The version of the items; newer ones are refused."""

PART = 1 << 18
"""Bytes of a result in one item, which may have 400 KB; simulators count them as base64, a third more."""

INPUT = 1 << 12
"""Bytes of an input that stand in the record: a claim reads them at once, but each commit is charged for them."""

SIGNAL = 1 << 8
"""Bytes of a signal that stand in the record, in which many signals must have room."""

FULL = 368 << 10
"""Bytes of a record that takes no more signals: of 400 KB, the rest is left to errors, inputs and leases."""

ATTEMPTS = 10
"""How often a request is made that meets others at the same execution, or is throttled."""

CHANGING = Record._fields[6:]
FIELDS = (*CHANGING, "run", "workflow", "version", "first_input")
"""The fields of a record besides its id and its input; a commit writes `CHANGING` alone."""
ABOUT = ("asked", "fingerprint", "started", "ended", "error")
"""The fields of a result besides its step and its data; what is `None` is left out."""

RECORD = "record"

NEW = ":new"
"""What follows the run in the keys of an input's parts that are written before there is a record."""

SENT = ":signal"
"""What follows the run in which a signal has come in the keys of its parts."""

_FLOATS = frozenset({"due", "wake", "changed", "started", "ended"})
_CLOSED = {f"closed{number}": {"S": status} for number, status in enumerate(sorted(CLOSED))}
_CONSTANTS = _CLOSED | {"zero": {"N": "0"}, "one": {"N": "1"}, "schema": {"N": str(SCHEMA)}}
OPEN = f"NOT #status IN ({', '.join(f':{name}' for name in _CLOSED)})"
"""The condition that a record is not closed."""

FOREVER = 1e15
"""Seconds since the epoch that stand for infinity, which is no number to DynamoDB, and for all that is later."""

_DECIMALS = 100
"""Decimal places that are kept of a time: DynamoDB knows no number between 0 and 1e-130."""


def value(of: Value | str | bytes | float | None) -> Value:
    """Return a value as DynamoDB takes it, if it is not one yet; a float as a text, which keeps its last bit."""
    if isinstance(of, dict):
        return of
    if of is None:
        return {"NULL": True}
    # What is derived from a number may write itself in another way.
    if isinstance(of, int):
        return {"N": int.__repr__(of)}
    if isinstance(of, float):
        return {"S": float.__repr__(of)}
    return {"B": of} if isinstance(of, bytes) else {"S": of}


def number(seconds: float) -> Value:
    """Return a time as a number, which is compared as such."""
    within = max(-FOREVER, min(float(seconds), FOREVER))
    return {"N": repr(round(within, _DECIMALS) + 0.0).removesuffix(".0")}  # 0.0 takes the sign of -0.0 away


def encode(fields: Record | Result, names: Iterable[str]) -> Item:
    """Return fields of a record or a result."""
    return {name: (number if name == "lease" else value)(getattr(fields, name)) for name in names}


def decode(item: Item, names: Iterable[str]) -> dict[str, Any]:
    """Return what `encode` was given."""
    return {name: _decode(name, *item[name].items()) for name in names}


def _decode(name: str, stored: tuple[str, Any]) -> Any:
    kind, text = stored
    if kind == "NULL":
        return None
    if name == "lease":
        return inf if float(text) == FOREVER else float(text)
    if name in _FLOATS:
        return float(text)
    return int(text) if kind == "N" else text


def size(of: object) -> int:
    """Return how many bytes an item, or what it consists of, takes at DynamoDB, or a few more."""
    if isinstance(of, dict):
        return sum(3 + size(name) + size(held) for name, held in of.items())
    if isinstance(of, list):
        return sum(3 + size(held) for held in of)
    return len(of.encode() if isinstance(of, str) else of) if isinstance(of, str | bytes) else 1


def key(id: str, part: str = RECORD) -> Item:
    """Return the key of an item, that of the record when no part is named."""
    return {"id": {"S": id}, "part": {"S": part}}


def key_of(record: Record, step: int) -> str:
    """Return the sort key of a result."""
    return f"{record.run}#{step:010}"


def expressions(values: Mapping[str, Any], signal: str = "", **texts: str) -> dict[str, Any]:
    """Return expressions with the names, and those of the values, that they speak of; conditions show what is there."""
    text = " ".join(texts.values())
    known = {**_CONSTANTS, "wall": int(time()), **values}
    spoken = {f":{name}": value(known[name]) for name in re.findall(r":(\w+)", text)}
    names = {f"#{name}": signal if name == "signal" else name for name in re.findall(r"#(\w+)", text)}
    request: dict[str, Any] = {**texts, "ExpressionAttributeNames": names}
    if spoken:
        request["ExpressionAttributeValues"] = spoken
    if "ConditionExpression" in texts:
        request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    return request


def within(id: str, first: str = "", last: str = "", **texts: str) -> dict[str, Any]:
    """Return a query for the items of an execution: those with sort keys from `first` to `last`, or all."""
    condition = "#id = :id AND #part BETWEEN :first AND :last" if last else "#id = :id"
    return expressions({"id": id, "first": first, "last": last}, KeyConditionExpression=condition, **texts)


def living(item: Item | None) -> Item | None:
    """Return an item unless it has expired: DynamoDB deletes it some time later."""
    return None if item is None or ("expires" in item and int(item["expires"]["N"]) <= int(time())) else item


def is_held(item: Item | None, held: Record) -> bool:
    """Whether what is stored has the run and the token of a record."""
    return item is not None and (item["run"], item["token"]) == (value(held.run), value(held.token))


def check_version(item: Item | None) -> None:
    """Refuse what a later release has written."""
    version = int(item["schema"]["N"]) if item else 0
    if version > SCHEMA:
        raise StorageError(
            f"DynamoDB: the table is of version {version}, this release knows {SCHEMA}: upgrade sequential-flow"
        )
