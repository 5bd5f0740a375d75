"""PostgreSQL, on a real server."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from sequential import FlowExecutor, Paused, stores, tool
from sequential.errors import Fenced, NotInstalled, StorageError
from sequential.storage import Journal, Record, Result, settle
from sequential.testing import (
    ClaimTests,
    CommitTests,
    ConcurrencyTests,
    JournalTests,
    SignalTests,
    StorageTests,
    crash_points,
)
from tests.benchmarks.servers import explained
from tests.conftest import OwnServer
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.stores.support import LARGE, NOW, Crowd, commit_and_die, held, peaks, race, square, squares, take

_numbers = count()


def new_prefix() -> str:
    return f"test{next(_numbers)}_"


class PostgresTests:
    """Where the suites find a storage: tables of its own for each test."""

    server: ClassVar[PostgresServer]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def find_server(cls, postgres_server: PostgresServer) -> None:
        cls.server = postgres_server

    async def make(self) -> Journal:
        self.prefix, self.opened = new_prefix(), list[Any]()
        storage: Any = await settle(self.another(None))
        await settle(storage.create_schema())
        return cast("Journal", storage)

    async def discard(self, storage: Any) -> None:
        for opened in self.opened:
            await settle(opened.close())

    async def another(self, storage: Any) -> Any:
        from sequential.stores.postgres import PostgresStorage

        self.opened.append(PostgresStorage(await settle(self.connect()), prefix=self.prefix))
        return self.opened[-1]

    def connect(self) -> Any:
        raise NotImplementedError


class TestConnection(PostgresTests, JournalTests):
    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.server.url, autocommit=True)


class TestAsyncPool(PostgresTests, JournalTests):
    async def connect(self) -> Any:
        return await async_pool(self.server.url)


class TestPool(PostgresTests, ClaimTests, CommitTests, SignalTests, ConcurrencyTests):
    def connect(self) -> Any:
        from psycopg_pool import ConnectionPool

        return ConnectionPool(self.server.url, min_size=1, kwargs={"autocommit": True}, open=True)


class TestAsyncConnection(PostgresTests, ClaimTests, CommitTests, SignalTests, ConcurrencyTests):
    async def connect(self) -> Any:
        import psycopg

        return await psycopg.AsyncConnection.connect(self.server.url, autocommit=True)


class TestOwnStorageOfTheExample(PostgresTests, StorageTests):
    """The seeds' five methods, as examples/own_postgres_storage.py has them."""

    async def make(self) -> Any:
        import psycopg

        from examples.own_postgres_storage import TABLES, OwnPostgresStorage

        database = self.server.database()
        storage = OwnPostgresStorage(psycopg.connect(database, autocommit=True))
        storage.db.execute(TABLES)
        return storage

    async def discard(self, storage: Any) -> None:
        url = storage.db.info.dbname
        storage.db.close()
        self.server.drop(f"postgresql:///{url}")


async def async_pool(url: str, **options: Any) -> Any:
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(url, **{"min_size": 1, "kwargs": {"autocommit": True}, "open": False, **options})
    await pool.open(wait=True)
    return pool


@pytest.fixture
def storage(postgres_server: PostgresServer) -> Iterator[Any]:
    """A storage over a connection, with its tables."""
    import psycopg

    from sequential.stores.postgres import PostgresStorage

    with closing(PostgresStorage(psycopg.connect(postgres_server.url, autocommit=True), prefix=new_prefix())) as made:
        made.create_schema()
        yield made


@asynccontextmanager
async def pooled(url: str, prefix: str = "sequential_", **options: Any) -> AsyncIterator[Any]:
    """A storage over an async pool, with its tables."""
    from sequential.stores.postgres import PostgresStorage

    storage: Any = PostgresStorage(await async_pool(url, **options), prefix=prefix)
    try:
        await storage.create_schema()
        yield storage
    finally:
        await storage.close()


