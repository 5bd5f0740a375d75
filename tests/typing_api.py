"""What users' type checkers infer: mypy and pyright check this file, and nothing in it is run."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, assert_type
from wsgiref.types import WSGIApplication

from cryptography.fernet import Fernet
from starlette.applications import Starlette
from starlette.routing import Mount

from sequential import (
    Cancelled,
    Current,
    Event,
    FlowExecutor,
    Paused,
    Status,
    ToolError,
    again,
    current,
    install,
    run_until,
    save,
    sleep,
    tool,
    version,
    wait,
)
from sequential.codecs import Compressed, Encrypted
from sequential.five import Storage, journal_for
from sequential.http import Handler, HttpResume, Request, Response, asgi_app, lambda_handler, new_secret, wsgi_app
from sequential.journal import Journal
from sequential.patterns import call as call_tool
from sequential.patterns import check, retry, saga
from sequential.record import Entry, Record
from sequential.stores import open as open_storage
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.sweeper import sweep_forever
from sequential.testing import FakeClock, JournalTests, StorageTests, crash_points, replay
from sequential.testing import run as run_workflow
from sequential.tools import Tools


def returns_int(input: dict[str, int]) -> Generator[Any, Any, int]:
    user = yield tool("api", "user", {"id": input["id"]})
    yield save()
    yield {"__tool": ["api", "posts", {}]}
    number = yield version()
    return int(user["id"]) + int(number)


def returns_text() -> Generator[dict[str, Any], Any, str]:
    yield tool("api", "now")
    return "text"


class Mine:
    def get(self, id: str) -> dict[str, int] | None: ...

    def set(self, id: str, state: dict[str, int]) -> None: ...

    def delete(self, id: str) -> None: ...

    def get_result(self, id: str, step: int) -> Any: ...

    def set_result(self, id: str, step: int, data: Any) -> None: ...


class MineAsync:
    async def get(self, id: str) -> dict[str, int] | None: ...

    async def set(self, id: str, state: dict[str, int]) -> None: ...

    async def delete(self, id: str) -> None: ...

    async def get_result(self, id: str, step: int) -> Any: ...

    async def set_result(self, id: str, step: int, data: Any) -> None: ...


async def call_async(category: str, name: str, input: Any) -> Any: ...


def call(category: str, name: str, input: Any) -> Any: ...


async def resume_async(id: str) -> None: ...


def observe(event: Event) -> None:
    assert_type(event.kind, str)
    assert_type(event.error, BaseException | None)


def blocking(flow: FlowExecutor) -> None:
    outcome = flow.execute_sync(returns_int, "id", {"id": 1})
    assert_type(outcome, int | Paused)
    if isinstance(outcome, Paused):
        reason: str = outcome.reason
        print(reason)
        assert_type(outcome["step"], Any)
    else:
        assert_type(outcome, int)
    assert_type(flow.execute_sync(returns_text), str | Paused)
    assert_type(flow.run_sync(returns_int, "id", {"id": 1}), int)
    assert_type(flow.start_sync(returns_int, "id", {"id": 1}), str)
    assert_type(flow.ring_sync("id"), bool)
    assert_type(flow.status_sync("id"), Status | None)
    assert_type(flow.history_sync("id"), list[dict[str, Any]])
    rung: list[str] = flow.sweep_sync(limit=5)
    assert_type(flow.sweep_sync().failed, list[str])
    assert_type(flow.purge_sync(60, waiting=True), list[str])
    assert_type(flow.signal_sync("id", "name", {"any": "JSON"}, queue=True), bool)
    assert_type(flow.cancel_sync("id", force=True), bool)
    assert_type(flow.fork_sync("id", at=3, new_id="other"), str)
    assert_type(flow.list_sync("failed", workflow="w", limit=5, after="id"), list[Status])
    flow.resume_sync(rung[0], parked=True)
    flow.delete_sync("id")
    flow.execute_sync(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.status_sync(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.sweep_sync(limit="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def awaited(flow: FlowExecutor) -> None:
    assert_type(await flow.execute(returns_int, "id", {"id": 1}), int | Paused)
    assert_type(await flow.execute(workflow=returns_text, id=None), str | Paused)
    assert_type(await flow.run(returns_text), str)
    assert_type(await flow.start(returns_int), str)
    assert_type(await flow.ring("id"), bool)
    status = await flow.status("id")
    assert_type(status, Status | None)
    if status is not None:
        assert_type(status.waits, tuple[str, ...])
    assert_type(await flow.history("id"), list[dict[str, Any]])
    assert_type((await flow.sweep()).failed, list[str])
    assert_type(await flow.signal("id", "name"), bool)
    assert_type(await flow.cancel("id"), bool)
    assert_type(await flow.fork("id", 0), str)
    assert_type(await flow.list(), list[Status])
    await flow.resume("id")
    await flow.delete("id")


def constructed() -> None:
    FlowExecutor(MemoryStorage(), call=call, resume=print, workflows=[returns_int, returns_text])
    FlowExecutor(SQLiteStorage("file"), call=call_async, resume=resume_async, observe=observe, clock=FakeClock())
    FlowExecutor(Mine(), budget=5, lease=60, retain=False, version=3, errors="raise", strict=False)
    FlowExecutor(MineAsync(), retain=3600)
    FlowExecutor(MemoryStorage(), errors="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FlowExecutor(object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FlowExecutor(MemoryStorage(), call=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    FlowExecutor(MemoryStorage(), observe=call)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SQLiteStorage("file", codec=Encrypted(Fernet(b""), Compressed(), key=bytes(16)))
    SQLiteStorage("file", synchronous="OFF")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    storage: Storage = MemoryStorage()
    assert_type(journal_for(storage), Journal)
    assert_type(open_storage("memory://"), Journal)


async def journals(journal: Journal, memory: MemoryStorage) -> None:
    assert_type(memory.read("id"), tuple[Record | None, list[Entry]])
    record, entries = memory.read("id", (0, 0), 5)
    assert record is not None
    assert_type(record.due, float | None)
    assert_type(entries[0].data, bytes)
    assert_type(await journal.update("id", record, lambda known, since: None), Record | None)


def tested() -> None:
    assert_type(crash_points(returns_int, {"id": 1}, call=call_async, storage=MineAsync(), signals={"go": 1}), int)
    assert_type(replay(returns_int, [{}], {"id": 1}, version=2), None)
    assert_type(run_workflow(returns_int, {"id": 1}, call=call, clock=FakeClock(), errors="raise"), int)

    class Conforming(StorageTests):
        def make(self) -> Mine:
            return Mine()

    class ConformingLater(JournalTests):
        async def make(self) -> Journal:
            return MemoryStorage()

    Conforming()
    ConformingLater()


def hooks() -> None:
    install(call=call)
    with install(resume=resume_async) as installed:
        assert_type(installed, install)
    assert_type(current(), Current)
    assert_type(current().key, str)


def everything() -> Generator[Any, Any, Any]:
    yield [tool("api", "user", once=True), tool("api", "user", {"id": 1})]
    yield sleep(0.5)
    yield wait("approval", timeout=60)
    sleep("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return again({"round": 2})


def registered() -> None:
    tools = Tools(threads=True)
    assert_type(tools.add("api", fetch_name)(id=1), str)

    @tools.add("api", name="age", timeout=5)
    def age(id: int) -> int:
        return id

    assert_type(age(id=1), int)
    tools.add("api", 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    FlowExecutor(MemoryStorage(), call=tools)


def fetch_name(id: int, short: bool = False) -> str:
    return str(id)


async def fetch_age(id: int) -> int:
    return id


def patterns(input: dict[str, int]) -> Generator[dict[str, Any], Any, int]:
    assert_type((yield from call_tool(fetch_name, id=1, short=True)), str)
    assert_type((yield from call_tool(fetch_age, id=1)), int)
    yield from call_tool(fetch_name)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    yield from call_tool(fetch_age, id="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    assert_type(check((yield tool("api", "user"))), Any)
    assert_type(check(5), int)
    assert_type((yield from retry(tool("api", "user"), attempts=5, retry_on=["busy"])), Any)
    yield from retry({"__tool": ["api", "user", {}]})
    assert_type(check((yield from retry(tool("api", "user"), retry_on=lambda message: message.isdigit()))), Any)
    retry(returns_text())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    trip = saga(attempts=5, retry_on=["busy"])
    assert_type(trip, saga)
    assert_type((yield from trip.do(tool("flight", "book"), undo=lambda flight: tool("flight", "cancel", flight))), Any)
    age = yield from trip.do(call_tool(fetch_age, id=1), undo=lambda age: call_tool(fetch_name, id=age.bit_length()))
    assert_type(age, int)
    assert_type((yield from trip.do(returns_text())), str)
    try:
        yield from trip.do({"__wait": ["paid", None]})
    except (Exception, Cancelled):
        assert_type((yield from trip.undo()), None)
        raise
    assert_type(ToolError("message").tool, str | None)
    assert_type(ToolError("message").not_undone, tuple[ToolError, ...])
    return age


async def over_http(flow: FlowExecutor, scope: dict[str, Any]) -> None:
    FlowExecutor(MemoryStorage(), resume=HttpResume("https://example.org", [b"old", "new"], hop_limit=4))
    HttpResume("https://example.org", post=lambda url, headers, body: 200 if url and headers["a"] and body[0] else None)
    HttpResume(b"https://example.org")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Starlette(routes=[Mount("/flows", asgi_app(flow, "secret", threads=True))])
    application: WSGIApplication = wsgi_app(flow, insecure=True, run=asyncio.run)
    application({}, lambda status, headers, error=None, /: lambda data: None)
    handler = Handler(flow, new_secret())
    request = Request("POST", "/resume/1", {}, b"")
    assert_type(await handler.handle(request), Response)
    assert_type(handler.handle_sync(request), Response)
    lambda_handler(flow, "secret", run=asyncio.Runner().run)({"resume": "exec-1"}, None)
    with run_until(1e9, margin=5):
        await sweep_forever(flow, every=60)
