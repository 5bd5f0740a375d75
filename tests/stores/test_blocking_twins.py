"""Blocking twins on stores that are reached through a client, with an event loop around them or none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from itertools import count
from typing import Any

import pytest
from obstore.store import S3Store

from sequential import EventLoopNeeded, FlowExecutor, tool
from sequential.stores.memory import MemoryStorage
from sequential.stores.objects import ObjectStorage
from sequential.stores.redis import RedisStorage
from tests.servers.seaweed import SeaweedServer
from tests.servers.valkey import ValkeyServer
from tests.support import echo

numbers = count()


def workflow() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b", "answer"))


@pytest.fixture
def storage(valkey_server: ValkeyServer) -> RedisStorage:
    from redis.asyncio import Redis

    client = Redis.from_url(valkey_server.url)
    return RedisStorage(client, prefix=f"twins-{os.getpid()}-{next(numbers)}:")


@pytest.mark.parametrize("around", [False, True])
def test_an_async_client_is_refused_before_anything_is_sent(storage: RedisStorage, around: bool) -> None:
    flow = FlowExecutor(storage, call=echo, retain=True)

    def block() -> None:
        for twin in (flow.execute_sync, flow.start_sync):
            with pytest.raises(EventLoopNeeded):
                twin(workflow, "one")
        with pytest.raises(EventLoopNeeded):
            flow.sweep_sync()

    async def run() -> Any:
        assert await flow.list() == []  # by now there is a connection that something could be sent on
        if around:
            block()
        assert await flow.list() == []
        await flow.execute(workflow, "one")
        value = await flow.execute(workflow, "one")
        await storage.close()
        return value

    if not around:
        block()
    assert asyncio.run(run()) == "answer"


def test_a_loop_within_a_blocking_twin_is_waited_for(storage: RedisStorage) -> None:
    inner = FlowExecutor(storage, call=echo, budget=9.0)

    def call(category: str, name: str, input: Any) -> Any:
        async def run() -> Any:
            value = await inner.execute(workflow, "one")
            await storage.close()
            return value

        return asyncio.run(run())

    assert FlowExecutor(MemoryStorage(), call=call, budget=9.0).execute_sync(workflow) == "answer"


def test_an_object_store_blocks_under_an_event_loop(seaweed_server: SeaweedServer) -> None:
    store = S3Store(**seaweed_server.options, prefix=f"twins-{os.getpid()}-{next(numbers)}")
    flow = FlowExecutor(ObjectStorage(store), call=echo, budget=9.0)

    async def run() -> Any:
        return flow.execute_sync(workflow), await flow.execute(workflow)

    assert asyncio.run(run()) == ("answer", "answer")
