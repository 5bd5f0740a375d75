"""Executions in one table of DynamoDB: conditional writes, and transactions of a record and a result."""

from __future__ import annotations

import re
from contextlib import suppress
from math import ceil, inf
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from ..codec import Codec
from ..errors import Fenced, StorageError
from ..storage import CLOSED, Record, Result, new_run, refuses, settle
from . import dynamodb_items as ddb
from .clients import ClientJournal, Recent, extra, plain_or_async
from .dynamodb_items import Item, Refused, Value
from .dynamodb_table import Table

with extra("dynamodb"):
    from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from botocore.client import BaseClient

_NEW = ":new"
"""What follows the run in the keys of an input's parts that are written before there is a record."""

_KNOWN = 1000
"""Large signals that were read, of which it is remembered where their parts are until they are taken."""

_PAGE = 100
"""Records that are read at once: as many as DynamoDB allows."""


class DynamoDBStorage(ClientJournal):
    """A Journal in one table of DynamoDB, which `create_schema` makes.

    A commit with a result is charged for twice the record and the result, any other write for the record.  Two indexes
    follow it within about a second; their four partitions carry about 2,000 invocations and 1,000 new executions a
    second, beyond which writes are throttled.  Listing by status or workflow looks through the index of all.

    The names of the signals that an execution has not taken yet, and of those that it has taken since its last
    ``again``, stand in its record, where some thousands have room; one more is refused.

    Args:
        client: ``boto3.client("dynamodb")``, or a client of aiobotocore.
        table: The table's name.
        ttl: Seconds after which an execution expires that was finished or abandoned; left out, none does.  It has to
            be the same for all who use the table.
        codec: How values become bytes; strict JSON when left out.

    Raises:
        StorageError: From every method, naming what failed and the remedy.
        ValueError: When `table` cannot be a table's name, or `ttl` is not above 0.
    """

    def __init__(
        self, client: BaseClient, *, table: str = "sequential", ttl: float | None = None, codec: Codec | None = None
    ) -> None:
        super().__init__(codec)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", table):
            raise ValueError(f"table= is the name of a table, 3 to 255 characters of A-Z a-z 0-9 _ . -, not {table!r}")
        if ttl is not None and not 0 < ttl < inf:
            raise ValueError(f"ttl= is a number of seconds above 0, or None, not {ttl!r}")
        self._table = Table(client, table, ttl)
        self._large = Recent[list[str]](_KNOWN)

    @classmethod
    def from_url(cls, url: str, *, ttl: float | None = None, codec: Codec | None = None) -> DynamoDBStorage:
        """Return a storage over a new client of boto3.

        Args:
            url: ``dynamodb://region/table?endpoint=http://host:port``, in which all but the scheme may be left out:
                the region is then that of the environment, where the credentials come from too, and the table is
                called ``sequential``.
            ttl: As for the class.
            codec: As for the class.

        Raises:
            StorageError: When the environment does not say enough.
            ValueError: When the URL is another one.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        endpoint = options.pop("endpoint", None)
        shown = re.sub("//[^/?]*@", "//***@", url)
        other = ValueError(f"DynamoDB's URLs are dynamodb://region/table?endpoint=http://host:port, not {shown!r}")
        if parts.scheme != "dynamodb" or options or endpoint == "" or re.search("[:@]", parts.netloc) or parts.fragment:
            raise other
        with extra("dynamodb"):
            import boto3  # noqa: PLC0415 - only those need it who bring no client
        try:
            client = boto3.client("dynamodb", region_name=parts.hostname, endpoint_url=endpoint)
        except BotoCoreError as error:
            raise ddb.explain(error) from error
        except ValueError as error:  # it is no URL of a server
            raise other from error
        return cls(client, table=parts.path[1:] or "sequential", ttl=ttl, codec=codec)

    def is_async(self) -> bool:
        """Whether the client is one of aiobotocore."""
        return self._table.is_async

    @plain_or_async
    async def close(self) -> None:
        """Close the client."""
        await settle(self._table.client.close())

    @plain_or_async
    async def create_schema(self) -> None:
        """Make the table and its indexes unless they are there, and wait for them; any number may do so at once.

        It is charged by the request.  With a `ttl`, items expire by their attribute ``expires``.

        Raises:
            StorageError: When the table is of a later release, or not ready within five minutes.
        """
        await self._table.create()

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        claim = ddb.value(new_run())
        for _ in range(ddb.ATTEMPTS):
            item, taken = None, False
            if wanted.lease:
                item, taken = await self._take(wanted, now, claim, any_step=create or not wanted.run)
            elif not create or len(wanted.input) > ddb.INPUT:
                item = await self._table.get(wanted.id)
            if item is None and create:
                item, taken = await self._create(wanted, claim)
            if item is None:
                return None, False
            record = await self._table.as_record(item)
            if record is None:
                continue
            if taken or record.lease > now or refuses(record, wanted, create):
                return record, taken
            taking = record._replace(token=record.token + 1, lease=wanted.lease)
            with suppress(Fenced):
                await self._hold(taking, record, claim=claim)
                return taking, True
        raise _restless(wanted.id)

    async def _take(self, wanted: Record, now: float, claim: Value, *, any_step: bool) -> tuple[Item | None, bool]:
        """Take what is free and whose times the new lease outlasts; return what is there, and whether it was taken."""
        update, check = ddb.TAKE, ddb.FREE
        expires, _ = self._table.terms(Record(wanted.id, "", lease=wanted.lease))
        if self._table.ttl is not None:
            update += ", #expires = :expires"
            check += " AND #expires <= :expires AND #until >= :expires"
        values = {"lease": ddb.number(wanted.lease), "now": ddb.number(now), "claim": claim, "expires": expires}
        if not any_step:
            check += ddb.FOR_STEP
            values |= {"by_run": ddb.value(wanted.run), "by_step": ddb.number(wanted.step)}
        try:
            return await self._table.update(ddb.key(wanted.id), update, check, values, returns="ALL_NEW"), True
        except Refused as refused:
            return ddb.living(refused.item), ddb.is_by(claim, refused.item)

    async def _create(self, record: Record, claim: Value) -> tuple[Item | None, bool]:
        """Put a record where none is; return what is there, and whether it was put there."""
        expires, later = self._table.terms(record)
        input = await self._table.write_data(record.id, record.run + _NEW, record.input, ddb.INPUT, later)
        item = ddb.key(record.id) | {"claim": claim, "shard": ddb.shard_of(record.id), "schema": ddb.value(ddb.SCHEMA)}
        item |= ddb.encode(record, ddb.CHANGING + ddb.FIXED) | {"input": input, "pending": {"M": {}}}
        if (rings := ddb.rings(record)) is not None:
            item["rings"] = rings
        if self._table.ttl is not None:
            sure = ddb.value(ceil(expires + self._table.ttl))
            item |= {"expires": ddb.value(expires), "until": sure, "target": sure}
        check = ddb.expressions({}, ConditionExpression="attribute_not_exists(#id) OR #expires <= :wall")
        try:
            await self._table.ask("put_item", Item=item, **check)
        except Refused as refused:
            if not ddb.is_by(claim, refused.item):
                await self._table.drop(record.id, ddb.parts_of(input))
                return refused.item, False
        return item, True

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        held = record._replace(token=token)
        if absent is not None:
            missing = " AND attribute_not_exists(#pending.#signal)"
            await self._hold(record, held, result, check=missing, also="DELETE #closed :names", signal=absent)
        elif taken is not None:
            gone, parts = ("#pending.#signal",), self._large.put(f"{record.id} {taken}", None) or []
            await self._hold(record, held, result, removed=gone, also="ADD #closed :names", signal=taken)
            await self._table.drop(record.id, parts)
        else:
            await self._hold(record, held, result)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        await self._hold(record, record, result, fields=())

    async def _restart(self, record: Record, held: Record) -> None:
        await self._hold(record, held, fields=(*ddb.CHANGING, *ddb.FIXED, "input"), removed=("#closed",))
        await self._table.clear(held)

    async def _hold(
        self,
        record: Record,
        held: Record,
        result: Result | None = None,
        *,
        fields: tuple[str, ...] = ddb.CHANGING,
        check: str = "",
        removed: tuple[str, ...] = (),
        also: str = "",
        signal: str = "",
        claim: Value | None = None,
    ) -> None:
        """Write fields of a record, and a result, if what is stored has the run and the token of `held`."""
        expires, later = self._table.terms(record)
        check, optional = ddb.HELD + check, {"claim": claim, "rings": ddb.rings(record)}
        if self._table.ttl is not None:
            optional["expires"] = ddb.value(expires)
            check += " AND #until >= :expires AND #target <= :later"
        values: dict[str, Any] = {"held_run": held.run, "held_token": held.token, "names": {"SS": [signal]}}
        values |= ddb.encode(record, ddb.CHANGING + ddb.FIXED) | optional
        texts = {"ConditionExpression": check}
        if fields:
            texts["UpdateExpression"] = f"{ddb.update(fields, optional, removed)} {also}"
        for _ in range(ddb.ATTEMPTS):
            values["later"] = later
            if "input" in fields:
                stem = f"{record.run}:again"
                values["input"] = await self._table.write_data(record.id, stem, record.input, ddb.INPUT, later)
            request = {"Key": ddb.key(record.id), **ddb.expressions(values, signal, **texts)}
            try:
                if result is None:
                    await self._table.ask("update_item", **request)
                else:
                    put = {"Item": await self._write_result(record, result, later)}
                    await self._table.ask_both({"Update" if fields else "ConditionCheck": request}, {"Put": put})
            except Refused as refused:
                item = ddb.living(refused.item)
                renewed = await self._table.renew(item, expires, later) if item and ddb.is_held(item, held) else None
                if renewed is None:
                    raise Fenced(record.id, held.token) from None
                later = renewed
            else:
                return
        raise _restless(record.id)

    @plain_or_async
    async def results(self, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
        """Read a page of results."""
        if start >= stop:
            return []
        wanted = ", ".join(f"#{name}" for name in ("part", "data", *ddb.ABOUT[: 2 if brief else None]))
        first, last = ddb.key_of(record, start), ddb.key_of(record, stop - 1)
        within = ddb.within(record.id, first, last, ProjectionExpression=wanted)
        found = await self._table.ask("query", ConsistentRead=True, **within)
        page: list[Result] = []
        for item in found["Items"]:
            large = "L" in item["data"]
            if page and large:
                break
            data = await self._table.read_data(record.id, item["data"])
            if data is None:
                raise Fenced(record.id, record.token)
            about = ddb.decode(item, (name for name in ddb.ABOUT if name in item))
            page.append(Result(int(item["part"]["S"][-10:]), data=data, **about))
            if large:
                break
        return page

    @plain_or_async
    async def read(self, id: str) -> Record | None:
        """Read a record."""
        for _ in range(ddb.ATTEMPTS):
            if (item := await self._table.get(id)) is None:
                return None
            if (record := await self._table.as_record(item)) is not None:
                return record
        raise _restless(id)

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        found: list[Record] = []
        for shard in range(ddb.SHARDS):
            values = {"shard": str(shard), "now": ddb.number(now)}
            request = ddb.expressions(values, KeyConditionExpression="#shard = :shard AND #rings <= :now")
            request |= {"IndexName": "due", "Limit": _PAGE}
            while True:
                page = await self._table.ask("query", **request)
                records = await self._table.get_records([item["id"]["S"] for item in page["Items"]])
                # The index is behind, and shows what is held earlier than it rings.
                found += [record for record in records if record.rings_at is not None and record.rings_at <= now]
                found = sorted(found, key=lambda record: record.rings_at or 0.0)[:limit]
                last = page.get("LastEvaluatedKey")
                if last is None or (len(found) == limit and (found[-1].rings_at or 0.0) <= float(last["rings"]["N"])):
                    break
                request["ExclusiveStartKey"] = last
        return found

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        wanted = {name: value for name, value in (("status", status), ("workflow", workflow)) if value is not None}
        limited: dict[str, Any] = {} if wanted else {"Limit": limit}
        found: list[Record] = []
        while True:
            texts = {"KeyConditionExpression": "#shard = :shard AND #id > :after" if after else "#shard = :shard"}
            if wanted:
                texts["FilterExpression"] = " AND ".join(f"#{name} = :{name}" for name in wanted)
            ids, ends = list[str](), list[str]()
            for shard in range(ddb.SHARDS):
                request = ddb.expressions({**wanted, "after": after, "shard": str(shard)}, **texts)
                page = await self._table.ask("query", IndexName="ids", **request, **limited)
                ids += [item["id"]["S"] for item in page["Items"]]
                if "LastEvaluatedKey" in page:
                    ends.append(page["LastEvaluatedKey"]["id"]["S"])
            # What one shard has not shown yet may come before what another has.
            end = min(ends, default=None)
            ids = sorted(id for id in ids if end is None or id <= end)
            step = min(limit, _PAGE)
            for start in range(0, len(ids), step):
                records = await self._table.get_records(ids[start : start + step])
                found += [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]
                if len(found) >= limit:
                    return found[:limit]
            if end is None:
                return found
            after = end

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        by = ddb.value(new_run())
        for _ in range(ddb.ATTEMPTS):
            if (item := await self._table.get(id)) is None:
                return None, False
            record = await self._table.as_record(item)
            if record is None:
                continue
            if record.status in CLOSED or name in {*item["pending"]["M"], *item.get("closed", {"SS": []})["SS"]}:
                return record, False
            if ddb.size(item) > ddb.FULL:
                raise StorageError(
                    f"DynamoDB: execution {id!r} has no room for another signal, for an item holds at most 400 KB: send"
                    " it fewer, or let it take them and go on by again()"
                )
            rings = record.waits == name and not record.lease
            expires, later = self._table.terms(record._replace(due=now) if rings else record)
            later = await self._table.renew(item, expires, later) or later
            stored = await self._table.write_data(id, item["run"]["S"] + ddb.SENT, data, ddb.SIGNAL, later)
            kept = {"M": {"data": stored, "by": by}}
            values: dict[str, Any] = {"held_run": item["run"], "held_token": item["token"], "name": name, "data": kept}
            values |= {"by": by, "due": now, "rings": ddb.number(now), "expires": expires, "later": later}
            update, check = "SET #pending.#signal = :data, #signalled = :by", ddb.RESTING if rings else ddb.RUNNING
            if rings:
                update += ", #due = :due, #rings = :rings"
            if self._table.ttl is not None:
                update += ", #expires = :expires" if rings else ""
                check += " AND #until >= :expires AND #target <= :later"
            try:
                item = await self._table.update(ddb.key(id), update, check, values, signal=name, returns="ALL_NEW")
                return await self._table.as_record(item), True
            except Refused as refused:
                found = refused.item
                # It is ours even if it was taken, or if others came, before a client has repeated what was lost.
                if found is not None and (found.get("signalled") == by or found["pending"]["M"].get(name) == kept):
                    return await self._table.as_record(found), True
            await self._table.drop(id, ddb.parts_of(stored))
        raise _restless(id)

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        item = await self._table.get(record.id, "#run, #expires, #pending.#signal", name)
        if item is None or item["run"]["S"] != record.run or "pending" not in item:
            return None
        data: Value = item["pending"]["M"][name]["M"]["data"]
        if parts := ddb.parts_of(data):
            self._large.put(f"{record.id} {name}", parts)
        return await self._table.read_data(record.id, data)

    async def _remove(self, id: str, held: Record | None) -> None:
        """Remove an execution, and what earlier ones of its id have left behind."""
        for _ in range(ddb.ATTEMPTS):
            items = {item["part"]["S"]: item for item in await self._table.get_all(id, "#part, #run, #token")}
            item = items.pop(ddb.RECORD, None)
            if held is not None and not ddb.is_held(item, held):
                raise Fenced(id, held.token)
            own: list[str] = []
            if item is not None:
                check = "#run = :run" if held is None else "#run = :run AND #token = :token"
                request = ddb.expressions({"run": item["run"], "token": item["token"]}, ConditionExpression=check)
                try:
                    await self._table.ask("delete_item", Key=ddb.key(id), **request)
                except Refused as refused:
                    if refused.item is not None:
                        continue
                own = [part for part in items if part.startswith(item["run"]["S"] + _NEW)]
            elif items and await self._table.get(id, "#run") is not None:
                continue  # what was listed may belong to one that was created meanwhile
            # The input of another run may be that of an execution which is just being created.
            left = [*own, *(part for part in items if _NEW not in part)]
            await (self._table.delete(id, left) if held is None else self._table.drop(id, left))
            return
        raise _restless(id)

    async def _write_result(self, record: Record, result: Result, later: int) -> Item:
        """Return a result as an item, after the parts of a large one were written."""
        part = ddb.key_of(record, result.step)
        data = await self._table.write_data(record.id, part.replace("#", ":"), result.data, ddb.PART, later)
        about = ddb.encode(result, (name for name in ddb.ABOUT if getattr(result, name) is not None))
        return ddb.key(record.id, part) | about | {"data": data} | self._table.expires(later)


def _restless(id: str) -> StorageError:
    return StorageError(
        f"DynamoDB: execution {id!r} changed under each of {ddb.ATTEMPTS} attempts, or parts of its input were deleted"
        ": try again, or delete it"
    )
