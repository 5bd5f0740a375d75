"""Executions in PostgreSQL: many at once over an async pool, and their results queried by SQL.

    python examples/store_postgres.py postgresql://user:password@host/database

It needs the driver: ``pip install -e ".[postgres]"``.

A server for trying: ``docker run --rm -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:18``, which is at
``postgresql://postgres@127.0.0.1/postgres``.  Stop this script in its midst and run it again: it goes on.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Generator
from typing import Any

from psycopg_pool import AsyncConnectionPool, PoolTimeout

from sequential import FlowExecutor, tool
from sequential.stores.postgres import PostgresStorage


def order(input: dict[str, Any]) -> Generator[Any, Any, str]:
    """Reserve, charge and ship."""
    reserved = yield tool("stock", "reserve", {"item": input["item"]})
    paid = yield tool("bank", "charge", {"amount": reserved["price"]})
    parcel = yield tool("post", "ship", {"item": input["item"], "receipt": paid["receipt"]})
    return str(parcel["number"])


async def call(category: str, name: str, input: dict[str, Any]) -> dict[str, Any]:
    """Perform a tool; a service elsewhere would be asked here."""
    await asyncio.sleep(0)
    match name:
        case "reserve":
            return {"price": 10 * len(input["item"])}
        case "charge":
            return {"receipt": f"paid {input['amount']}"}
        case _:
            return {"number": f"parcel with {input['item']}, {input['receipt']}"}


async def main(url: str) -> None:
    """Run ten orders at once, and list what they cost."""
    # The storage's own transactions are single statements, so its connections are in autocommit mode.
    pool = AsyncConnectionPool(url, kwargs={"autocommit": True}, max_size=10, open=False)
    async with pool:
        await pool.wait(timeout=5)
        storage = PostgresStorage(pool)
        await storage.create_schema()  # once, at deployment; or in a migration of yours, from storage.schema
        flow = FlowExecutor(storage, call=call, retain=True, budget=math.inf)
        items = ["pen", "book", "lamp", "chair", "table", "carpet", "bicycle", "piano", "tent", "kite"]
        parcels = await asyncio.gather(
            *(flow.execute(order, f"order-{number}", {"item": item}) for number, item in enumerate(items))
        )
        print(*parcels, sep="\n")
        async with pool.connection() as connection:
            found = await connection.execute(
                "SELECT id, data ->> 'price' FROM sequential_history "
                "WHERE asked = 'tool stock.reserve' AND (data ->> 'price')::int >= 60 ORDER BY id"
            )
            for id, price in await found.fetchall():
                print(f"{id} costs {price}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        asyncio.run(main(sys.argv[1]))
    except PoolTimeout as error:
        sys.exit(f"{error}\n{__doc__}")
