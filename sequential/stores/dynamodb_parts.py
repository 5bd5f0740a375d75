"""Values of `sequential.stores.dynamodb` that are too large for their item: it names the parts that they are kept in.

Parts are seen only by way of the item that names their nonce, so a writer who is refused leaves behind only what nobody
looks at, and what goes when the execution is removed; a creation that is broken off leaves parts of a large input,
which go only by a `ttl`.
"""

from __future__ import annotations

from io import BytesIO
from itertools import islice
from math import ceil

from ..storage import Record, new_run
from . import dynamodb_items as ddb
from .clients import split
from .dynamodb_items import Item, Value
from .dynamodb_table import Table

_TOGETHER = 16
"""Parts that are written or read at once: 4 MiB, of 16 MB that DynamoDB allows."""


async def write_data(table: Table, id: str, stem: str, data: bytes, *, limit: int, expires: Item) -> Value:
    """Return bytes as a value; if there are more than `limit`, they are written in parts, and it says where.

    Args:
        table: Where to write them.
        id: Whose they are.
        stem: What the sort keys of the parts begin with.
        data: The bytes.
        limit: How many may stand in an item beside others.
        expires: What else the item of each part has.
    """
    if len(data) <= limit:
        return {"B": data}
    stem = f"{stem}:{new_run()}"
    left = enumerate(split(data, ddb.PART))
    while items := [
        ddb.key(id, f"{stem}:{number:06}") | {"data": {"B": part}} | expires for number, part in islice(left, _TOGETHER)
    ]:
        await table.put_each(items)
    return {"L": [ddb.value(stem), ddb.value(ceil(len(data) / ddb.PART))]}


async def read_data(table: Table, id: str, value: Value) -> bytes | None:
    """Return what `write_data` was given, or ``None`` when parts of it are gone."""
    if "B" in value:
        data: bytes = value["B"]
        return data
    whole, left = BytesIO(), iter(parts_of(value))
    while parts := list(islice(left, _TOGETHER)):
        items = await table.get_each([ddb.key(id, part) for part in parts])
        if len(items) < len(parts):
            return None
        for item in sorted(items, key=lambda item: item["part"]["S"]):
            whole.write(item["data"]["B"])
    return whole.getvalue()


async def as_record(table: Table, item: Item) -> Record | None:
    """Return an item as a record, or ``None`` when the parts of its input are gone."""
    ddb.check_version(item)
    input = await read_data(table, item["id"]["S"], item["input"])
    if input is None:
        return None
    return Record(item["id"]["S"], input=input, **ddb.decode(item, ddb.FIELDS))


async def clear(table: Table, ended: Record) -> None:
    """Delete what a run has left that another has taken the place of, but for signals that nobody has taken."""
    # All of that run: its name, and "#" or ":".
    items = await table.get_all(ended.id, "#part", f"{ended.run}#", f"{ended.run};")
    left = dict.fromkeys(item["part"]["S"] for item in items)
    if any(ddb.SENT in part for part in left) and (item := await table.get(ended.id, "#pending")):
        for signal in item["pending"]["M"].values():
            for part in parts_of(signal["M"]["data"]):
                left.pop(part, None)
    await table.drop(ended.id, left)


def parts_of(data: Value) -> list[str]:
    """Return the sort keys of the parts that a large value consists of."""
    if "B" in data:
        return []
    stem, count = data["L"]
    return [f"{stem['S']}:{index:06}" for index in range(int(count["N"]))]
