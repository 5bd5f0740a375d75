"""Callbacks between real servers, whose processes are killed, frozen and started again, and whose clocks are wrong."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import BadStatusLine, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from sequential import FlowExecutor
from sequential.http import HttpResume, Request
from sequential.record import Record, state_of
from sequential.stores.sqlite import SQLiteStorage
from tests.conftest import required
from tests.http.support import SECRET, callback_for, request_for, stranger
from tests.servers.processes import free_port, until
from tests.servers.web import RIGHT, Clock, Gunicorn, Hypercorn, Sweeper, Uvicorn, WebServer
from tests.worker import workflow

SERVERS: dict[str, Callable[[dict[str, str]], WebServer]] = {
    "uvicorn": lambda settings: Uvicorn("awaiting", "--workers", "2", settings=settings),
    "uvicorn-threads": lambda settings: Uvicorn("threaded", settings=settings),
    "hypercorn": lambda settings: Hypercorn("awaiting", settings=settings),
    "gunicorn": lambda settings: Gunicorn("blocking", "--threads", "8", settings=settings),
}


class Site:
    """A store, and what the servers on it have noted.

    Args:
        directory: An empty one.
        clock: Whose time the executions are begun by.
    """

    def __init__(self, directory: Path, clock: Clock = RIGHT) -> None:
        self.directory, self.clock = directory, clock
        self.log = directory / "notes"
        self.log.touch()
        self.journal = SQLiteStorage(directory / "flows.db")
        self.flow = self.ringing(None)
        self.settings = {
            "SEQUENTIAL_STORE": f"sqlite:///{directory}/flows.db",
            "SEQUENTIAL_SECRET": SECRET,
            "TEST_DIRECTORY": str(directory),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()

    def ringing(self, server: WebServer | None, clock: Clock | None = None) -> FlowExecutor:
        """An executor that rings a server, or nobody."""
        hook = HttpResume(server.url, SECRET) if server else lambda id: None
        return FlowExecutor(
            self.journal, resume=hook, workflows=[workflow], retain=True, clock=(clock or self.clock).now
        )

    def start(self, id: str, steps: int, *held: int) -> Record:
        """Begin an execution without ringing for it; some of its steps are held up."""
        for step in held:
            self.hold(id, step).touch()
        self.flow.start_sync(workflow, id, {"steps": steps})
        return self.record(id)

    def hold(self, id: str, step: int) -> Path:
        """What holds a step up for as long as it exists."""
        return self.directory / f"hold {id} {step}"

    def record(self, id: str) -> Record:
        record, _ = self.journal.read(id)
        assert record is not None
        return record

    def call_back(self, id: str) -> bytes:
        """The request that rings for the step to which an execution has come."""
        return on_wire(request_for(callback_for(self.record(id)), at=self.clock.now()))

    def has_noted(self, size: int) -> bool:
        """Whether the notes have grown to so many bytes."""
        return self.log.stat().st_size >= size

    def notes(self, what: str, id: str | None = None) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        notes = [json.loads(line) for line in lines if f'"what": "{what}"' in line]
        return [note for note in notes if id in {None, note["id"]}]

    def steps(self, what: str, id: str) -> dict[int, int]:
        """How often that was noted, by step."""
        return Counter(note["step"] for note in self.notes(what, id))

    def expect(self, *ids: str, seconds: float = 30) -> None:
        """Wait until executions have ended, and make sure that they did so as if nothing had ever disturbed them."""

        def have_ended() -> bool:
            ended = self.flow.list_sync(status="finished", limit=1000)
            return set(ids) <= {status.id for status in ended}

        until(have_ended, f"{len(ids)} executions have finished", seconds)
        called = {(note["id"], note["step"]) for note in self.notes("called")}
        for id in ids:
            status, history = self.flow.status_sync(id), self.flow.history_sync(id)
            assert status is not None
            assert status.value == {"total": sum(number**2 for number in range(status.input["steps"]))}
            assert [step["step"] for step in history] == list(range(status.step))
            tools = {(id, step["step"]) for step in history if step["asked"] != "save"}
            assert len(tools) == status.input["steps"]
            assert tools <= called


def on_wire(request: Request, *, chunked: bool = False) -> bytes:
    body, framing = request.body, {"content-length": str(len(request.body))}
    if chunked:
        parts = [body[at : at + 700] for at in range(0, len(body), 700)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])
        framing = {"transfer-encoding": "chunked"}
    headers = {"host": "here", **request.headers, **framing}
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connected(server: WebServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def answer_on(connection: socket.socket) -> HTTPResponse:
    """The beginning of an answer, whose body may be still to come."""
    answer = HTTPResponse(connection)
    answer.begin()
    connection.close()  # the answer has it open for as long as there is more
    return answer


def ask(server: WebServer, request: bytes) -> HTTPResponse:
    connection = connected(server)
    connection.sendall(request)
    return answer_on(connection)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def healthy(site: Site) -> Iterator[WebServer]:
    """A server to which nothing happens."""
    with required(SERVERS["uvicorn"](site.settings)) as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, site: Site) -> Iterator[WebServer]:
    if request.param == "uvicorn":
        yield request.getfixturevalue("healthy")
    else:
        with required(SERVERS[request.param](site.settings)) as server:
            yield server


@pytest.fixture
def id(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


def test_a_flow_runs_to_its_end_over_callbacks(site: Site, server: WebServer, id: str) -> None:
    site.start(id, 8)
    site.ringing(server).start_sync(workflow, id=id)
    site.expect(id)
    assert site.steps("called", id) == dict.fromkeys([0, 1, 2, 3, 4, 5, 7, 8], 1)
    assert site.steps("asked", id) == dict.fromkeys(range(10), 1)


def test_the_answer_comes_while_the_step_still_runs(site: Site, server: WebServer, id: str) -> None:
    site.start(id, 2, 0)
    assert HttpResume(server.url, SECRET, ack_timeout=20)(id) == 202
    until(lambda: site.notes("called", id), "the tool has been called")
    assert site.record(id).step == 0
    site.hold(id, 0).unlink()
    site.expect(id)


def test_a_client_that_hangs_up_at_once(site: Site, server: WebServer, id: str) -> None:
    for number in range(10):
        one = f"{id}-{number}"
        site.start(one, 2)
        with connected(server) as connection:
            connection.sendall(site.call_back(one))
        site.expect(one)
        assert site.steps("called", one) == {0: 1, 1: 1}


def test_a_client_that_hangs_up_in_mid_step(site: Site, server: WebServer, id: str) -> None:
    site.start(id, 2, 0)
    with connected(server) as connection:
        connection.sendall(site.call_back(id))
        until(lambda: site.notes("called", id), "the tool has been called")
    if not isinstance(server, Gunicorn):  # which will see it only when it writes
        until(lambda: site.notes("hung up", id), "the framework has cancelled what it did for this client")
    assert site.record(id).step == 0
    site.hold(id, 0).unlink()
    site.expect(id)
    assert site.steps("called", id) == {0: 1, 1: 1}


def at_once(server: WebServer, request: bytes, times: int) -> list[HTTPResponse]:
    """Send a request many times, each one's last byte at the same moment."""
    connections = [connected(server) for _ in range(times)]
    for connection in connections:
        connection.sendall(request[:-1])
    for connection in connections:
        connection.sendall(request[-1:])
    return [answer_on(connection) for connection in connections]