class TestTogether:
    def test_one_of_32_commits_a_thousand_times(self, postgres_server: PostgresServer) -> None:
        async def run() -> None:
            async with pooled(postgres_server.url, new_prefix(), min_size=32, max_size=32) as storage:
                await race(storage, 1000)

        asyncio.run(run())

    def test_one_of_32_takes_the_lease(self, postgres_server: PostgresServer) -> None:
        async def run() -> None:
            async with pooled(postgres_server.url, new_prefix(), min_size=32, max_size=32) as storage:
                await take(storage, 100)

        asyncio.run(run())

    def test_stricter_isolation_changes_nothing(self, postgres_server: PostgresServer) -> None:
        async def run() -> None:
            strict = {"autocommit": True, "options": "-c default_transaction_isolation=serializable"}
            async with pooled(postgres_server.url, new_prefix(), min_size=8, max_size=8, kwargs=strict) as storage:
                await race(storage, 20, writers=8)
                await take(storage, 20, writers=8)

        asyncio.run(run())

    def test_tables_made_by_many_at_once(self, postgres_server: PostgresServer) -> None:
        async def run() -> None:
            async with pooled(postgres_server.url, new_prefix(), min_size=8, max_size=8) as storage:
                await asyncio.gather(*(storage.create_schema() for _ in range(16)))
                assert await storage.read("nobody") is None

        for _ in range(5):
            asyncio.run(run())


