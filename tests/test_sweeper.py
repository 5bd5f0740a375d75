"""The sweep as a service: a task that goes on, and a command, any number of which may run."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sequential import CallbackFailed, FlowExecutor, NotSupported, StorageError, run_until
from sequential.cli import main
from sequential.record import Record
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.sweeper import sweep_forever
from sequential.testing import FakeClock
from tests.http.support import SECRET, three
from tests.servers.processes import until
from tests.support import PlainStorage

OVERDUE = FakeClock(1_000_000_000.0)
"""A clock so late that what it starts has been due for years."""


class Bell(ThreadingHTTPServer):
    """Counts who is rung, and refuses some."""

    request_queue_size = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Ring)
        self.rung: list[str] = []
        self.refused: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/flows"


class Ring(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Bell)
        id = self.path.rpartition("/")[2]
        self.server.rung.append(id)
        self.send_response(500 if id in self.server.refused else 202)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def bell() -> Iterator[Bell]:
    with Bell() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def environment(bell: Bell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store with 20 executions that are overdue, which the environment names."""
    url = f"sqlite:///{tmp_path}/flows.db"
    with contextlib.closing(SQLiteStorage(tmp_path / "flows.db")) as storage:
        flow = FlowExecutor(storage, clock=OVERDUE)
        for number in range(20):
            flow.start_sync(three, id=f"exec-{number:02}")
    for name, value in (("STORE", url), ("URL", bell.url), ("SECRET", SECRET)):
        monkeypatch.setenv(f"SEQUENTIAL_{name}", value)
    monkeypatch.chdir(tmp_path)
    return url


IDS = [f"exec-{number:02}" for number in range(20)]
COMMAND = [sys.executable, "-m", "sequential", "sweep"]


def command(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_sweeps_that_find_the_same_ring_once() -> None:
    class Slow(MemoryStorage):
        meanwhile: Callable[[], object] = staticmethod(lambda: None)

        def due(self, now: float, limit: int) -> list[Record]:
            found, meanwhile = super().due(now, limit), self.meanwhile
            self.meanwhile = lambda: None
            meanwhile()
            return found

    storage, clock, rung = Slow(), FakeClock(), list[str]()
    flow = FlowExecutor(storage, resume=rung.append, clock=clock)
    FlowExecutor(storage, clock=clock).start_sync(three, "exec-1")
    clock.advance(31)
    storage.meanwhile = flow.sweep_sync
    assert (flow.sweep_sync(), rung) == ([], ["exec-1"])


def test_two_commands_at_once_ring_once(bell: Bell, environment: str) -> None:
    both = [command(), command()]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(bell.rung) == IDS
    assert sorted(line for output, _ in outputs for line in output.split()) == IDS


def test_what_could_not_be_rung_is_told_in_a_line_each(bell: Bell, environment: str) -> None:
    bell.refused = {"exec-03", "exec-11"}
    process = command()
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output.split()) == (1, [id for id in IDS if id not in bell.refused])
    for id, line in zip(sorted(bell.refused), errors.splitlines(), strict=True):
        assert re.fullmatch(rf"sequential: execution '{id}' was not rung: .* was answered with 500: .*", line)
    assert sorted(bell.rung) == IDS


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT])
def test_the_service_goes_on_until_it_is_stopped(bell: Bell, environment: str, blow: signal.Signals) -> None:
    service = command("--every", "0.05", "--limit", "7")
    until(lambda: len(bell.rung) >= 20, "all rung")
    with contextlib.closing(SQLiteStorage(environment.removeprefix("sqlite:///"))) as storage:
        FlowExecutor(storage, clock=OVERDUE).start_sync(three, id="another")
    until(lambda: len(bell.rung) >= 21, "another one rung")
    service.send_signal(blow)
    output, errors = service.communicate(timeout=30)
    assert (service.returncode, output, errors) == (0, "", "")
    assert sorted(bell.rung) == ["another", *IDS]


