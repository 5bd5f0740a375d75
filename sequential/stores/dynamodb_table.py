"""The table of `sequential.stores.dynamodb`: what is asked of it, and asked again, and values of any size in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import islice
from math import ceil
from random import random
from time import sleep, time
from typing import Any

from ..blocking import is_async
from ..errors import StorageError
from ..storage import Record, new_run, settle
from . import dynamodb_items as ddb
from .clients import extra, split
from .dynamodb_items import Item, Refused, Value

with extra("dynamodb"):
    from botocore.exceptions import BotoCoreError, ClientError

_BATCH = 16
"""Parts that are written or read at once: 4 MiB, of 16 MB that DynamoDB allows."""

_DELETED = 25
"""Items that are deleted at once: as many as DynamoDB allows."""

_PATIENCE = {"Delay": 1, "MaxAttempts": 300}


class Table:
    """A table, and the client that reaches it.

    Args:
        client: That of boto3, or one of aiobotocore.
        name: The table's name.
        ttl: Seconds after which an execution expires, or ``None``.
    """

    def __init__(self, client: Any, name: str, ttl: float | None) -> None:
        self.client, self.name, self.ttl = client, name, ttl
        self.is_async = is_async(client.close)  # aiobotocore's requests only return what is to be awaited

    async def create(self) -> None:
        """Make the table and its indexes unless they are there, and wait for them."""
        await self.ask("create_table", but="ResourceInUseException", **ddb.TABLE)
        try:
            waiter = self.client.get_waiter("table_exists")
            await settle(waiter.wait(TableName=self.name, WaiterConfig=_PATIENCE))
        except BotoCoreError as error:
            raise ddb.explain(error) from error
        if missing := ddb.missing_from((await self.ask("describe_table"))["Table"]):
            raise StorageError(
                f"DynamoDB: table {self.name!r} lacks {', '.join(missing)}: add what is missing, or let table= name"
                " what create_schema() has made"
            )
        version = ddb.key("#", "schema") | {"schema": ddb.value(ddb.SCHEMA)}
        check = ddb.expressions({}, ConditionExpression="attribute_not_exists(#id) OR #schema <= :schema")
        try:
            await self.ask("put_item", Item=version, **check)
        except Refused as refused:
            ddb.check_version(refused.item)
        if self.ttl is not None:
            await self._let_expire()

    async def _let_expire(self) -> None:
        """Let items expire, unless they do."""
        try:
            await self.ask("update_time_to_live", TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"})
        except StorageError:  # which it also is to say so twice, or to be one of two who say so
            lives = (await self.ask("describe_time_to_live"))["TimeToLiveDescription"]
            if lives.get("AttributeName") != "expires" or lives["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
                raise

    async def get(self, id: str, fields: str = "", signal: str = "") -> Item | None:
        """Read the item of a record that has not expired."""
        request = ddb.expressions({}, signal, ProjectionExpression=fields) if fields else {}
        return ddb.living((await self.ask("get_item", Key=ddb.key(id), ConsistentRead=True, **request)).get("Item"))

    async def get_all(self, id: str, fields: str, first: str = "", last: str = "") -> list[Item]:
        """Read fields of the items of an execution."""
        request = ddb.within(id, first, last, ProjectionExpression=fields)
        items: list[Item] = []
        while True:
            page = await self.ask("query", ConsistentRead=True, **request)
            items += page["Items"]
            if "LastEvaluatedKey" not in page:
                return items
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    async def get_each(self, keys: list[Item]) -> list[Item]:
        """Read those of up to 100 items that are there, in any order."""
        return await self._batch("get", "UnprocessedKeys", {"Keys": keys, "ConsistentRead": True}) if keys else []

    async def get_records(self, ids: Iterable[str]) -> list[Record]:
        """Read records, those of them that are there."""
        items = await self.get_each([ddb.key(id) for id in dict.fromkeys(ids)])
        records = [await self.as_record(item) for item in items if ddb.living(item)]
        return sorted(record for record in records if record is not None)

    async def as_record(self, item: Item) -> Record | None:
        """Return an item as a record, or ``None`` when the parts of its input are gone."""
        ddb.check_version(item)
        input = await self.read_data(item["id"]["S"], item["input"])
        if input is None:
            return None
        return Record(item["id"]["S"], input=input, **ddb.decode(item, ddb.CHANGING + ddb.FIXED))

    async def update(
        self,
        key: Item,
        update: str,
        check: str,
        values: Mapping[str, Any],
        *,
        signal: str = "",
        returns: str = "NONE",
    ) -> Item:
        """Change an item; with ``ALL_NEW``, return it as it then stands."""
        request = ddb.expressions(values, signal, UpdateExpression=update, ConditionExpression=check)
        answer = await self.ask("update_item", Key=key, ReturnValues=returns, **request)
        item: Item = answer.get("Attributes", {})
        return item

    async def drop(self, id: str, parts: Iterable[str]) -> None:
        """Delete items of an execution that nobody looks at any more, as far as that can be done."""
        with suppress(StorageError):  # what they belonged to is settled, and the next removal tries again
            await self.delete(id, parts)

    async def delete(self, id: str, parts: Iterable[str]) -> None:
        """Delete items of an execution."""
        left = iter(parts)
        while batch := [{"DeleteRequest": {"Key": ddb.key(id, part)}} for part in islice(left, _DELETED)]:
            await self._batch("write", "UnprocessedItems", batch)

    async def clear(self, ended: Record) -> None:
        """Delete what a run has left that another has taken the place of, but for signals that nobody has taken."""
        # All of that run: its name, and "#" or ":".
        items = await self.get_all(ended.id, "#part", f"{ended.run}#", f"{ended.run};")
        left = dict.fromkeys(item["part"]["S"] for item in items)
        if any(ddb.SENT in part for part in left) and (item := await self.get(ended.id, "#pending")):
            for signal in item["pending"]["M"].values():
                for part in ddb.parts_of(signal["M"]["data"]):
                    left.pop(part, None)
        await self.drop(ended.id, left)

    async def write_data(self, id: str, stem: str, data: bytes, limit: int, later: int) -> Value:
        """Return bytes as a value; if there are more than `limit`, they are written in parts, and it says where."""
        if len(data) <= limit:
            return {"B": data}
        stem = f"{stem}:{new_run()}"
        left, expires = enumerate(split(data, ddb.PART)), self.expires(later)
        while batch := [
            {"PutRequest": {"Item": ddb.key(id, f"{stem}:{number:06}") | {"data": {"B": part}} | expires}}
            for number, part in islice(left, _BATCH)
        ]:
            await self._batch("write", "UnprocessedItems", batch)
        return {"L": [ddb.value(stem), ddb.value(ceil(len(data) / ddb.PART))]}

    async def read_data(self, id: str, value: Value) -> bytes | None:
        """Return what `write_data` was given, or ``None`` when parts of it are gone."""
        if "B" in value:
            data: bytes = value["B"]
            return data
        whole, left = BytesIO(), iter(ddb.parts_of(value))
        while parts := list(islice(left, _BATCH)):
            items = await self.get_each([ddb.key(id, part) for part in parts])
            if len(items) < len(parts):
                return None
            for item in sorted(items, key=lambda item: item["part"]["S"]):
                whole.write(item["data"]["B"])
        return whole.getvalue()

    def expires(self, later: int) -> Item:
        """Return what an item needs that is to expire then."""
        return {} if self.ttl is None else {"expires": ddb.value(later)}

    def terms(self, record: Record) -> tuple[int, int]:
        """Return when the record is to expire, and when what is written with it: late enough for any shorter lease."""
        ttl = self.ttl or 0.0
        last = max(time(), record.changed, record.rings_at or 0.0, record.wake or 0.0)
        expires = ceil(min(last, ddb.FOREVER) + ttl)
        return expires, ceil(expires + 2 * ttl)

    async def renew(self, item: Item, expires: int, later: int) -> int | None:
        """Make all else of an execution outlive its record.

        All else is sure to live to the record's ``until``, and what is new is refused unless it lives to ``target``.

        Args:
            item: The record.
            expires: When the record is to expire.
            later: When new items are to expire.

        Returns:
            When new items have to expire instead; ``None``: nothing was to be done.
        """
        if self.ttl is None:
            return None
        until, target = (int(item[name]["N"]) if name in item else 0 for name in ("until", "target"))
        if until >= expires:
            return target if target > later else None
        id = item["id"]["S"]
        if target < expires:  # or else another has begun to renew it, and what it has done is done
            target = ceil(expires + self.ttl)
        values = {"target": target, "held_run": item["run"]}
        with suppress(Refused):
            # From here on nothing is written that lives less long: what is listed then is all there is to prolong.
            check = "#run = :held_run AND (attribute_not_exists(#target) OR #target <= :target)"
            await self.update(ddb.key(id), "SET #target = :target", check, values)
            for old in await self.get_all(id, "#part, #expires"):
                part = old["part"]["S"]
                if part != ddb.RECORD and int(old.get("expires", {"N": 0})["N"]) < target:
                    with suppress(Refused):
                        await self.update(ddb.key(id, part), "SET #expires = :target", "attribute_exists(#id)", values)
            check = "#run = :held_run AND #target = :target"
            await self.update(ddb.key(id), "SET #until = :target", check, values)
        return max(target, later)

    async def _batch(self, what: str, rest: str, wanted: Any) -> list[Item]:
        """Make a request for many items until DynamoDB has done all of it; return what it answered."""
        operation, items = f"batch_{what}_item", list[Item]()
        for attempt in range(ddb.ATTEMPTS):
            answer = await self.ask(operation, RequestItems={self.name: wanted})
            items += answer.get("Responses", {}).get(self.name, [])
            if not answer.get(rest):
                return items
            wanted = answer[rest][self.name]
            await self._wait(attempt)
        raise StorageError(f"DynamoDB: {operation} was not completed in {ddb.ATTEMPTS} attempts: {ddb.THROTTLED}")

    async def ask_both(self, *requests: dict[str, dict[str, Any]]) -> None:
        """Make several changes, or none of them."""
        for request in requests:
            for change in request.values():
                change["TableName"] = self.name
        await self.ask("transact_write_items", TransactItems=list(requests))

    async def ask(self, operation: str, but: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Make a request, more than once if it meets others; an error whose text has `but` in it is none.

        Raises:
            Refused: When a condition did not hold.
        """
        if not {"RequestItems", "TransactItems"} & arguments.keys():
            arguments["TableName"] = self.name
        attempt = 0
        while True:
            try:
                answer: dict[str, Any] = await settle(getattr(self.client, operation)(**arguments))
            except ClientError as error:
                reasons: list[dict[str, Any]] = [error.response, *error.response.get("CancellationReasons", ())]
                codes = {error.response["Error"]["Code"], *(reason.get("Code", "") for reason in reasons)}
                if codes & {"ConditionalCheckFailedException", "ConditionalCheckFailed"}:
                    raise Refused(next((reason["Item"] for reason in reasons if reason.get("Item")), None)) from None
                if but is not None and but in str(error):
                    return {}
                attempt += 1
                if attempt == ddb.ATTEMPTS or not codes & ddb.BUSY:
                    raise ddb.explain(error) from error
            except BotoCoreError as error:
                raise ddb.explain(error) from error
            else:
                return answer
            await self._wait(attempt)

    async def _wait(self, attempt: int) -> None:
        seconds = min(1.0, 0.02 * 2**attempt) * random()  # noqa: S311 - only so that two do not meet again
        if self.is_async:
            from asyncio import sleep as sleep_async  # noqa: PLC0415 - slow to import, and not for plain clients

            await sleep_async(seconds)
        else:
            sleep(seconds)  # noqa: ASYNC251 - a plain client has no event loop
