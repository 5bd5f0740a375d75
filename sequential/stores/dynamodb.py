"""Executions in one table of DynamoDB: conditional writes, and transactions of a record and a result."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from ..codec import Codec
from ..errors import Fenced
from ..storage import CLOSED, Record, Result, new_run, refuses, settle
from . import dynamodb_indexes as indexes
from . import dynamodb_items as ddb
from .clients import ClientJournal, Recent, check_ttl, extra, plain_or_async
from .dynamodb_parts import as_record, clear, parts_of, read_data
from .dynamodb_records import Records, restless
from .dynamodb_table import Refused, Table, explain

with extra("dynamodb"):
    from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from botocore.client import BaseClient

_KNOWN = 1000
"""Large signals that were read, of which it is remembered where their parts are until they are taken."""


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
        TypeError: When `client` is none of DynamoDB.
        ValueError: When `table` cannot be a table's name, or `ttl` is not above 0.
    """

    def __init__(
        self, client: BaseClient, *, table: str = "sequential", ttl: float | None = None, codec: Codec | None = None
    ) -> None:
        super().__init__(codec)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", table):
            raise ValueError(f"table= is the name of a table, 3 to 255 characters of A-Z a-z 0-9 _ . -, not {table!r}")
        self._table, self._ttl = Table(client, table), check_ttl(ttl)
        self._records = Records(self._table, ttl)
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
            raise explain(error) from error
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
        await indexes.create(self._table, expires=self._ttl is not None)

    @plain_or_async
    async def claim(self, wanted: Record, now: float, create: bool) -> tuple[Record | None, bool]:
        """Take a lease, or create a record."""
        claim = ddb.value(new_run())
        for _ in range(ddb.ATTEMPTS):
            item, taken = None, False
            if wanted.lease:
                item, taken = await self._records.take(wanted, now, claim, any_step=create or not wanted.run)
            elif not create or len(wanted.input) > ddb.INPUT:
                item = await self._table.get(wanted.id)
            if item is None and create:
                item, taken = await self._records.create(wanted, claim)
            if item is None:
                return None, False
            record = await as_record(self._table, item)
            if record is None:
                continue
            if taken or record.lease > now or refuses(record, wanted, create):
                return record, taken
            taking = record._replace(token=record.token + 1, lease=wanted.lease)
            with suppress(Fenced):
                await self._records.write(taking, record, claim=claim)
                return taking, True
        raise restless(wanted.id)

    async def _commit(
        self, record: Record, token: int, result: Result | None, absent: str | None, taken: str | None
    ) -> None:
        parts = None if taken is None else self._large.put(f"{record.id} {taken}", None)
        await self._records.write(record, record._replace(token=token), result, absent=absent, taken=taken)
        if parts:
            await self._table.drop(record.id, parts)

    @plain_or_async
    async def save(self, record: Record, result: Result) -> None:
        """Write a result."""
        await self._records.write(record, record, result, fields=())

    async def _restart(self, record: Record, held: Record) -> None:
        await self._records.write(record, held, fields=(*ddb.FIELDS, "input"))
        await clear(self._table, held)

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
            data = await read_data(self._table, record.id, item["data"])
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
            if (record := await as_record(self._table, item)) is not None:
                return record
        raise restless(id)

    @plain_or_async
    async def due(self, now: float, limit: int) -> list[Record]:
        """List what the sweep should ring."""
        return await indexes.due(self._table, now, limit)

    @plain_or_async
    async def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> list[Record]:
        """List records."""
        wanted = {name: value for name, value in (("status", status), ("workflow", workflow)) if value is not None}
        return await indexes.find(self._table, after, limit, wanted)

    @plain_or_async
    async def signal(self, id: str, name: str, data: bytes, now: float) -> tuple[Record | None, bool]:
        """Keep a signal."""
        for _ in range(ddb.ATTEMPTS):
            if (item := await self._table.get(id)) is None:
                return None, False
            record = await as_record(self._table, item)
            if record is None:
                continue
            if record.status in CLOSED or name in {*item["pending"]["M"], *item.get("closed", {"SS": []})["SS"]}:
                return record, False
            if (kept := await self._records.keep(item, record, name, data, now)) is not None:
                return await as_record(self._table, kept), True
        raise restless(id)

    @plain_or_async
    async def received(self, record: Record, name: str) -> bytes | None:
        """Read a signal."""
        item = await self._table.get(record.id, "#run, #expires, #pending.#signal", name)
        if item is None or item["run"]["S"] != record.run or "pending" not in item:
            return None
        data: ddb.Value = item["pending"]["M"][name]["M"]["data"]
        if parts := parts_of(data):
            self._large.put(f"{record.id} {name}", parts)
        return await read_data(self._table, record.id, data)

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
                own = [part for part in items if part.startswith(item["run"]["S"] + ddb.NEW)]
            elif items and await self._table.get(id, "#run") is not None:
                continue  # what was listed may belong to one that was created meanwhile
            # The input of another run may be that of an execution which is just being created.
            left = [*own, *(part for part in items if ddb.NEW not in part)]
            await (self._table.delete(id, left) if held is None else self._table.drop(id, left))
            return
        raise restless(id)