def test_fifty_identical_callbacks_at_once(site: Site, server: WebServer, id: str) -> None:
    site.start(id, 3, 0)
    request = site.call_back(id)
    answers = at_once(server, request, 50)
    assert Counter(answer.status for answer in answers) == {202: 1, 409: 49}
    assert all(0 < int(answer.headers["retry-after"]) <= 90 for answer in answers if answer.status == 409)
    site.hold(id, 0).unlink()
    (accepted,) = [answer for answer in answers if answer.status == 202]
    assert json.loads(accepted.read()) == {"status": "paused", "id": id, "reason": "tool"}
    site.expect(id)
    late = at_once(server, request, 50)
    assert [(answer.status, json.loads(answer.read())["status"]) for answer in late] == [(200, "stale")] * 50
    assert site.steps("called", id) == {0: 1, 1: 1, 2: 1}


def test_fifty_identical_callbacks_while_the_flow_goes_on(site: Site, server: WebServer, id: str) -> None:
    for number in range(5):
        one = f"{id}-{number}"
        site.start(one, 3)
        answers = at_once(server, site.call_back(one), 50)
        assert {answer.status for answer in answers} <= {200, 202, 409}
        assert {json.loads(answer.read())["status"] for answer in answers if answer.status == 200} <= {"stale"}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status == 409)
        site.expect(one, seconds=10)
        assert site.steps("called", one) == {0: 1, 1: 1, 2: 1}


def test_a_body_may_come_in_chunks(site: Site, server: WebServer, id: str) -> None:
    request = request_for(callback_for(site.start(id, 1)))
    large = request._replace(body=b" " * 5000)
    assert ask(server, on_wire(large, chunked=True)).status == 413
    assert site.steps("called", id) == {}
    assert ask(server, on_wire(request, chunked=True)).status == 202
    site.expect(id)


