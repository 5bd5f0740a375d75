"""Under Pyodide, CPython for WebAssembly, on which Cloudflare runs Python: our own tests, and the example of a Worker."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from examples.cloudflare_d1 import TABLES, D1Storage
from sequential import CallbackFailed, FlowExecutor, tool
from sequential.context import Current, being_called
from sequential.errors import StorageError
from sequential.http import HttpResume, new_secret
from sequential.testing import JournalTests
from tests.conftest import absent, required
from tests.servers.processes import (
    INSTALL,
    NODE_MODULES,
    NPM_INSTALL,
    Missing,
    Server,
    fetch,
    free_port,
    package,
    until,
)

EDGE = Path(__file__).parent / "edge"
OWN_TESTS = (
    *("test_arguments.py", "test_blocking.py", "test_cancel.py", "test_executor.py", "test_failures.py"),
    *("test_history.py", "test_hooks.py", "test_observe.py", "test_replay.py", "test_requests.py", "test_retain.py"),
    *("test_statuses.py", "test_sweep.py", "test_workflows.py", "http/test_handler.py"),
    *("test_stores.py::TestMemory", "test_stores.py::TestSQLite"),
)
NEED_THREADS = ("one_of_many_writers", "reaches_threads", "writers_at_once", "not_finished and threads")
NEED_PROCESSES = ("dead_process",)
SLOW_THERE = ("ten_thousand_requests", "TestSQLite and every_request")
SECRET = new_secret()
ITEMS = [f"item-{number}" for number in range(20)]


def folders() -> list[str]:
    """The folders of the packages that are imported under Pyodide; none of them is compiled."""
    wanted = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "nanoid", "workers")
    found = [package(name) for name in wanted]
    if (
        None in found
        or shutil.which("node") is None
        or not all((NODE_MODULES / name).exists() for name in ("pyodide", "miniflare"))
    ):
        what = "Pyodide, Cloudflare's D1 or its package for Python"
        raise Missing(what, None, f"{INSTALL}, and {NPM_INSTALL}")
    return sorted({str(folder.parent) for folder in found if folder})


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """What came of `tests.edge.suite`."""
    try:
        packages = folders()
    except Missing as missing:
        absent(missing)
    options = shlex.split("-q -W error -c /dev/null --rootdir=. --assert=plain --tb=short -p no:cacheprovider")
    options += [
        "-k",
        f"not ({' or '.join(NEED_THREADS + NEED_PROCESSES + SLOW_THERE)})",
        *(f"tests/{name}" for name in OWN_TESTS),
    ]
    command = ["node", str(EDGE / "suite.mjs"), json.dumps(packages), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_our_own_tests_pass_there(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1000
    assert not re.search(r"\d+ (failed|error|skipped)", done.stdout)


def test_a_flow_waits_for_promises_of_javascript(done: subprocess.CompletedProcess[str]) -> None:
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["platform"] == "emscripten"
    assert said["version"] != sys.version
    assert tuple(map(int, said["version"].split(".")[:2])) >= (3, 14)
    value = [[20, 1], "yes", {"__error": "timeout"}, 3]
    paused = ["tool", "save", "sleep", "wait", "wait", "tool"]
    assert said["journeys"] == [[value, paused, [1, 20, 3]]] * 2


class Asked(NamedTuple):
    """A request that the services of the example got."""

    path: str
    body: Any
    key: str


class Services(ThreadingHTTPServer):
    """What the example's tools ask."""

    asked: list[Asked]


class Service(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Services)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(Asked(self.path, body, self.headers["idempotency-key"]))
        answer = {"price": 10} if self.path == "/stock/reserve" else f"{body['amount']} paid"
        said = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None: ...


class Edge(Server):
    """examples/cloudflare_worker.py, behind HTTP.

    Args:
        api: The port of the services that it asks.
    """

    name = "the edge"
    variable = "SEQUENTIAL_TEST_EDGE"
    death = signal.SIGTERM  # so that it ends the database too

    def __init__(self, api: int) -> None:
        super().__init__()
        self.api, self.d1 = api, D1(free_port())

    def find(self) -> Path:
        self.packages = folders()
        return EDGE

    def command(self) -> list[str]:
        variables = {"URL": f"{self.url}/flows", "SECRET": SECRET, "API": f"http://127.0.0.1:{self.api}", "BUDGET": "0"}
        given = {"port": self.port, "d1": self.d1.port, "folder": str(self.directory), "packages": self.packages}
        return ["node", str(EDGE / "worker.mjs"), json.dumps({**given, "variables": variables})]

    def ready(self) -> bool:
        return fetch(self.port, "GET", "/nowhere")[0] == 404

    def ask(self, method: str, path: str) -> Any:
        status, said = fetch(self.port, method, path)
        assert status < 300, said
        return json.loads(said)

    def order(self, *items: str) -> str:
        id: str = self.ask("POST", f"/orders?{'&'.join(f'item={item}' for item in items)}")["id"]
        return id

    def status(self, id: str) -> str:
        status: str = self.ask("GET", f"/orders/{id}")["status"]
        return status

    def step(self, id: str) -> int | None:
        """How many steps are recorded of an execution, or `None` while it runs."""
        (found,) = self.d1.run(["SELECT step FROM records WHERE id = ?1 AND state ->> 'lease' IS NULL", id])
        return found["results"][0]["step"] if found["results"] else None

    def hops(self, id: str) -> list[int]:
        """How many self-calls in a row each callback was that ran an execution."""
        accepted = re.findall(rf"^POST /flows/resume/{id} 202 (.*)$", self.log.read_text(), re.MULTILINE)
        return [json.loads(callback)["hop"] for callback in accepted]