def test_an_executor_of_ones_own_is_named_by_its_module(
    bell: Bell, environment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_app.py").write_text(
        "from sequential import FlowExecutor, stores\n"
        "rung, told = [], []\n"
        "def ring(id):\n"
        "    assert id != 'exec-07', 'one line,\\nand another'\n"
        "    rung.append(id)\n"
        f"flow = FlowExecutor(stores.open({environment!r}), resume=ring, observe=told.append)\n"
        "other, silent = 1, FlowExecutor(stores.open('memory://'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main(["sweep", "my_app:flow", "--limit", "5"])
    assert len(capsys.readouterr().out.split()) == 5
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "my_app"])
    said = capsys.readouterr()
    assert (ended.value.code, len(said.out.split())) == (1, 14)
    assert said.err == "sequential: execution 'exec-07' was not rung: AssertionError: one line, and another\n"
    my_app = sys.modules["my_app"]
    assert sorted([*my_app.rung, "exec-07"]) == IDS
    assert Counter(event.kind for event in my_app.told) == {"rang": 19, "ring failed": 1}
    my_app.flow.setup.journal.close()
    assert bell.rung == []
    wrong = {
        "my_app:other": "my_app:other is no FlowExecutor: write module:name",
        "my_app:missing": "my_app:missing is no FlowExecutor",
        "my_app:silent": "my_app:silent has no resume hook, so it can ring nobody",
        "not_there:flow": "there is no module not_there here",
        "my_app.not_there:flow": "there is no module my_app.not_there here",
    }
    for app, reason in wrong.items():
        with pytest.raises(SystemExit, match=f"sequential: {reason}"):
            main(["sweep", app])
    with pytest.raises(SystemExit):
        main(["sweep", "my_app:flow", "--store", environment])
    assert "name either an executor, or a store" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("import not_there")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        main(["sweep", "broken:flow"])


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        ("STORE", "--store URL, or SEQUENTIAL_STORE"),
        ("URL", "--url URL or SEQUENTIAL_URL"),
        ("SECRET", "SEQUENTIAL_SECRET"),
    ],
)
def test_what_is_not_told_is_asked_for(
    absent: str, reason: str, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"SEQUENTIAL_{absent}")
    with pytest.raises(SystemExit, match=f"sequential: .*{reason}"):
        main(["sweep"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--store", "mysql://x"], "there is no store for 'mysql://'"),
        (["--url", "http://example.org"], "use https"),
        (["--limit", "0"], "limit= is a number of executions"),
        (["--every", "0"], "every= is a number of seconds above 0"),
        (["--every", "nan"], "every= is a number of seconds above 0"),
    ],
)
def test_what_is_wrong_is_one_line(options: list[str], reason: str, environment: str) -> None:
    with pytest.raises(SystemExit, match=f"sequential: .*{reason}"):
        main(["sweep", *options])


def test_a_store_that_is_away_ends_one_sweep_and_not_the_service(caplog: pytest.LogCaptureFixture) -> None:
    class Sometimes(MemoryStorage):
        asked = 0

        def due(self, now: float, limit: int) -> Any:
            self.asked += 1
            if self.asked == 1:
                raise StorageError("the server is away")
            if self.asked == 2:
                raise UnicodeDecodeError("utf-8", b"", 0, 0, "a ValueError of a user's own store")
            return super().due(now, limit)

    rung: list[str] = []
    storage = Sometimes()
    FlowExecutor(storage, clock=OVERDUE).start_sync(three, id="exec-1")
    OVERDUE.advance(31)

    async def run() -> None:
        enough = asyncio.Event()

        def ring(id: str) -> None:
            rung.append(id)
            enough.set()

        flow = FlowExecutor(storage, resume=ring, clock=OVERDUE)
        service = asyncio.create_task(sweep_forever(flow, every=0.01))
        async with asyncio.timeout(30):
            await enough.wait()
        service.cancel()
        await asyncio.wait([service])

    asyncio.run(run())
    assert rung == ["exec-1"]
    assert caplog.messages == ["the sweep failed, and is tried again in 0.01 seconds"] * 2


def test_a_backlog_does_not_hold_up_the_loop_and_a_deadline_ends_a_sweep() -> None:
    rung: list[str] = []
    storage, clock = MemoryStorage(), FakeClock()
    flow = FlowExecutor(storage, resume=rung.append, clock=clock)
    for id in IDS:
        FlowExecutor(storage, clock=clock).start_sync(three, id=id)
    clock.advance(31)
    with run_until(time.time() - 1):
        assert flow.sweep_sync() == []

    async def run() -> None:
        service = asyncio.create_task(sweep_forever(flow, every=0.01, limit=1))
        turns = 0
        async with asyncio.timeout(30):
            while len(rung) < len(IDS):
                await asyncio.sleep(0)
                turns += 1
        assert turns > len(IDS)
        service.cancel()
        await asyncio.wait([service])

    asyncio.run(run())
    assert rung == IDS


def test_a_ring_that_fails_is_no_attempt() -> None:
    """However long nobody can be rung, nothing is parked for it."""
    away, rung = [True], list[str]()
    clock, storage = FakeClock(), MemoryStorage()

    def ring(id: str) -> None:
        if away[0]:
            raise CallbackFailed("https://example.org", "could not be sent")
        rung.append(id)

    flow = FlowExecutor(storage, resume=ring, clock=clock, observe=lambda _: None)
    flow.start_sync(three, id="exec-1")
    for _ in range(30):
        clock.advance(60)
        swept = flow.sweep_sync()
        assert (swept, swept.failed) == ([], ["exec-1"])
    away[0] = False
    for attempt in range(1, 11):
        clock.advance(4000)
        assert flow.sweep_sync() == ["exec-1"]
        status = flow.status_sync("exec-1")
        assert status is not None
        assert (status.status, status.attempts) == ("running", attempt)
    clock.advance(4000)
    assert flow.sweep_sync() == []
    parked = flow.status_sync("exec-1")
    assert parked is not None
    assert parked.status == "stuck"


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": "60"}, {"every": None}, {"limit": 0}])
def test_what_never_will_work_does_not_begin(wrong: dict[str, Any]) -> None:
    (option,) = wrong
    with pytest.raises(ValueError, match=f"{option}= is a number of .*, not {wrong[option]!r}"):
        asyncio.run(sweep_forever(FlowExecutor(MemoryStorage()), **wrong))


def test_five_methods_cannot_be_swept() -> None:
    with pytest.raises(NotSupported, match="sweep needs more than the five storage methods"):
        asyncio.run(sweep_forever(FlowExecutor(PlainStorage()), every=0.01))
