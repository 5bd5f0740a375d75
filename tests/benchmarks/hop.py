"""One hop over HTTP: a callback comes in, claim, replay 10 steps, a tool, commit, and the next callback goes out.

The floor is a request to the same server, which does one SELECT and one transaction on the same store.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from time import time
from typing import Any, Protocol

from sequential import FlowExecutor, stores, tool
from sequential.http import HttpResume, asgi_app
from sequential.http.asgi import App, Message, Receive, Send
from sequential.http.callback import Callback
from sequential.http.signing import Signer
from sequential.record import Record
from tests.benchmarks.store import RESULT
from tests.benchmarks.table import Found, Row, directory, side_by_side
from tests.servers.web import Uvicorn

SECRET = b"benchmark" * 4
REPLAYED = 10
HOPS = 200


class Bare(Protocol):
    """What one would write by hand for a step over the same store."""

    def __call__(self) -> object:
        """Read a counter; record a result and move the counter on, in one transaction."""


def on_sqlite(connection: Any) -> Bare:
    """Return the step on SQLite, each transaction waiting for the disk."""
    connection.execute("CREATE TABLE IF NOT EXISTS floor_steps (step INTEGER PRIMARY KEY, data TEXT)")
    connection.execute("CREATE TABLE IF NOT EXISTS floor (step INTEGER)")
    connection.execute("INSERT INTO floor VALUES (0)")

    def step() -> None:
        (number,) = connection.execute("SELECT step FROM floor").fetchone()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO floor_steps VALUES (?, ?)", (number, json.dumps(RESULT)))
        connection.execute("UPDATE floor SET step = ?", (number + 1,))
        connection.execute("COMMIT")

    return step


def bare_step(url: str) -> Bare:
    """Return the step by hand over a connection of its own to the store at `url`."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return on_sqlite(connection)


def workflow() -> Generator[Any, Any, Any]:
    """Ask for the same thing again and again."""
    for number in range(REPLAYED + 2):
        yield tool("api", "call", {"number": number})


def executor(url: str, ring: HttpResume | None) -> FlowExecutor:
    """Return an executor over the store at `url`."""
    return FlowExecutor(stores.open(url), call=lambda *_: RESULT, resume=ring, workflows=[workflow])


def application() -> App:
    """Serve callbacks that ring, callbacks that do not, the floor, and whoever is rung."""
    url, here = os.environ["BENCHMARK_STORE"], os.environ["SEQUENTIAL_URL"]
    ringing = asgi_app(executor(url, HttpResume(f"{here}/rung", SECRET)), SECRET)
    silent = asgi_app(executor(url, None), SECRET)
    step = bare_step(url)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        kind = scope.get("path", "").split("/")[1:2]
        if kind == ["ringing"]:
            return await ringing(scope, receive, send)
        if kind == ["silent"] or scope["type"] == "lifespan":
            return await silent(scope, receive, send)
        await receive()
        if kind == ["bare"]:
            step()
        status = 404 if kind == [""] else 202
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        return await send({"type": "http.response.body"})

    return app


def records(url: str) -> Iterator[Record]:
    """Make executions with 10 steps behind them."""
    with closing(stores.open(url)) as storage:
        flow = FlowExecutor(storage, call=lambda *_: RESULT)
        for _ in range(REPLAYED + 1):
            flow.execute_sync(workflow, "source")
        while True:
            found = storage.read(flow.fork_sync("source", REPLAYED))
            assert isinstance(found, tuple)
            record, _ = found
            assert record is not None
            yield record


def measure(name: str, url: str) -> Iterator[Row]:
    """Measure the hop on the store at `url`."""
    made = records(url)
    served = Uvicorn("tests.benchmarks.hop:application", "--factory", settings={"BENCHMARK_STORE": url})
    with served as server, closing(HTTPConnection("127.0.0.1", server.port)) as connection:

        def post(path: str, headers: dict[str, str], body: bytes) -> None:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse().read()
            assert b"error" not in answer, answer

        def hop(kind: str, records: Iterator[Record]) -> None:
            record = next(records)
            callback = Callback(record.id, record.run, record.step, 1)
            headers = Signer(SECRET).sign(callback.message_id, time(), callback.encode())
            post(f"/{kind}/resume/{record.id}", headers, callback.encode())

        ready = [iter([next(made) for _ in range(HOPS)]) for _ in range(2)]
        runs = (partial(hop, "ringing", ready[0]), partial(hop, "silent", ready[1]), partial(post, "/bare", {}, b"{}"))
        ringing, silent, bare = side_by_side(HOPS, *runs)
    what = "a request to the same server that does one SELECT and one transaction on the same store"
    yield Row(f"a hop on {name}: claim, replay 10, tool, commit", "ms", 1e3 * silent, 1e3 * bare, what)
    yield Row(f"a hop on {name}, and the ring for the next", "ms", 1e3 * ringing, 1e3 * bare, what)


def hop() -> Found:
    """A hop on SQLite."""
    with directory() as folder:
        return [*measure("SQLite", f"sqlite:///{folder}/flows.db")], []
