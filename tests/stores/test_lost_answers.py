"""The answer to one request is lost, and the driver does not ask again: whichever it is, nothing is done twice."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any

import pytest

from sequential import FlowExecutor, tool
from sequential.errors import StorageError
from sequential.storage import Journal
from tests.servers.proxy import Proxy
from tests.servers.valkey import ValkeyServer
from tests.stores.support import square

numbers = count()


@pytest.fixture
def on_redis(valkey_server: ValkeyServer) -> Iterator[tuple[Journal, Proxy]]:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from sequential.stores.redis import RedisStorage

    with (
        Proxy(valkey_server.url) as proxy,
        Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        yield RedisStorage(client, prefix=f"lost-{next(numbers)}:"), proxy


@pytest.fixture
def on_postgres(postgres_database: str) -> Iterator[tuple[Journal, Proxy]]:
    from psycopg_pool import ConnectionPool

    from sequential.stores.postgres import PostgresStorage

    settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
    with (
        Proxy(postgres_database) as proxy,
        ConnectionPool(proxy.url, open=True, kwargs=settings, check=ConnectionPool.check_connection) as pool,
    ):
        storage = PostgresStorage(pool)
        storage.create_schema()
        yield storage, proxy


@pytest.fixture(params=["on_redis", "on_postgres"])
def store(request: pytest.FixtureRequest) -> tuple[Journal, Proxy]:
    found: tuple[Journal, Proxy] = request.getfixturevalue(request.param)
    return found


def sum_of_squares(steps: int) -> Generator[Any, Any, int]:
    total = 0
    for number in range(steps):
        total += yield tool("math", "square", number)
    return total


@pytest.mark.parametrize("retain", [False, True])
def test_any_answer_may_be_lost(store: tuple[Journal, Proxy], retain: bool) -> None:
    storage, proxy = store
    now, calls = 0.0, list[int]()

    def call(category: str, name: str, input: int) -> int:
        calls.append(input)
        return square(category, name, input)

    flow = FlowExecutor(storage, call=call, budget=math.inf, retain=retain, clock=lambda: now)
    assert flow.execute_sync(sum_of_squares, "warm", 3) == 5
    lost = 0
    for lost in count():
        calls.clear()
        proxy.lose_after = lost
        try:
            assert flow.execute_sync(sum_of_squares, f"id-{lost}", 3) == 5
        except StorageError:
            now += 1000.0
            assert not calls, f"only before the first call, and not at request {lost}"
            assert flow.execute_sync(sum_of_squares, f"id-{lost}", 3) == 5
        assert calls == [0, 1, 2]
        if proxy.lose_after is not None:
            break
    assert lost > 3
    proxy.lose_after = None