class TestSizes:
    def test_a_hundred_megabytes_go_in_and_out(self, storage: Any) -> None:
        record, data = held(storage), b"\x00\xff\x80 " * (LARGE // 4)
        new = record._replace(token=2, step=1)
        storage.commit(new, 1, Result(0, "large", data=data))
        storage.save(new, Result(1, "small", data=b"1"))
        ((_, _, _, found, *_),) = storage.results(new, 0, 2)
        assert found == data
        assert [result.data for result in storage.results(new, 1, 2)] == [b"1"]

    def test_large_inputs_and_signals(self, storage: Any) -> None:
        data = b"\x00" * 20_000_000
        record = held(storage, input=data)
        assert storage.signal("one", "yes", data, NOW) == (record, True)
        assert storage.received(record, "yes") == data

    def test_a_writer_dies_between_any_two_parts(self, storage: Any) -> None:
        from sequential.stores import postgres

        size = 3 * postgres.PART + 1
        results = [Result(0, "first", data=b"1" * size), Result(0, "second", data=b"2" * (size - postgres.PART))]

        def removed(id: str) -> None:
            assert storage.read(id) is None

        assert commit_and_die(storage, storage, (storage._connections, "execute"), results, removed=removed) > 8

    def test_a_large_result_that_is_deleted_while_it_is_read(self, storage: Any) -> None:
        from sequential.stores import postgres

        record = held(storage)
        storage.commit(record._replace(token=2, step=1), 1, Result(0, data=b"1" * (postgres.PART + 1)))
        execute = storage._connections.execute

        async def execute_and_remove(*values: Any, **options: Any) -> Any:
            done = await execute(*values, **options)
            storage._connections.execute = execute
            storage.remove("one")
            return done

        storage._connections.execute = execute_and_remove
        with pytest.raises(Fenced):
            storage.results(record, 0, 1)

    def test_memory_stays_within_a_few_results(self, postgres_server: PostgresServer, storage: Any) -> None:
        written, read = peaks(
            "import psycopg\n"
            "from sequential.stores.postgres import PostgresStorage\n"
            f"connection = psycopg.connect({postgres_server.url!r}, autocommit=True)\n"
            f"storage = PostgresStorage(connection, prefix={prefix_of(storage)!r})\n"
        )
        assert written < 1.5 * LARGE
        assert read < 2.5 * LARGE


class TestTrouble:
    def test_an_answer_that_is_lost_after_the_commit(self, postgres_server: PostgresServer, storage: Any) -> None:
        """Over a pool, the storage looks up on another connection what became of it."""
        from psycopg_pool import ConnectionPool

        from sequential.stores.postgres import PostgresStorage

        with Proxy(postgres_server.url) as proxy:
            pool = ConnectionPool(proxy.url, min_size=2, kwargs={"autocommit": True}, open=True)
            pool.wait()
            with closing(PostgresStorage(pool, prefix=prefix_of(storage))) as ours:
                record = held(ours)
                for step in range(8):
                    new = record._replace(token=record.token + 1, step=step + 1, due=NOW + step)
                    proxy.lose_after = 0
                    ours.commit(new, record.token, Result(step, "once"))
                    assert ours.read("one") == new
                    record = new
                with pytest.raises(Fenced):
                    ours.commit(record, record.token - 1, Result(7, "another"))
                again = record._replace(run="again", token=99)
                proxy.lose_after = 0
                ours.restart(again, record)
                assert ours.read("one") == again

    def test_a_connection_that_is_lost(self, postgres_server: PostgresServer, storage: Any) -> None:
        """A connection alone cannot be opened again: the error says what to look at, and the next one goes on."""
        import psycopg

        from sequential.stores.postgres import PostgresStorage

        calls: list[int] = []

        def call(category: str, name: str, input: int) -> int:
            calls.append(input)
            proxy.lose_after = 0 if input == 1 else None
            return input**2

        with Proxy(postgres_server.url) as proxy:
            connection = psycopg.connect(proxy.url, autocommit=True)
            with closing(PostgresStorage(connection, prefix=prefix_of(storage))) as ours:
                flow = FlowExecutor(ours, call=call, budget=math.inf, lease=0.01)
                with pytest.raises(StorageError, match=r"PostgreSQL: .*: check that it runs and can be reached"):
                    flow.execute_sync(squares, "one", {"steps": 2})
        flow = FlowExecutor(storage, call=call, budget=math.inf, clock=lambda: 4e9, retain=True)
        assert flow.execute_sync(squares, "one") == Paused("one", 2, "save")
        assert flow.execute_sync(squares, "one") == 1
        assert calls == [0, 1]
        assert [step["result"] for step in flow.history_sync("one")] == [0, 1, None]

    def test_no_server(self) -> None:
        with pytest.raises(StorageError, match=r"PostgreSQL: .*Connection refused.*: check that it runs"):
            stores.open("postgresql://nobody@127.0.0.1:1/none")

    def test_no_database(self, postgres_server: PostgresServer) -> None:
        with pytest.raises(StorageError, match=r'PostgreSQL: .*database "none" does not exist'):
            stores.open(postgres_server.url.rpartition("/")[0] + "/none")

    def test_a_transaction_that_is_there_when_the_storage_has_its_turn(
        self, postgres_server: PostgresServer, storage: Any
    ) -> None:
        """What would be undone with it is no commit."""
        import psycopg

        record, connection = held(storage), storage._connections.client
        begun, entered, done = threading.Event(), threading.Event(), threading.Event()

        class Entering(psycopg.Cursor[Any]):
            def execute(self, *arguments: Any, **options: Any) -> Any:
                entered.set()
                return super().execute(*arguments, **options)

        def use() -> None:
            with connection.transaction(force_rollback=True):
                begun.set()
                connection.execute("SELECT pg_advisory_lock(7)")
                done.wait(20)

        with psycopg.connect(postgres_server.url, autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(7)")
            user = threading.Thread(target=use)
            user.start()
            begun.wait(20)
            while connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
                pass
            storage._connections.cursor = Entering
            release = threading.Thread(
                target=lambda: entered.wait(20) and other.execute("SELECT pg_advisory_unlock(7)")
            )
            release.start()
            with pytest.raises(StorageError, match="within a transaction of yours: give the storage its own"):
                storage.commit(record._replace(token=2, step=1), 1, Result(0))
            done.set()
            user.join()
            release.join()
        assert storage.read("one") == record

    def test_connections_that_answer_late_or_in_another_encoding(self, storage: Any) -> None:
        record = held(storage)
        with (
            storage._connections.client.pipeline(),
            pytest.raises(StorageError, match="in pipeline mode, and answers late"),
        ):
            storage.commit(record._replace(token=9), 7)
        storage._connections.client.execute("SET client_encoding = 'LATIN1'")
        with pytest.raises(StorageError, match="not in UTF-8: connect with client_encoding='utf-8'"):
            storage.read("one")
        storage._connections.client.execute("SET client_encoding = 'UTF8'")
        assert storage.read("one") == record

    def test_prepared_statements_that_a_pooler_forgets(self, storage: Any) -> None:
        for _ in range(8):
            storage.read("one")
        storage._connections.client.pgconn.exec_(b"DEALLOCATE ALL")
        with pytest.raises(StorageError, match="behind a pooler of transactions, connect with prepare_threshold=None"):
            storage.read("one")

    def test_what_is_deleted_while_it_is_written_leaves_nothing(
        self, postgres_server: PostgresServer, storage: Any
    ) -> None:
        import psycopg

        record, prefix = held(storage), prefix_of(storage)
        with psycopg.connect(postgres_server.url) as writer:
            values = (2, 1, None, NOW + 60, NOW, "one", record.run, 1, 0, "asked", 1, b"1", NOW, NOW, None)
            writer.execute(storage._sql.step.encode(), values)
            remover = threading.Thread(target=storage.remove, args=("one",))
            remover.start()
            locked = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{prefix}%'"
            with psycopg.connect(postgres_server.url, autocommit=True) as watcher:
                while watcher.execute(locked.encode()).fetchone() == (0,):
                    pass
        remover.join()
        for table in ("executions", "results"):
            assert storage._connections.client.execute(f"SELECT count(*) FROM {prefix}{table}").fetchone() == (0,)

    def test_a_pool_that_is_exhausted(self, postgres_server: PostgresServer, storage: Any) -> None:
        from psycopg_pool import ConnectionPool

        from sequential.stores.postgres import PostgresStorage

        options: dict[str, Any] = {"min_size": 1, "max_size": 1, "timeout": 0.05, "kwargs": {"autocommit": True}}
        with ConnectionPool(postgres_server.url, open=True, **options) as pool:
            ours: Any = PostgresStorage(pool, prefix=prefix_of(storage))
            pool.wait()
            with pool.connection(), pytest.raises(StorageError, match="the pool is large enough"):
                ours.claim(Record("one", "run", lease=1.0), NOW, True)
            assert ours.read("one") is None

    def test_a_server_that_takes_no_writes(self, storage: Any) -> None:
        record = held(storage)
        storage._connections.client.execute("SET default_transaction_read_only = on")
        with pytest.raises(StorageError, match="read-only transaction: it takes no writes: connect to the primary"):
            storage.commit(record._replace(token=2, step=1), 1, Result(0))
        assert storage.read("one") == record

    def test_a_statement_that_takes_too_long(self, postgres_server: PostgresServer, storage: Any) -> None:
        import psycopg

        record = held(storage)
        storage._connections.client.execute("SET statement_timeout = 50")
        with psycopg.connect(postgres_server.url) as other:
            other.execute(f"LOCK TABLE {prefix_of(storage)}executions IN EXCLUSIVE MODE".encode())
            with pytest.raises(StorageError, match="statement timeout: raise statement_timeout, or find out"):
                storage.commit(record._replace(token=2), 1)
        assert storage.read("one") == record

    def test_a_claim_and_a_commit_find_their_execution_by_an_index(self, storage: Any) -> None:
        held(storage, lease=0.0)
        connection = storage._connections.client
        connection.execute("SET enable_seqscan = off")  # of a table so small, it would be quicker
        plans = explained(connection, storage)
        assert plans.count("") == 2
        assert sum(line.endswith("Index Cond: (id = 'one'::text)") for line in plans) >= 2
        assert not [line for line in plans if "Seq Scan" in line and "executions" in line]

    def test_statements_that_are_always_in_the_way(self, storage: Any) -> None:
        import psycopg

        class Busy:
            def __init__(self, connection: Any, row_factory: Any) -> None: ...

            def execute(self, *arguments: Any, **options: Any) -> None:
                raise psycopg.errors.SerializationFailure("could not serialize access")

        storage._connections.cursor = Busy  # no server does this for ever
        with pytest.raises(StorageError, match="could not serialize access: use the default isolation"):
            storage.read("one")

    @pytest.mark.parametrize("budget", [0, math.inf])
    def test_the_server_is_killed_in_the_midst_of_200_executions(self, own_server: OwnServer, budget: float) -> None:
        server = own_server(PostgresServer())

        async def call(category: str, name: str, input: int) -> int:
            return input**2

        async def run() -> None:
            async with pooled(server.url, min_size=4, max_size=16, reconnect_timeout=60.0) as storage:
                flow = FlowExecutor(storage, call=call, budget=budget, lease=0.5, retain=True)
                await Crowd(flow, 200).run_and_kill(server)

        asyncio.run(run())


def prefix_of(storage: Any) -> str:
    prefix: str = storage._sql.version.split()[-1].removesuffix("schema")
    return prefix


class TestUse:
    def test_a_connection_that_would_wait_for_a_commit(self, postgres_server: PostgresServer, storage: Any) -> None:
        import psycopg

        from sequential.stores.postgres import PostgresStorage

        with psycopg.connect(postgres_server.url) as connection:
            ours: Any = PostgresStorage(connection, prefix=prefix_of(storage))
            with pytest.raises(StorageError, match="connect with autocommit=True, a pool with kwargs="):
                ours.claim(Record("one", "run", lease=1.0), NOW, True)
        with (
            storage._connections.client.transaction(),
            pytest.raises(StorageError, match="within a transaction of yours"),
        ):
            storage.claim(Record("one", "run", lease=1.0), NOW, True)
        assert storage.read("one") is None

    @pytest.mark.parametrize("is_sent", [False, True])
    def test_a_statement_that_a_signal_handler_has_raised_from(
        self, storage: Any, is_sent: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(statement: Generator[Any, Any, Any], *_: Any, **__: Any) -> None:
            if is_sent:
                next(statement)
            raise KeyboardInterrupt

        record, connection = held(storage), storage._connections.client
        new = record._replace(token=2, step=1)
        for act in (partial(storage.commit, new, 1, Result(0, data=b"1")), partial(storage.read, "one")):
            with monkeypatch.context() as patch:
                patch.setattr(connection, "wait", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    act()
            assert storage.read("one") in ({record, new} if is_sent else {record})

    def test_idle_cursors_hold_neither_closed_connections_nor_large_values(
        self, postgres_server: PostgresServer, storage: Any
    ) -> None:
        from psycopg_pool import ConnectionPool

        from sequential.stores.postgres import PostgresStorage

        settings: dict[str, Any] = {"kwargs": {"autocommit": True}, "min_size": 1, "max_size": 1}
        with ConnectionPool(postgres_server.url, **settings) as pool:
            pooled: Any = PostgresStorage(pool, prefix=prefix_of(storage))
            record = held(storage)
            for step, size in enumerate((10, 10, 1 << 20)):
                with pool.connection() as connection:
                    if step == 1:
                        connection.close()
                last, record = record, record._replace(token=record.token + 1, step=step + 1)
                pooled.commit(record, last.token, Result(step, data=b"x" * size))
                assert len(pooled._connections.idle) == 1
                assert not any(known.closed for known in pooled._connections.idle)
                cursor = pooled._connections.idle[next(iter(pooled._connections.idle))]
                assert all(len(value or b"") < 100 for value in cursor._query.params)

    @pytest.mark.parametrize("client", ["postgresql://host/database", None, SimpleNamespace(transaction=print)])
    def test_clients_that_are_none(self, client: Any) -> None:
        from sequential.stores.postgres import PostgresStorage

        with pytest.raises(TypeError, match=r"client= is a connection or a pool of psycopg, not .*from_url\(url\)"):
            PostgresStorage(client)

    @pytest.mark.parametrize("prefix", ["", "Upper_", "a b", "x;", "a.b", "1_", "x" * 51])
    def test_prefixes_that_are_no_names(self, storage: Any, prefix: str) -> None:
        from sequential.stores.postgres import PostgresStorage

        with pytest.raises(ValueError, match="prefix= begins the names of tables"):
            PostgresStorage(storage._connections.client, prefix=prefix)

    def test_tables_that_are_missing(self, postgres_server: PostgresServer) -> None:
        storage: Any = stores.open(postgres_server.url, prefix="missing_")
        with closing(storage):
            for ask in (partial(storage.read, "one"), partial(storage.claim, Record("one", ""), NOW, True)):
                with pytest.raises(StorageError, match=r"its tables are not there: call create_schema\(\) once"):
                    ask()

    def test_tables_of_a_later_release(self, storage: Any) -> None:
        record = held(storage, lease=0.0)
        storage._connections.client.execute(f"UPDATE {prefix_of(storage)}schema SET version = 2")
        for use in (storage.create_schema, partial(storage.claim, record._replace(lease=NOW + 1), NOW, True)):
            with pytest.raises(StorageError, match="of version 2, this release knows 1: upgrade sequential-flow"):
                use()
        assert storage.read("one") == record

    def test_the_sql_for_migrations_of_ones_own(self, postgres_database: str) -> None:
        import psycopg

        from sequential.stores.postgres import PostgresStorage

        with psycopg.connect(postgres_database, autocommit=True) as connection:
            storage: Any = PostgresStorage(connection)
            connection.execute(storage.schema.encode())
            held(storage)
            storage.create_schema()

    def test_an_empty_table_of_the_version(self, storage: Any) -> None:
        storage._connections.client.execute(f"DELETE FROM {prefix_of(storage)}schema")
        with pytest.raises(StorageError, match=r"version is empty: call create_schema\(\) once"):
            storage.claim(Record("one", "run"), NOW, True)
        storage.create_schema()
        held(storage)

    def test_a_database_in_another_encoding(self, postgres_server: PostgresServer) -> None:
        import psycopg

        from sequential.stores.postgres import PostgresStorage

        name = f"latin{new_prefix()}"
        with psycopg.connect(postgres_server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'".encode())
            try:
                with psycopg.connect(
                    postgres_server.url, dbname=name, autocommit=True, client_encoding="utf-8"
                ) as latin:
                    storage: Any = PostgresStorage(latin)
                    with pytest.raises(StorageError, match="encoding is LATIN1: create one with ENCODING 'UTF8'"):
                        storage.create_schema()
            finally:
                connection.execute(f"DROP DATABASE {name}".encode())

    def test_results_can_be_queried(self, storage: Any) -> None:
        values = {"x": "é\u2028", "b": 1.0, "a": [2**70, None, {"deep": True}]}
        flow = FlowExecutor(storage, call=lambda *_: values, retain=True, budget=math.inf)
        flow.execute_sync(one_call, "one")
        query = f"SELECT data ->> 'x', data -> 'a' ->> 0, asked FROM {prefix_of(storage)}history WHERE id = 'one' AND step = 0"
        assert storage._connections.client.execute(query).fetchall() == [("é\u2028", str(2**70), "tool a.b")]
        assert json.dumps(flow.history_sync("one")[0]["result"]) == json.dumps(values)

    def test_round_trips(self, postgres_server: PostgresServer, storage: Any) -> None:
        import psycopg

        from sequential.stores.postgres import PostgresStorage

        with Proxy(postgres_server.url) as proxy:
            connection = psycopg.connect(proxy.url, autocommit=True)
            connection.prepare_threshold = None  # the driver prepares what is often used by a round trip of its own
            with closing(PostgresStorage(connection, prefix=prefix_of(storage))) as ours:
                flow = FlowExecutor(ours, call=square, retain=True)
                counted: list[int] = []
                outcome: Any = Paused("", 0, "")
                while isinstance(outcome, Paused):
                    before = proxy.round_trips
                    outcome = flow.execute_sync(squares, "one", {"steps": 6})
                    counted.append(proxy.round_trips - before)
        assert outcome == 55
        assert counted == [2, *[3] * (len(counted) - 1)]  # claim, commit; then claim, history, commit

    def test_crash_points_of_everything(self, storage: Any) -> None:
        assert crash_points(squares, {"steps": 2}, call=square, storage=storage) > 30

    def test_a_missing_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        monkeypatch.delitem(sys.modules, "sequential.stores.postgres", raising=False)
        with pytest.raises(
            NotInstalled, match=r"'psycopg' is not installed: pip install 'sequential-flow\[postgres\]'"
        ):
            importlib.import_module("sequential.stores.postgres")

    def test_a_lease_is_renewed_while_a_call_blocks(self, storage: Any) -> None:
        """By another thread, on the same connection."""
        renewed = threading.Event()
        commit = storage.commit

        def watched(record: Record, token: int, *rest: Any, **signals: Any) -> Any:
            done = commit(record, token, *rest, **signals)
            if record.token == token:
                renewed.set()
            return done

        storage.commit = watched
        flow = FlowExecutor(storage, call=lambda *_: renewed.wait(10), lease=0.05, budget=math.inf)
        assert flow.execute_sync(one_call, "one") is True


def one_call() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b"))
