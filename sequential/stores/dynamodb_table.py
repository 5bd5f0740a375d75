"""Requests to a table of DynamoDB, made again where they meet others, and what to do about what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from random import random
from time import sleep
from typing import Any

from ..blocking import is_async
from ..errors import StorageError
from ..storage import settle
from . import dynamodb_items as ddb
from .clients import extra
from .dynamodb_items import Item

with extra("dynamodb"):
    from botocore.exceptions import BotoCoreError, ClientError

_WRITTEN = 25
"""Items that are written or deleted at once: as many as DynamoDB allows."""

_PATIENCE = {"Delay": 1, "MaxAttempts": 300}

_CONFLICTS = ("TransactionConflict", "TransactionConflictException", "TransactionInProgressException")
_CREDENTIALS = ("ExpiredTokenException", "InvalidSignatureException", "UnrecognizedClientException")
_THROTTLING = (
    "ProvisionedThroughputExceeded",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingError",
    "ThrottlingException",
)
_BUSY = frozenset({"ProvisionedThroughputExceeded", "ThrottlingError", *_CONFLICTS})
"""What a client does not try again by itself."""

_THROTTLED = "raise the table's throughput, or try again later"
_LIMITED = "an item holds at most 400 KB, a number 38 digits, and table= must name what create_schema() has made"
_REMEDIES = {
    "AccessDeniedException": "grant these credentials what is missing",
    "ResourceNotFoundException": "its table is not there: call create_schema() once",
    **dict.fromkeys(_CONFLICTS, "others write the same execution: try again"),
    **dict.fromkeys(_CREDENTIALS, "give the client valid credentials"),
    **dict.fromkeys(_THROTTLING, _THROTTLED),
    **dict.fromkeys(("ValidationError", "ValidationException"), _LIMITED),
}
_REFUSED = "nothing was recorded"
_UNKNOWN = "it may have been recorded or not: look, or try again"
_FAILED = 500
"""HTTP's status from which on it was the server that failed, and not the request that was refused."""


class Refused(Exception):
    """A condition did not hold.

    Args:
        item: The item as it stands, if there is one.
    """

    def __init__(self, item: Item | None) -> None:
        self.item = item


class Table:
    """A table, and the client that reaches it.

    Args:
        client: That of boto3, or one of aiobotocore.
        name: The table's name.

    Raises:
        TypeError: When `client` is none of DynamoDB.
    """

    def __init__(self, client: Any, name: str) -> None:
        if not hasattr(client, "transact_write_items"):
            raise TypeError(f'client= is boto3.client("dynamodb"), or one of aiobotocore, not {client!r:.100}')
        self.client, self.name = client, name
        self.is_async = is_async(client.close)  # aiobotocore's requests only return what is to be awaited

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

    async def put_each(self, items: list[Item]) -> None:
        """Write up to 25 items, whatever is there."""
        await self._batch("write", "UnprocessedItems", [{"PutRequest": {"Item": item}} for item in items])

    async def update(
        self, key: Item, update: str, check: str, values: Mapping[str, Any], *, signal: str = "", returns: str = "NONE"
    ) -> Item:
        """Change an item; with ``ALL_NEW``, return it as it then stands."""
        request = ddb.expressions(values, signal, UpdateExpression=update, ConditionExpression=check)
        answer = await self.ask("update_item", Key=key, ReturnValues=returns, **request)
        item: Item = answer.get("Attributes", {})
        return item

    async def delete(self, id: str, parts: Iterable[str]) -> None:
        """Delete items of an execution."""
        left = iter(parts)
        while batch := [{"DeleteRequest": {"Key": ddb.key(id, part)}} for part in islice(left, _WRITTEN)]:
            await self._batch("write", "UnprocessedItems", batch)

    async def drop(self, id: str, parts: Iterable[str]) -> None:
        """Delete items of an execution that nobody looks at any more, as far as that can be done."""
        with suppress(StorageError):  # what they belonged to is settled, and the next removal tries again
            await self.delete(id, parts)

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
        raise StorageError(f"DynamoDB: {operation} was not completed in {ddb.ATTEMPTS} attempts: {_THROTTLED}")

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
                if attempt == ddb.ATTEMPTS or not codes & _BUSY:
                    raise explain(error) from error
            except BotoCoreError as error:
                raise explain(error) from error
            else:
                return answer
            await self._wait(attempt)

    async def wait_until_ready(self) -> None:
        """Wait until the table is there and ready."""
        try:
            waiter = self.client.get_waiter("table_exists")
            await settle(waiter.wait(TableName=self.name, WaiterConfig=_PATIENCE))
        except BotoCoreError as error:
            raise explain(error) from error

    async def _wait(self, attempt: int) -> None:
        seconds = min(1.0, 0.02 * 2**attempt) * random()  # noqa: S311 - only so that two do not meet again
        if self.is_async:
            from asyncio import sleep as sleep_async  # noqa: PLC0415 - slow to import, and not for plain clients

            await sleep_async(seconds)
        else:
            sleep(seconds)  # noqa: ASYNC251 - a plain client has no event loop


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