def test_a_thousand_requests_of_strangers_reach_nothing(site: Site, server: WebServer, id: str) -> None:
    record, chance = site.start(id, 1), random.Random(f"{server.name} {server.app}")
    good, seen = request_for(callback_for(record)), Counter[int]()
    for _ in range(1000):
        with suppress(ConnectionError, BadStatusLine, TimeoutError):  # as servers answer what they take for no request
            seen[ask(server, on_wire(stranger(chance, good), chunked=chance.random() < 0.2)).status] += 1
    assert {status for status in seen if status >= 500} <= {501}  # a method that the server does not know
    assert seen[401] > 200
    assert site.record(id) == record
    assert site.steps("called", id) == {}


@pytest.mark.parametrize("server", ["uvicorn-threads"], indirect=True)
def test_the_answer_comes_though_every_thread_runs_a_step(site: Site, server: WebServer, id: str) -> None:
    ids = [f"{id}-{number}" for number in range(40)]
    for one in ids:
        site.start(one, 1, 0)
        assert HttpResume(server.url, SECRET, ack_timeout=5)(one) == 202
    for one in ids:
        site.hold(one, 0).unlink()
    site.expect(*ids)


@contextmanager
def struck(site: Site, healthy: WebServer, strike: str) -> Iterator[WebServer]:
    """A server that rings another one, and is struck by a signal before or after it does so."""
    settings = {**site.settings, "SEQUENTIAL_URL": healthy.url, "TEST_STRIKE": strike}
    with required(Uvicorn("awaiting", settings=settings)) as server:
        yield server


