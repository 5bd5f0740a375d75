"""The writes of `sequential.stores.dynamodb`, each of which is done if the record is still as its writer expects it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import ceil
from time import time
from typing import Any

from ..errors import Fenced, StorageError
from ..storage import Record, Result, new_run
from . import dynamodb_items as ddb
from .dynamodb_indexes import rings_of, shard_of
from .dynamodb_items import Item, Value
from .dynamodb_parts import parts_of, write_data
from .dynamodb_table import Refused, Table

_ALIVE = "(attribute_not_exists(#expires) OR #expires > :wall)"
_OUTLIVED = " AND #until >= :expires AND #target <= :later"
_UNSENT = "attribute_not_exists(#pending.#signal) AND NOT contains(#closed, :name)"
_HELD = f"#run = :held_run AND #token = :held_token AND {_ALIVE}"
_FREE = f"#lease <= :now AND {ddb.OPEN} AND #schema <= :schema AND {_ALIVE}"
_FREE += " AND (attribute_not_exists(#rings) OR #rings <= :lease)"
_FOR_STEP = " AND #run = :by_run AND #step <= :by_step"
_TAKE = "SET #token = #token + :one, #lease = :lease, #claim = :claim, #rings = if_not_exists(#rings, :lease)"
_RESTING = f"{_HELD} AND #lease = :zero AND {_UNSENT}"
_RUNNING = f"#run = :held_run AND {ddb.OPEN} AND {_ALIVE} AND NOT (#waits = :name AND #lease = :zero) AND {_UNSENT}"


class Records:
    """The records of a table, and what is written together with them.

    Where executions expire, nothing of one does so before its record: all else is sure to live to the record's
    ``until``, and what is new is refused unless it lives to ``target``.

    Args:
        table: Where they are.
        ttl: Seconds after which an execution expires, or ``None``.
    """

    def __init__(self, table: Table, ttl: float | None) -> None:
        self._table, self._ttl = table, ttl

    async def take(self, wanted: Record, now: float, claim: Value, *, any_step: bool) -> tuple[Item | None, bool]:
        """Take what is free and whose times the new lease outlasts; return what is there, and whether it was taken."""
        update, check = _TAKE, _FREE
        expires, _ = self._terms(Record(wanted.id, "", lease=wanted.lease))
        if self._ttl is not None:
            update += ", #expires = :expires"
            check += " AND #expires <= :expires AND #until >= :expires"
        values = {"lease": ddb.number(wanted.lease), "now": ddb.number(now), "claim": claim, "expires": expires}
        if not any_step:
            check += _FOR_STEP
            values |= {"by_run": ddb.value(wanted.run), "by_step": ddb.number(wanted.step)}
        try:
            return await self._table.update(ddb.key(wanted.id), update, check, values, returns="ALL_NEW"), True
        except Refused as refused:
            return ddb.living(refused.item), _is_by(claim, refused.item)

    async def create(self, record: Record, claim: Value) -> tuple[Item | None, bool]:
        """Put a record where none is; return what is there, and whether it was put there."""
        expires, later = self._terms(record)
        input = await self._write_input(record, ddb.NEW, later)
        item = ddb.key(record.id) | {"claim": claim, "shard": shard_of(record.id), "schema": ddb.value(ddb.SCHEMA)}
        item |= ddb.encode(record, ddb.FIELDS) | {"input": input, "pending": {"M": {}}}
        if (rings := rings_of(record)) is not None:
            item["rings"] = rings
        if self._ttl is not None:
            sure = ddb.value(ceil(expires + self._ttl))
            item |= {"expires": ddb.value(expires), "until": sure, "target": sure}
        check = ddb.expressions({}, ConditionExpression="attribute_not_exists(#id) OR #expires <= :wall")
        try:
            await self._table.ask("put_item", Item=item, **check)
        except Refused as refused:
            if not _is_by(claim, refused.item):
                await self._table.drop(record.id, parts_of(input))
                return refused.item, False
        return item, True

    async def write(
        self,
        record: Record,
        held: Record,
        result: Result | None = None,
        *,
        fields: tuple[str, ...] = ddb.CHANGING,
        absent: str | None = None,
        taken: str | None = None,
        claim: Value | None = None,
    ) -> None:
        """Write fields of a record, and a result, if what is stored has the run and the token of `held`.

        Args:
            record: What to write.
            held: What is expected there.
            result: As for `Journal.commit`.
            fields: The names of those that are written, ``"input"`` among them when it replaces another run.
            absent: As for `Journal.commit`.
            taken: As for `Journal.commit`.
            claim: By which it takes a lease.

        Raises:
            Fenced: As for `Journal.commit`.
        """
        expires, later = self._terms(record)
        check, also, removed = _clauses(absent, taken)
        if "input" in fields:
            removed = ("#closed",)
        optional = {"claim": claim, "rings": rings_of(record)}
        if self._ttl is not None:
            optional["expires"] = ddb.value(expires)
            check += _OUTLIVED
        signal = absent or taken or ""
        values: dict[str, Any] = {"held_run": held.run, "held_token": held.token, "names": {"SS": [signal]}}
        values |= ddb.encode(record, ddb.FIELDS) | optional
        texts = {"ConditionExpression": check}
        if fields:
            texts["UpdateExpression"] = f"{_update(fields, optional, removed)} {also}"
        for _ in range(ddb.ATTEMPTS):
            values["later"] = later
            if "input" in fields:
                values["input"] = await self._write_input(record, ":again", later)
            request = {"Key": ddb.key(record.id), **ddb.expressions(values, signal, **texts)}
            try:
                if result is None:
                    await self._table.ask("update_item", **request)
                else:
                    put = {"Item": await self._write_result(record, result, later)}
                    await self._table.ask_both({"Update" if fields else "ConditionCheck": request}, {"Put": put})
            except Refused as refused:
                item = ddb.living(refused.item)
                renewed = await self._renew(item, expires, later) if item and ddb.is_held(item, held) else None
                if renewed is None:
                    raise Fenced(record.id, held.token) from None
                later = renewed
            else:
                return
        raise restless(record.id)

    async def keep(self, item: Item, record: Record, name: str, data: bytes, now: float) -> Item | None:
        """Keep a signal if the record is as it was read.

        Args:
            item: The record, as it was read.
            record: What that says.
            name: The signal's name.
            data: What comes with it.
            now: When the record is due if it waits for this signal.

        Returns:
            The record as it now stands; ``None``: nothing was kept.

        Raises:
            StorageError: When there is no room for it.
        """
        if ddb.size(item) > ddb.FULL:
            raise StorageError(
                f"DynamoDB: execution {record.id!r} has no room for another signal, for an item holds at most 400 KB: "
                "send it fewer, or let it take them and go on by again()"
            )
        wakes = record.waits == name and not record.lease
        expires, later = self._terms(record._replace(due=now) if wakes else record)
        later = await self._renew(item, expires, later) or later
        stem, lasting, by = record.run + ddb.SENT, self._expires(later), ddb.value(new_run())
        stored = await write_data(self._table, record.id, stem, data, limit=ddb.SIGNAL, expires=lasting)
        kept = {"M": {"data": stored, "by": by}}
        values: dict[str, Any] = {"held_run": record.run, "held_token": record.token, "name": name, "data": kept}
        values |= {"by": by, "due": now, "rings": ddb.number(now), "expires": expires, "later": later}
        update, check = "SET #pending.#signal = :data, #signalled = :by", _RESTING if wakes else _RUNNING
        if wakes:
            update += ", #due = :due, #rings = :rings"
        if self._ttl is not None:
            update += ", #expires = :expires" if wakes else ""
            check += _OUTLIVED
        try:
            return await self._table.update(ddb.key(record.id), update, check, values, signal=name, returns="ALL_NEW")
        except Refused as refused:
            found = refused.item
            # It is ours even if it was taken, or if others came, before a client has repeated what was lost.
            if found is not None and (found.get("signalled") == by or found["pending"]["M"].get(name) == kept):
                return found
        await self._table.drop(record.id, parts_of(stored))
        return None

    async def _write_input(self, record: Record, name: str, later: int) -> Value:
        """Return an input as a value, after the parts of a large one were written, whose keys have this name."""
        stem, expires = record.run + name, self._expires(later)
        return await write_data(self._table, record.id, stem, record.input, limit=ddb.INPUT, expires=expires)

    async def _write_result(self, record: Record, result: Result, later: int) -> Item:
        """Return a result as an item, after the parts of a large one were written."""
        part, expires = ddb.key_of(record, result.step), self._expires(later)
        stem = part.replace("#", ":")
        data = await write_data(self._table, record.id, stem, result.data, limit=ddb.PART, expires=expires)
        about = ddb.encode(result, (name for name in ddb.ABOUT if getattr(result, name) is not None))
        return ddb.key(record.id, part) | about | {"data": data} | expires

    def _expires(self, later: int) -> Item:
        """Return what an item needs that is to expire then."""
        return {} if self._ttl is None else {"expires": ddb.value(later)}

    def _terms(self, record: Record) -> tuple[int, int]:
        """Return when the record is to expire, and when what is written with it: late enough for any shorter lease."""
        ttl = self._ttl or 0.0
        last = max(time(), record.changed, record.rings_at or 0.0, record.wake or 0.0)
        expires = ceil(min(last, ddb.FOREVER) + ttl)
        return expires, ceil(expires + 2 * ttl)

    async def _renew(self, item: Item, expires: int, later: int) -> int | None:
        """Make all else of an execution outlive its record.

        Args:
            item: The record.
            expires: When the record is to expire.
            later: When new items are to expire.

        Returns:
            When new items have to expire instead; ``None``: nothing was to be done.
        """
        if self._ttl is None:
            return None
        until, target = (int(item[name]["N"]) if name in item else 0 for name in ("until", "target"))
        if until >= expires:
            return target if target > later else None
        id = item["id"]["S"]
        if target < expires:  # or else another has begun to renew it, and what it has done is done
            target = ceil(expires + self._ttl)
        values = {"target": target, "held_run": item["run"]}
        with suppress(Refused):
            # From here on nothing is written that lives less long: what is listed then is all there is to prolong.
            check = "#run = :held_run AND (attribute_not_exists(#target) OR #target <= :target)"
            await self._table.update(ddb.key(id), "SET #target = :target", check, values)
            for old in await self._table.get_all(id, "#part, #expires"):
                part = old["part"]["S"]
                if part != ddb.RECORD and int(old.get("expires", {"N": 0})["N"]) < target:
                    key = ddb.key(id, part)
                    with suppress(Refused):
                        await self._table.update(key, "SET #expires = :target", "attribute_exists(#id)", values)
            check = "#run = :held_run AND #target = :target"
            await self._table.update(ddb.key(id), "SET #until = :target", check, values)
        return max(target, later)


def _clauses(absent: str | None, taken: str | None) -> tuple[str, str, tuple[str, ...]]:
    """Return on what condition a record is written, what becomes of a signal's name, and what is removed."""
    if absent is not None:
        return f"{_HELD} AND attribute_not_exists(#pending.#signal)", "DELETE #closed :names", ()
    if taken is not None:
        return _HELD, "ADD #closed :names", ("#pending.#signal",)
    return _HELD, "", ()


def _update(fields: Iterable[str], optional: Mapping[str, Value | None], removed: Iterable[str]) -> str:
    """Return an expression that writes fields, and others if they have a value; what has none it removes."""
    sets = [f"#{name} = :{name}" for name in (*fields, *(name for name in optional if optional[name]))]
    gone = [*removed, *(f"#{name}" for name in optional if not optional[name])]
    return f"SET {', '.join(sets)}" + (f" REMOVE {', '.join(gone)}" if gone else "")


def _is_by(claim: Value, item: Item | None) -> bool:
    """Whether a claim has succeeded after all: a client that repeats what was lost is refused by its own success."""
    return item is not None and item.get("claim") == claim


def restless(id: str) -> StorageError:
    """Return what to raise when no attempt has come through."""
    return StorageError(
        f"DynamoDB: execution {id!r} changed under each of {ddb.ATTEMPTS} attempts, or parts of its input were deleted"
        ": try again, or delete it"
    )
