"""A flow behind a handler, and callbacks for it, as several tests need them."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from time import time
from typing import Any

from sequential import FlowExecutor, tool
from sequential.http import Request
from sequential.http.callback import Callback
from sequential.http.signing import Signer
from sequential.record import Entry, Record, state_of
from sequential.stores.memory import MemoryStorage

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def three(input: Any) -> Generator[Any, Any, Any]:
    zero = yield tool("api", "square", 0)
    one = yield tool("api", "square", 1)
    return [zero, one, (yield tool("api", "square", 2))]


class Watched(MemoryStorage):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def read(self, id: str, start: tuple[int, int] = (0, 0), stop: int = 0) -> tuple[Record | None, list[Entry]]:
        self.asked += 1
        return super().read(id, start, stop)

    def write(self, *arguments: Any, **options: Any) -> bool:
        self.asked += 1
        return super().write(*arguments, **options)


class World:
    """A store, an executor over it, and what was called and rung.

    Args:
        options: For the executor.
    """

    def __init__(self, **options: Any) -> None:
        self.storage = Watched()
        self.called: list[int] = []
        self.rung: list[str] = []
        self.during: Callable[[], object] = lambda: None
        given = {"call": self.call, "resume": self.rung.append, "workflows": [three], "retain": True, **options}
        self.flow = FlowExecutor(self.storage, **given)

    def call(self, category: str, name: str, input: int) -> int:
        self.called.append(input)
        self.during()
        return input * input

    def start(self, id: str = "exec-1") -> Record:
        self.flow.start_sync(three, id=id)
        return self.record(id)

    def record(self, id: str = "exec-1") -> Record:
        record, _ = MemoryStorage.read(self.storage, id)
        assert record is not None
        return record

    def put(self, **changes: Any) -> None:
        """Change the record of exec-1."""
        old = self.record()
        assert MemoryStorage.write(self.storage, old, old._replace(stamp="changed", **changes))

    def lease(self) -> float:
        return state_of(self.record()).lease


def callback_for(record: Record, hop: int = 1) -> Callback:
    return Callback(record.id, record.run, record.step, hop)


def request_for(
    callback: Callback, secret: str = SECRET, *, at: float | None = None, path: str | None = None, **changed: Any
) -> Request:
    """The signed request that rings, or one that differs from it."""
    body = changed.pop("body", callback.encode())
    headers = Signer(secret).sign(callback.message_id, time() if at is None else at, body)
    request = Request("POST", path or f"/flows/resume/{callback.id}", headers, body)
    return request._replace(**changed)


JUNK = [b"null", b"-1", b"1e999", b'"', b"{", b"}", b"[", b"\\ud800", b"9" * 50, b"\0"]


def mutated(chance: random.Random, value: bytes) -> bytes:
    for _ in range(chance.randrange(4)):
        at, length = chance.randrange(len(value) + 1), chance.randrange(4)
        junk = [chance.randbytes(chance.randrange(8)), b"", chance.choice(JUNK), value]
        value = value[:at] + chance.choice(junk) + value[at + length :]
    return value[:5000]


def stranger(chance: random.Random, good: Request) -> Request:
    """A request that begins as a good one, and whose secret, body, path, method or headers are not."""

    def text(value: str) -> str:
        return mutated(chance, value.encode(errors="surrogateescape")).decode("latin-1")

    signed = request_for(Callback("exec-1"), OTHER_SECRET) if chance.random() < 0.5 else good
    headers = {name: text(value) for name, value in signed.headers.items() if chance.random() < 0.95}
    body = mutated(chance, good.body)
    if chance.random() < 0.02:
        body = chance.randbytes(chance.choice([4096, 4097, 100_000]))
    path = chance.choice(["/resume/exec-1", f"/resume/{text('exec-1')}", text("/flows/resume/exec-1")])
    method = chance.choice(["POST"] * 8 + ["GET", "PUT", "", "P\0ST"])
    request = Request(method, path, headers, body)
    proves = headers == good.headers and body == good.body
    return request._replace(body=body + b" ") if proves else request