def is_at_rest(pid: int) -> bool:
    """Whether a process is dead, or stopped."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(") ")[2][0] in "TZX"


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_caller_that_is_struck_once_its_hook_has_returned(
    site: Site, healthy: WebServer, signal: str, id: str
) -> None:
    with struck(site, healthy, f"after {signal}") as caller:
        site.start(id, 3, 1)
        assert ask(caller, site.call_back(id)).status == 202
        until(lambda: site.notes("struck", id), "the caller has rung")
        pid = site.notes("struck", id)[0]["pid"]
        until(lambda: is_at_rest(pid), "the caller is no more")
        site.hold(id, 1).unlink()
        site.expect(id)
        assert is_at_rest(pid)
        if signal == "SIGSTOP":
            caller.thaw()
            until(caller.is_ready, "the caller goes on")
            until(lambda: site.steps("rang", id) == {1: 1, 2: 1, 3: 1}, "the caller knows that it has rung")
    assert site.steps("asked", id) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert site.steps("called", id) == {0: 1, 1: 1, 2: 1}


def test_a_caller_that_is_killed_before_it_rings(site: Site, healthy: WebServer, id: str) -> None:
    with struck(site, healthy, "before SIGKILL") as caller:
        site.start(id, 3)
        assert ask(caller, site.call_back(id)).status == 202
        until(lambda: site.notes("struck", id), "the caller was about to ring")
        until(lambda: not caller.is_ready(), "the caller is no more")
    record = site.record(id)
    assert (record.step, state_of(record).lease) == (1, 0)
    assert site.steps("asked", id) == {0: 1}
    command = Clock(ahead=60).command("sequential", "sweep", "--url", healthy.url)
    done = subprocess.run(
        command, env={**os.environ, **site.settings}, capture_output=True, text=True, timeout=30, check=True
    )
    assert id in done.stdout.split()
    site.expect(id)
    assert site.steps("asked", id) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert site.steps("called", id) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("app", ["awaiting", "threaded"])
def test_a_holder_that_is_frozen_beyond_its_lease(site: Site, healthy: WebServer, app: str, id: str) -> None:
    settings = {**site.settings, "SEQUENTIAL_URL": healthy.url, "TEST_LEASE": "0.5"}
    with required(Uvicorn(app, settings=settings)) as holder:
        site.start(id, 3, 0, 1)
        answer = ask(holder, site.call_back(id))
        until(lambda: site.steps("called", id) == {0: 1}, "the holder is in its call")
        holder.freeze()
        site.hold(id, 0).unlink()
        until(lambda: id in site.ringing(healthy).sweep_sync(), "the lease has ended")
        until(lambda: site.steps("called", id) == {0: 2, 1: 1}, "another invocation has gone on")
        before = site.record(id)
        holder.thaw()
        # All of the answer has come when the invocation is over, and all that it would ring has been rung.
        assert (answer.status, json.loads(answer.read())) == (202, {"error": "another invocation has the lease"})
        assert [note["pid"] for note in site.notes("fenced", id)] == [holder.pid]
        assert site.record(id) == before
        pid = holder.pid
    site.hold(id, 1).unlink()
    site.expect(id)
    assert site.steps("asked", id) == {0: 2, 1: 1, 2: 1, 3: 1}
    assert site.steps("called", id) == {0: 2, 1: 1, 2: 1}
    assert pid not in {note["pid"] for note in site.notes("rang", id)}


def test_two_hosts_whose_clocks_are_ten_minutes_apart(tmp_path: Path) -> None:
    right = Clock(speed=60, since=time.time())  # a pause's grace is half a second
    ports = [free_port(), free_port()]
    hosts = [f"http://127.0.0.1:{port}" for port in ports]
    with Site(tmp_path, right) as site, ExitStack() as stack:
        early, late = [
            stack.enter_context(
                required(
                    Uvicorn(
                        "awaiting",
                        settings={**site.settings, "TEST_SWEEP": own, "SEQUENTIAL_URL": other},
                        clock=clock,
                        port=port,
                    )
                )
            )
            for port, own, other, clock in zip(
                ports, hosts, hosts[::-1], [right, right._replace(ahead=600)], strict=True
            )
        ]
        ids = [f"flow-{number}" for number in range(10)]
        site.start("held", 2, 0)
        assert ask(early, site.call_back("held")).status == 202
        until(lambda: site.steps("called", "held") == {0: 2}, "the other host takes the lease for one that has ended")
        for id in ids:
            site.start(id, 3)
            ask(early, site.call_back(id))
        site.hold("held", 0).unlink()
        site.expect("held", *ids)
        assert site.notes("rang") == []
        refused = site.notes("ring failed")
        assert {note["status"] for note in refused} == {401}
        assert {note["pid"] for note in refused} == {early.pid, late.pid}
    assert len(site.notes("fenced")) == 1


@pytest.mark.parametrize("hop_limit", [True, False])
@pytest.mark.parametrize(("guard", "refusal"), [(4, 508), (16, 500)], ids=["vercel", "cloudflare"])
def test_a_platform_that_stops_what_calls_itself(tmp_path: Path, guard: int, refusal: int, hop_limit: bool) -> None:
    with Site(tmp_path) as site:
        settings = {**site.settings, "TEST_GUARD": str(guard), "TEST_REFUSAL": str(refusal)}
        if hop_limit:
            settings["TEST_HOP_LIMIT"] = str(guard)
        with required(Uvicorn("threaded", settings=settings)) as server:
            site.start("one", 91)
            assert ask(server, site.call_back("one")).status == 202
            sweeping, sweeps = site.ringing(server, Clock(ahead=60)), 0
            left_alone = "not rung" if hop_limit else "ring failed"

            def rests() -> bool:
                return len(site.notes(left_alone)) > sweeps

            while site.record("one").status != "finished":
                until(lambda: rests() or site.record("one").status == "finished", "it was not rung for, or ended")
                if rests():
                    assert sweeping.sweep_sync() == ["one"]
                    sweeps += 1
            site.expect("one")
    assert site.record("one").step == 100
    in_a_row = guard if hop_limit else guard + 1
    assert sweeps == 100 // in_a_row
    assert len(site.notes("refused")) == (0 if hop_limit else sweeps)
    assert {note["status"] for note in site.notes("ring failed")} == (set() if hop_limit else {refusal})
    assert site.steps("asked", "one") == dict.fromkeys(range(101), 1)


def test_two_hundred_flows_while_their_servers_are_killed(tmp_path: Path) -> None:
    clock, randomness = Clock(speed=100, since=time.time()), random.Random(11)  # a pause's grace is 0.3 seconds
    ports = [free_port(), free_port()]
    ids, kills, done = [f"flow-{number}" for number in range(200)], 0, 0
    with Site(tmp_path, clock=clock) as site, ExitStack() as stack:
        settings = {
            **site.settings,
            "SEQUENTIAL_URL": " ".join(f"http://127.0.0.1:{port}" for port in ports),
            "TEST_CLOCK": " ".join(map(str, clock)),
            "TEST_LEASE": "12000",
            "TEST_PAUSE": "0.02",
        }
        servers = [stack.enter_context(required(Uvicorn("awaiting", settings=settings, port=port))) for port in ports]
        sweep = ["sweep", "tests.http.app:flow", "--every", "0.1"]
        stack.enter_context(required(Sweeper(*sweep, settings=settings)))
        for id in ids:
            site.start(id, 18)  # and the sweep rings
        while done < 900_000:  # of at least 1,150,000 bytes
            done += randomness.randrange(80_000, 180_000)
            until(partial(site.has_noted, done), "more has been done")
            victims = randomness.sample(servers, randomness.choice([1, 1, 2]))
            for victim in victims:
                victim.kill()
            for victim in victims:
                victim.restart()
            kills += len(victims)
        site.expect(*ids, seconds=120)
        assert all(site.record(id).step == 20 for id in ids)
    assert kills > 8