class D1:
    """The binding of a Worker as a client of the real database.

    Args:
        port: Where it answers.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def prepare(self, sql: str) -> D1:
        self.sql = sql
        return self

    def bind(self, *values: Any) -> list[Any]:
        return [self.sql, *values]

    async def batch(self, statements: list[list[Any]]) -> Any:
        return await asyncio.to_thread(self.run, *statements)

    def run(self, *statements: list[Any]) -> Any:
        status, said = fetch(self.port, "POST", "/", json.dumps(statements).encode())
        if status != 200:
            raise RuntimeError(said.decode())
        return json.loads(said)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    services = Services(("127.0.0.1", 0), Service)
    services.asked = []
    thread = threading.Thread(target=services.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield services
    services.shutdown()
    thread.join()
    services.server_close()


@pytest.fixture(scope="module")
def edge(services: Services) -> Iterator[Edge]:
    with required(Edge(services.server_port)) as server:
        server.d1.run(*([sql] for sql in TABLES))
        yield server


@pytest.fixture
def asked(services: Services) -> list[Asked]:
    services.asked.clear()
    return services.asked


def test_an_order_goes_through(edge: Edge, asked: list[Asked]) -> None:
    id = edge.order("lamp", "rug")
    until(lambda: edge.status(id) == "waiting", "it waits for a yes")
    assert edge.ask("POST", f"/orders/{id}/approve") == {"taken": True}
    until(lambda: edge.status(id) == "finished", "it is finished")
    assert edge.ask("GET", f"/orders/{id}")["value"] == "20 paid"
    assert [each[:2] for each in asked] == [
        ("/stock/reserve", {"item": "lamp"}),
        ("/stock/reserve", {"item": "rug"}),
        ("/bank/charge", {"amount": 20}),
    ]
    assert [re.fullmatch(rf"{id}:\w+:(\d)", each.key)[1] for each in asked] == ["0", "1", "3"]  # type: ignore[index]
    assert edge.hops(id) == [1, 2, 3, 1, 2]
    assert HttpResume(f"{edge.url}/flows", SECRET)(id) == 200  # stale
    assert fetch(edge.port, "POST", f"/orders/{id}/approve")[0] == 409
    for method, path in (("GET", "/orders/nobody"), ("POST", "/orders/nobody/approve"), ("GET", "/orders/%20")):
        assert fetch(edge.port, method, path)[0] == 404


def test_a_chain_that_cloudflare_would_stop_is_left_to_the_sweep(edge: Edge, asked: list[Asked]) -> None:
    id = edge.order(*ITEMS)
    until(lambda: edge.step(id) == 16, "the last of them is through")
    assert [each.body["item"] for each in asked] == ITEMS[:16]
    edge.d1.run(["UPDATE records SET due = 0 WHERE id = ?1", id])
    assert fetch(edge.port, "POST", "/cdn-cgi/handler/scheduled")[0] == 200
    until(lambda: edge.status(id) == "waiting", "it waits for a yes")
    assert [each.body["item"] for each in asked] == ITEMS
    assert edge.hops(id) == [*range(1, 17), *range(1, 6)]


def order(input: Any) -> Generator[Any, Any, Any]:
    yield tool("is", "elsewhere", input)


def test_of_many_callbacks_at_once_one_runs(edge: Edge, asked: list[Asked]) -> None:
    storage = D1Storage(edge.d1)
    id = asyncio.run(FlowExecutor(storage).start(order, input={"items": ITEMS[:3]}))
    record, _ = asyncio.run(storage.read(id))
    assert record is not None
    rung = Current(record.id, record.run, record.step, "")

    def ring(secret: str) -> Any:
        being_called.set(rung)
        return HttpResume(f"{edge.url}/flows", secret, ack_timeout=20)(id)

    with pytest.raises(CallbackFailed, match="401"):
        copy_context().run(ring, new_secret())
    assert asked == []
    with ThreadPoolExecutor(20) as pool:
        statuses = Counter(pool.map(ring, [SECRET] * 20))
    assert statuses[202] == 1
    assert statuses.keys() <= {200, 202, 409}
    until(lambda: edge.status(id) == "waiting", "it waits for a yes")
    assert [each.body["item"] for each in asked] == ITEMS[:3]


class TestD1(JournalTests):
    """The Journal of the example, on D1 in Cloudflare's own runtime."""

    steps = 1
    database: ClassVar[D1]
    test_every_request_survives_death_at_any_point = None  # type: ignore[assignment] # it does, in some minutes

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def find_database(cls, edge: Edge) -> None:
        cls.database = edge.d1

    def make(self) -> D1Storage:
        self.database.run(*([f"DELETE FROM {table}"] for table in ("records", "entries")))
        return D1Storage(self.database)


def test_what_d1_refuses_is_an_error_of_the_store(edge: Edge) -> None:
    storage = D1Storage(edge.d1)
    storage.part_size = 2_000_000
    with pytest.raises(StorageError, match=r"D1: .*too big"):
        asyncio.run(storage.set_result("one", 0, "x" * 1_900_000))
    assert asyncio.run(storage.read("one")) == (None, [])
