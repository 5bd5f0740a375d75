"""What the items of `sequential.stores.dynamodb` look like, and how DynamoDB is spoken to about them.

The items of an execution share the partition key ``id``.  By the sort key ``part`` they are its record, its results
``{run}#{step}``, and the parts of what is too large for one item, ``{run}:...:{nonce}:{number}``.  Parts are seen only
by way of the item that names their nonce, so a writer who is refused leaves behind only what nobody looks at, and what
goes when the execution is removed; a creation that is broken off leaves parts of a large input, which go only by a
`ttl`.  Two indexes hold the records alone, for nothing else has a ``shard``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf
from time import time
from typing import Any, TypeAlias
from zlib import crc32

from ..errors import StorageError
from ..storage import CLOSED, Record, Result
from .clients import extra

with extra("dynamodb"):
    from botocore.exceptions import BotoCoreError, ClientError

Value: TypeAlias = dict[str, Any]
Item: TypeAlias = dict[str, Value]

SCHEMA = 1
"""The version of the items; newer ones are refused."""

SHARDS = 4
"""Partitions of the indexes: each takes 1,000 writes a second, and is one more to ask."""

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
FIXED = ("run", "workflow", "version", "first_input")
ABOUT = ("asked", "fingerprint", "started", "ended", "error")
"""The fields of a result besides its step and its data; what is `None` is left out."""

RECORD = "record"

SENT = ":signal"
"""What follows the run in which a signal has come in the keys of its parts."""
_FLOATS = frozenset({"due", "wake", "changed", "started", "ended"})
_CLOSED = {f"closed{number}": {"S": status} for number, status in enumerate(sorted(CLOSED))}
_CONSTANTS = _CLOSED | {"zero": {"N": "0"}, "one": {"N": "1"}, "schema": {"N": str(SCHEMA)}}

_OPEN = f"NOT #status IN ({', '.join(f':{name}' for name in _CLOSED)})"
_ALIVE = "(attribute_not_exists(#expires) OR #expires > :wall)"
_UNSENT = "attribute_not_exists(#pending.#signal) AND NOT contains(#closed, :name)"
HELD = f"#run = :held_run AND #token = :held_token AND {_ALIVE}"
FREE = f"#lease <= :now AND {_OPEN} AND #schema <= :schema AND {_ALIVE}"
FREE += " AND (attribute_not_exists(#rings) OR #rings <= :lease)"
FOR_STEP = " AND #run = :by_run AND #step <= :by_step"
TAKE = "SET #token = #token + :one, #lease = :lease, #claim = :claim, #rings = if_not_exists(#rings, :lease)"
RESTING = f"{HELD} AND #lease = :zero AND {_UNSENT}"
RUNNING = f"#run = :held_run AND {_OPEN} AND {_ALIVE} AND NOT (#waits = :name AND #lease = :zero) AND {_UNSENT}"

_ROUNDED = 64.0
"""Seconds by which what is held may stand too early in the index of what is due, so that commits leave it be."""

FOREVER = 1e15
"""Seconds since the epoch that stand for infinity, which is no number to DynamoDB, and for all that is later."""

_DECIMALS = 100
"""Decimal places that are kept of a time: DynamoDB knows no number between 0 and 1e-130."""

THROTTLED = "raise the table's throughput, or try again later"
_CREDENTIALS = "give the client valid credentials"
_CONFLICT = "others write the same execution: try again"
_REFUSED = "nothing was recorded"
_UNKNOWN = "it may have been recorded or not: look, or try again"
_FAILED = 500
"""HTTP's status from which on it was the server that failed, and not the request that was refused."""
_LIMITED = "an item holds at most 400 KB, a number 38 digits, and table= must name what create_schema() has made"
BUSY = frozenset(
    {
        "ProvisionedThroughputExceeded",
        "ThrottlingError",
        "TransactionConflict",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
"""What a client does not try again by itself."""

_REMEDIES = {
    "AccessDeniedException": "grant these credentials what is missing",
    "ExpiredTokenException": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "ProvisionedThroughputExceeded": THROTTLED,
    "ProvisionedThroughputExceededException": THROTTLED,
    "RequestLimitExceeded": THROTTLED,
    "ResourceNotFoundException": "its table is not there: call create_schema() once",
    "ThrottlingError": THROTTLED,
    "ThrottlingException": THROTTLED,
    "TransactionConflict": _CONFLICT,
    "TransactionConflictException": _CONFLICT,
    "TransactionInProgressException": _CONFLICT,
    "UnrecognizedClientException": _CREDENTIALS,
    "ValidationError": _LIMITED,
    "ValidationException": _LIMITED,
}


def _keys(partition: str, sort: str) -> list[dict[str, str]]:
    return [{"AttributeName": partition, "KeyType": "HASH"}, {"AttributeName": sort, "KeyType": "RANGE"}]


_LISTED = {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["status", "workflow"]}
TABLE: dict[str, Any] = {
    "AttributeDefinitions": [
        {"AttributeName": name, "AttributeType": "N" if name == "rings" else "S"}
        for name in ("id", "part", "shard", "rings")
    ],
    "KeySchema": _keys("id", "part"),
    "GlobalSecondaryIndexes": [
        {"IndexName": "due", "KeySchema": _keys("shard", "rings"), "Projection": {"ProjectionType": "KEYS_ONLY"}},
        {"IndexName": "ids", "KeySchema": _keys("shard", "id"), "Projection": _LISTED},
    ],
    "BillingMode": "PAY_PER_REQUEST",
}
"""What the table is, besides its name."""


def missing_from(table: Mapping[str, Any]) -> list[str]:
    """Return which indexes a table lacks that is described so, or has with other keys or too few attributes."""
    indexes = {index["IndexName"]: index for index in table.get("GlobalSecondaryIndexes", ())}
    return [
        f"an index {wanted['IndexName']!r} of {', '.join(_attributes(wanted))}"
        for wanted in TABLE["GlobalSecondaryIndexes"]
        if not _serves(indexes.get(wanted["IndexName"]), wanted)
    ]


def _serves(index: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    if index is None or index["KeySchema"] != wanted["KeySchema"]:
        return False
    return index["Projection"]["ProjectionType"] == "ALL" or {*_attributes(index)} >= {*_attributes(wanted)}


def _attributes(index: Mapping[str, Any]) -> list[str]:
    return [*(key["AttributeName"] for key in index["KeySchema"]), *index["Projection"].get("NonKeyAttributes", ())]


class Refused(Exception):
    """A condition did not hold.

    Args:
        item: The item as it stands, if there is one.
    """

    def __init__(self, item: Item | None) -> None:
        self.item = item


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


def shard_of(id: str) -> Value:
    """Return in which partition of the indexes a record stands."""
    return {"S": str(crc32(id.encode()) % SHARDS)}


def rings(record: Record) -> Value | None:
    """Return where a record stands in the index of what is due: never later than it rings."""
    rings_at = min(record.lease, FOREVER) // _ROUNDED * _ROUNDED if record.lease else record.due
    return None if rings_at is None else number(rings_at)


def parts_of(data: Value) -> list[str]:
    """Return the sort keys of the parts that a large value consists of."""
    if "B" in data:
        return []
    stem, count = data["L"]
    return [f"{stem['S']}:{index:06}" for index in range(int(count["N"]))]


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


def update(fields: Iterable[str], optional: Mapping[str, Value | None], removed: Iterable[str]) -> str:
    """Return an expression that writes fields, and others if they have a value; what has none it removes."""
    sets = [f"#{name} = :{name}" for name in (*fields, *(name for name in optional if optional[name]))]
    gone = [*removed, *(f"#{name}" for name in optional if not optional[name])]
    return f"SET {', '.join(sets)}" + (f" REMOVE {', '.join(gone)}" if gone else "")


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


def is_by(claim: Value, item: Item | None) -> bool:
    """Whether a claim has succeeded after all: a client that repeats what was lost is refused by its own success."""
    return item is not None and item.get("claim") == claim


def check_version(item: Item | None) -> None:
    """Refuse what a later release has written."""
    version = int(item["schema"]["N"]) if item else 0
    if version > SCHEMA:
        raise StorageError(
            f"DynamoDB: the table is of version {version}, this release knows {SCHEMA}: upgrade sequential-flow"
        )


def explain(error: BotoCoreError | ClientError) -> StorageError:
    """Return what the client says, with a remedy."""
    # What botocore itself raises may have a response too, which is none of DynamoDB's.
    response: dict[str, Any] = error.response if isinstance(error, ClientError) else {}
    reasons: list[dict[str, str]] = response.get("CancellationReasons", [])
    told = " ".join([str(error), *(reason.get("Message") or "" for reason in reasons)])
    codes = [*(reason.get("Code", "") for reason in reasons), response.get("Error", {}).get("Code", "")]
    refused = response.get("ResponseMetadata", {}).get("HTTPStatusCode", _FAILED) < _FAILED
    remedy = next((_REMEDIES[code] for code in codes if code in _REMEDIES), _REFUSED if refused else _UNKNOWN)
    if isinstance(error, BotoCoreError):
        remedy = "check that it can be reached, and the client's region, endpoint and credentials"
    return StorageError(f"DynamoDB: {' '.join(told.split())}: {remedy}")
