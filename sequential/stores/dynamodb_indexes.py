"""The table of `sequential.stores.dynamodb` and its two indexes: how they are made, and what is found in them.

The indexes hold the records alone, for nothing else has a ``shard``: one those that ring, by when they do, the other
all, by their ids.  Both are some time behind, so what they show is read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from ..errors import StorageError
from ..storage import Record
from . import dynamodb_items as ddb
from .dynamodb_parts import as_record
from .dynamodb_table import Refused, Table

_SHARDS = 4
"""Partitions of the indexes: each takes 1,000 writes a second, and is one more to ask."""

_PAGE = 100
"""Records that are read at once: as many as DynamoDB allows."""

_ROUNDED = 64.0
"""Seconds by which what is held may stand too early in the index of what is due, so that commits leave it be."""


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


async def create(table: Table, *, expires: bool) -> None:
    """Make a table and its indexes unless they are there, and wait for them; if it is to, let its items expire."""
    await table.ask("create_table", but="ResourceInUseException", **TABLE)
    await table.wait_until_ready()
    if missing := _missing_from((await table.ask("describe_table"))["Table"]):
        raise StorageError(
            f"DynamoDB: table {table.name!r} lacks {', '.join(missing)}: add what is missing, or let table= name"
            " what create_schema() has made"
        )
    version = ddb.key("#", "schema") | {"schema": ddb.value(ddb.SCHEMA)}
    check = ddb.expressions({}, ConditionExpression="attribute_not_exists(#id) OR #schema <= :schema")
    try:
        await table.ask("put_item", Item=version, **check)
    except Refused as refused:
        ddb.check_version(refused.item)
    if expires:
        await _let_expire(table)


async def _let_expire(table: Table) -> None:
    """Let items expire, unless they do."""
    try:
        await table.ask("update_time_to_live", TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"})
    except StorageError:  # which it also is to say so twice, or to be one of two who say so
        lives = (await table.ask("describe_time_to_live"))["TimeToLiveDescription"]
        if lives.get("AttributeName") != "expires" or lives["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
            raise


def _missing_from(table: Mapping[str, Any]) -> list[str]:
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


def shard_of(id: str) -> ddb.Value:
    """Return in which partition of the indexes a record stands."""
    return {"S": str(crc32(id.encode()) % _SHARDS)}


def rings_of(record: Record) -> ddb.Value | None:
    """Return where a record stands in the index of what is due: never later than it rings."""
    rings_at = min(record.lease, ddb.FOREVER) // _ROUNDED * _ROUNDED if record.lease else record.due
    return None if rings_at is None else ddb.number(rings_at)


async def due(table: Table, now: float, limit: int) -> list[Record]:
    """Find records that ring, as `Journal.due` says."""
    found: list[Record] = []
    for shard in range(_SHARDS):
        values = {"shard": str(shard), "now": ddb.number(now)}
        request = ddb.expressions(values, KeyConditionExpression="#shard = :shard AND #rings <= :now")
        request |= {"IndexName": "due", "Limit": _PAGE}
        while True:
            page = await table.ask("query", **request)
            records = await _read(table, [item["id"]["S"] for item in page["Items"]])
            # The index is behind, and shows what is held earlier than it rings.
            found += [record for record in records if record.rings_at is not None and record.rings_at <= now]
            found = sorted(found, key=lambda record: record.rings_at or 0.0)[:limit]
            last = page.get("LastEvaluatedKey")
            if last is None or (len(found) == limit and (found[-1].rings_at or 0.0) <= float(last["rings"]["N"])):
                break
            request["ExclusiveStartKey"] = last
    return found


async def find(table: Table, after: str, limit: int, wanted: Mapping[str, str]) -> list[Record]:
    """Find records by their ids, as `Journal.find` says, with wanted values of some fields."""
    limited: dict[str, Any] = {} if wanted else {"Limit": limit}
    found: list[Record] = []
    while True:
        texts = {"KeyConditionExpression": "#shard = :shard AND #id > :after" if after else "#shard = :shard"}
        if wanted:
            texts["FilterExpression"] = " AND ".join(f"#{name} = :{name}" for name in wanted)
        ids, ends = list[str](), list[str]()
        for shard in range(_SHARDS):
            request = ddb.expressions({**wanted, "after": after, "shard": str(shard)}, **texts)
            page = await table.ask("query", IndexName="ids", **request, **limited)
            ids += [item["id"]["S"] for item in page["Items"]]
            if "LastEvaluatedKey" in page:
                ends.append(page["LastEvaluatedKey"]["id"]["S"])
        # What one shard has not shown yet may come before what another has.
        end = min(ends, default=None)
        ids = sorted(id for id in ids if end is None or id <= end)
        step = min(limit, _PAGE)
        for start in range(0, len(ids), step):
            records = await _read(table, ids[start : start + step])
            found += [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]
            if len(found) >= limit:
                return found[:limit]
        if end is None:
            return found
        after = end


async def _read(table: Table, ids: list[str]) -> list[Record]:
    """Read records, those of them that are there, in the order of their ids."""
    items = await table.get_each([ddb.key(id) for id in dict.fromkeys(ids)])
    records = [await as_record(table, item) for item in items if ddb.living(item)]
    return sorted(record for record in records if record is not None)
