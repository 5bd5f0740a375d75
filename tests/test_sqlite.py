"""What only the SQLite store does: files, processes, and every way in which a file can be wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from sequential import Fenced, FlowExecutor, StorageError, tool
from sequential.storage import Record, Result
from sequential.stores import owner as owners
from sequential.stores import sqlite, sqlite_file
from sequential.stores.sqlite import SQLiteStorage
from tests.support import echo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


@pytest.fixture
def storage(path: Path) -> Iterator[SQLiteStorage]:
    storage = SQLiteStorage(path)
    yield storage
    storage.close()


def record(id: str = "one", **fields: Any) -> Record:
    return Record(id, "run", "workflow", b"{}", 0, token=1, due=5.0, lease=1000.0)._replace(**fields)


def workflow() -> Generator[Any, Any, Any]:
    yield tool("api", "one")
    return (yield tool("api", "two", {"n": 2}))


def test_nothing_is_opened_before_the_first_use_and_closing_is_no_end(path: Path) -> None:
    storage = SQLiteStorage(path)
    assert not path.exists()
    storage.close()
    flow = FlowExecutor(storage, call=echo)
    flow.execute_sync(workflow, "w")
    storage.close()
    flow.execute_sync(workflow, "w")
    storage.close()
    assert FlowExecutor(SQLiteStorage(str(path))).execute_sync(workflow, "w") == {"n": 2}


def test_it_lives_beside_the_users_own_tables(path: Path, storage: SQLiteStorage) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (value)")
        connection.execute("PRAGMA user_version = 42")
    storage.claim(record(), 0.0, True)
    connection = sqlite3.connect(path)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}
    assert all(name == "mine" or name.startswith("sequential_") for name in names)
    assert connection.execute("PRAGMA user_version").fetchone() == (42,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_results_can_be_read_by_sql(path: Path, storage: SQLiteStorage) -> None:
    FlowExecutor(storage, call=echo, retain=True, budget=1e9).execute_sync(workflow, "w")
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT id, result_step, asked, CAST(data AS TEXT) FROM sequential_steps ORDER BY 2"
    ).fetchall()
    connection.close()
    assert rows == [("w", 0, "tool api.one", "{}"), ("w", 1, "tool api.two", '{"n":2}'), ("w", 2, "return", '{"n":2}')]


@pytest.mark.parametrize("size", [(1 << 20) - 2, (1 << 20) - 1, 100_000_000])
def test_a_result_of_a_hundred_megabytes_goes_in_and_out(storage: SQLiteStorage, size: int) -> None:
    def large() -> Generator[Any, Any, Any]:
        got = yield tool("api", "large")
        return [len(got), got == "x" * size]

    flow = FlowExecutor(storage, call=lambda *_: "x" * size)
    flow.execute_sync(large, "l")
    assert flow.execute_sync(large, "l") == [size, True]


def test_a_large_input_comes_back(storage: SQLiteStorage) -> None:
    def long(input: Any) -> Generator[Any, Any, Any]:
        yield tool("api", "one")
        return len(input["text"])

    flow = FlowExecutor(storage, call=echo)
    flow.execute_sync(long, "l", {"text": "x" * 3_000_000})
    assert flow.execute_sync(long, "l") == 3_000_000


def test_a_deleted_execution_leaves_no_row(path: Path, storage: SQLiteStorage) -> None:
    flow = FlowExecutor(storage, call=echo)
    for id in ("a", "b"):
        flow.execute_sync(workflow, id)
    flow.delete_sync("a")
    for _ in range(2):
        flow.execute_sync(workflow, "b")
    connection = sqlite3.connect(path)
    for table in ("sequential_executions", "sequential_results"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    connection.close()


def test_a_large_result_is_in_memory_no_more_than_twice_while_it_is_written(path: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    size = 20_000_000

    def one() -> Generator[Any, Any, int]:
        return len((yield tool("api", "large"))["text"])

    def call(category: str, name: str, input: Any) -> Any:
        return {"text": "x" * size}

    flow = FlowExecutor(SQLiteStorage(path), call=call)
    tracemalloc.start()
    try:
        flow.execute_sync(one, "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * size
    assert flow.execute_sync(one, "x") == size


@pytest.mark.parametrize(("path", "timeout"), [(None, 1.0), (5, 1.0), (b"a.db", 1.0), ("a.db", "5"), ("a.db", None)])
def test_what_is_no_file_or_no_time_is_refused(path: Any, timeout: Any) -> None:
    with pytest.raises(TypeError, match="path= is a file's, and timeout= a number of seconds: got"):
        SQLiteStorage(path, timeout=timeout)


@pytest.mark.parametrize("option", ["OFF", "full", None, []])
def test_a_durability_that_is_none_is_refused(path: Path, option: Any) -> None:
    with pytest.raises(ValueError, match="synchronous must be 'FULL' or 'NORMAL'"):
        SQLiteStorage(path, synchronous=option)


def test_a_url_in_place_of_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write SQLiteStorage.from_url\('sqlite:///flows.db'\)"):
        SQLiteStorage("sqlite:///flows.db")


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_only_the_claim_of_an_existing_record_may_be_lost_in_a_power_cut(path: Path, synchronous: Any) -> None:
    storage = SQLiteStorage(path, synchronous=synchronous)
    levels: list[tuple[str, int]] = []
    storage.read("open it")
    connection = storage._file.connection
    assert connection is not None
    wanted = 2 if synchronous == "FULL" else 1

    def level(what: str) -> None:
        assert connection is not None
        levels.append((what, connection.execute("PRAGMA synchronous").fetchone()[0]))

    storage.claim(record(), 0.0, True)
    level("created")
    storage.commit(record(token=2, step=1), 1, Result(0))
    level("stepped")
    storage.commit(record(token=3, step=1, lease=0.0), 2)
    level("paused")
    storage.claim(record(), 0.0, True)
    level("claimed")
    storage.remove("one")
    level("removed")
    assert levels == [("created", wanted), ("stepped", wanted), ("paused", wanted), ("claimed", 1), ("removed", wanted)]
    storage.close()


class Counting:
    """A connection that counts what it is asked to execute."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.count = 0

    def execute(self, *arguments: Any) -> Any:
        self.count += 1
        return self.connection.execute(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


def test_a_step_that_goes_on_is_one_statement_and_history_one_query_a_page(storage: SQLiteStorage) -> None:
    held = record()
    storage.claim(held, 0.0, True)
    assert storage._file.connection is not None
    counting: Any = Counting(storage._file.connection)
    storage._file.connection = counting
    for step in range(500):
        storage.commit(held._replace(token=step + 2, step=step + 1, lease=1000.0 + step), step + 1, Result(step))
    assert counting.count == 1 + 500  # the first finds where the execution stands
    assert len(storage.results(held._replace(step=500), 0, 500)) == 500
    assert counting.count == 1 + 500 + 1


def test_where_an_execution_stands_is_known_of_some_and_found_of_all(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_KNOWN", 2)
    records = [record(f"{number}", run=f"run {number}") for number in range(5)]
    for each in records:
        storage.claim(each, 0.0, True)
    for step in range(3):
        for each in records:
            new = each._replace(token=step + 2, step=step + 1, lease=1000.0)
            storage.commit(new, step + 1, Result(step, data=each.id.encode()))
    for each in records:
        assert [result.data for result in storage.results(each, 0, 9)] == [each.id.encode()] * 3


def test_another_execution_in_the_place_of_one_that_was_removed_is_not_taken_for_it(storage: SQLiteStorage) -> None:
    old = record("old", run="old run")
    storage.claim(old, 0.0, True)
    storage.commit(old._replace(token=2, step=1, lease=1000.0), 1, Result(0))
    SQLiteStorage(storage._file.path).remove("old")
    new = record("new", run="new run", token=2)
    SQLiteStorage(storage._file.path).claim(new, 0.0, True)
    with pytest.raises(Fenced):
        storage.commit(old._replace(token=3, step=2, lease=1000.0), 2, Result(1))
    assert storage.results(new, 0, 9) == []
    assert storage.read("new") == new


class TestWrongFiles:
    """Each error names the file, what failed and the remedy; nothing is lost or written."""

    def test_a_file_that_is_no_database(self, path: Path) -> None:
        path.write_bytes(b"not a database, " * 500)
        storage = SQLiteStorage(path)
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                storage.read("one")
            assert str(caught.value) == (
                f"{path}: file is not a database (SQLITE_NOTADB): it is not a SQLite database: give another path"
            )
        assert path.read_bytes() == b"not a database, " * 500

    def test_a_directory_that_does_not_exist(self, tmp_path: Path) -> None:
        storage = SQLiteStorage(tmp_path / "nowhere" / "flows.db")
        with pytest.raises(
            StorageError, match=r"nowhere/flows.db: unable to open database file \(SQLITE_CANTOPEN\): it can"
        ):
            FlowExecutor(storage, call=echo).execute_sync(workflow, "w")

    def test_a_file_that_another_holds_locked(self, path: Path) -> None:
        SQLiteStorage(path).claim(record(lease=0.0), 0.0, True)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        storage = SQLiteStorage(path, timeout=0.01)
        with pytest.raises(
            StorageError, match=r"flows.db: database is locked \(SQLITE_BUSY\): another process holds it"
        ):
            FlowExecutor(storage, call=echo).execute_sync(workflow, "one")
        assert storage.read("one") == record(lease=0.0)
        holder.execute("ROLLBACK")
        assert FlowExecutor(storage, call=echo).execute_sync(workflow, "one") == {"paused": "one", "step": 0}
        holder.close()
        storage.close()

    def test_a_file_that_cannot_be_written(self, path: Path, storage: SQLiteStorage) -> None:
        storage.claim(record(lease=0.0), 0.0, True)
        assert storage._file.connection is not None
        storage._file.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(
            StorageError, match=r"attempt to write a readonly database .*: it cannot be written: check the perm"
        ):
            FlowExecutor(storage, call=echo).execute_sync(workflow, "one")
        assert storage.read("one") == record(lease=0.0)

    def test_a_disk_that_is_full(self, path: Path, storage: SQLiteStorage) -> None:
        flow = FlowExecutor(storage, call=lambda *_: "x" * 200_000)
        flow.execute_sync(workflow, "w")
        assert storage._file.connection is not None
        pages = storage._file.connection.execute("PRAGMA page_count").fetchone()[0]
        storage._file.connection.execute(f"PRAGMA max_page_count = {pages}")
        for size, budget in ((200_000, 0.0), (2_000_000, 0.0), (200_000, 1e9)):
            flow = FlowExecutor(storage, call=lambda *_: "x" * size, budget=budget)  # noqa: B023
            with pytest.raises(
                StorageError, match=r"flows.db: database or disk is full \(SQLITE_FULL\): the disk is full"
            ):
                flow.execute_sync(workflow, "w")
        status = flow.status_sync("w")
        assert status is not None
        assert (status.step, status.busy) == (1, False)
        storage._file.connection.execute("PRAGMA max_page_count = 100000")
        assert flow.execute_sync(workflow, "w") == "x" * 200_000

    def test_a_result_larger_than_sqlite_allows(self, storage: SQLiteStorage) -> None:
        storage.read("open it")
        assert storage._file.connection is not None
        storage._file.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2_000_000)
        flow = FlowExecutor(storage, call=lambda *_: "x" * 3_000_000)
        with pytest.raises(StorageError, match=r"\(SQLITE_TOOBIG\): the value is larger than SQLite allows"):
            flow.execute_sync(workflow, "w")

    def test_tables_of_a_later_version(self, path: Path, storage: SQLiteStorage) -> None:
        storage.read("open it")
        storage.close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE sequential_schema SET version = 9")
        connection.close()
        with pytest.raises(
            StorageError, match="its tables are of version 9, this release knows 1: upgrade sequential-flow"
        ):
            storage.read("one")


def test_an_interruption_within_a_transaction_undoes_it(storage: SQLiteStorage) -> None:
    storage.claim(record(), 0.0, True)

    def interrupted(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM sequential_executions")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage._file.run(interrupted, "FULL")
    assert storage.read("one") == record()


def test_many_threads_share_one_storage(storage: SQLiteStorage) -> None:
    flow = FlowExecutor(storage, call=echo)
    outcomes: dict[int, list[Any]] = {number: [] for number in range(8)}

    def run(number: int) -> None:
        for _ in range(30):
            outcomes[number].append(flow.execute_sync(workflow, f"shared-{_ % 10}"))

    threads = [threading.Thread(target=run, args=(number,)) for number in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(found) for found in outcomes.values()} == {30}


def test_many_processes_open_a_new_file_at_once(path: Path) -> None:
    code = f"""if True:
        import sys
        from sequential.stores.sqlite import SQLiteStorage
        sys.stdin.readline()
        print(SQLiteStorage({str(path)!r}).read("one"))
    """
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["None\n"] * 8


def test_a_file_that_another_is_just_opening_is_waited_for() -> None:
    class Contended:
        refusals = 3

        def execute(self, statement: str) -> None:
            assert statement == "PRAGMA journal_mode = WAL"
            if self.refusals:
                self.refusals -= 1
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error

    contended: Any = Contended()
    sqlite_file._switch_to_wal(contended, timeout=20.0)
    assert contended.refusals == 0


def test_a_file_that_stays_locked_while_it_is_opened_is_given_up(path: Path) -> None:
    with sqlite3.connect(path) as holder:
        holder.execute("CREATE TABLE mine (value)")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="database is locked"):
        SQLiteStorage(path, timeout=0.02).read("one")
    holder.close()


class TestOwners:
    """The lease of a process of this host that has died is void at once; of any other, when it ends."""

    def hold_in_another_process(self, path: Path) -> subprocess.Popen[str]:
        code = f"""if True:
            import sys
            from sequential.storage import Record
            from sequential.stores.sqlite import SQLiteStorage
            storage = SQLiteStorage({str(path)!r})
            storage.claim(Record("one", "run", "workflow", b"{{}}", 0, token=1, due=5.0, lease=1000.0), 0.0, True)
            print("held", flush=True)
            sys.stdin.read()
        """
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    def test_the_lease_of_the_dead_is_void_and_of_the_living_is_not(self, path: Path, storage: SQLiteStorage) -> None:
        process = self.hold_in_another_process(path)
        try:
            assert storage.claim(record(lease=2000.0), 500.0, False) == (record(), False)
            assert storage.due(500.0, 5) == []
            process.send_signal(signal.SIGKILL)
            # Not yet waited for, it is a zombie: dead, though it has its number still.
            deadline = monotonic() + 20.0
            while storage.due(500.0, 5) == []:
                assert monotonic() < deadline
            process.wait()
            assert storage.due(500.0, 5) == [record()]
            assert storage.claim(record(lease=2000.0), 500.0, False) == (record(token=2, lease=2000.0), True)
            assert storage.due(500.0, 5) == []
        finally:
            process.kill()
            process.communicate()

    def owned_by(self, path: Path, owner: str | None) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE sequential_executions SET owner = ?", (owner,))
        connection.close()

    @pytest.mark.parametrize("owner", [None, "another host, 1 1", "same host, own number, another start"])
    def test_only_what_is_known_dead_is_void(self, path: Path, storage: SQLiteStorage, owner: str | None) -> None:
        storage.claim(record(), 0.0, True)
        dead = owner is not None and owner.startswith("same")
        self.owned_by(path, f"{owners._host()} {os.getpid()} 1" if dead else owner)
        assert storage.claim(record(lease=2000.0), 500.0, False)[1] is dead

    def test_a_process_hidden_from_this_one_is_not_taken_for_dead(
        self, path: Path, storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(pid: int, signal: int) -> None:
            raise PermissionError

        storage.claim(record(), 0.0, True)
        self.owned_by(path, f"{owners._host()} 999999999 1")
        monkeypatch.setattr(os, "kill", forbidden)
        assert storage.claim(record(lease=2000.0), 500.0, False) == (record(), False)
        monkeypatch.undo()
        assert storage.claim(record(lease=2000.0), 500.0, False)[1]

    def test_where_processes_cannot_be_told_apart_only_time_counts(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreadable(*_: Any) -> Any:
            raise FileNotFoundError

        monkeypatch.setattr(owners, "open", unreadable, raising=False)
        owners._host.cache_clear()
        storage = SQLiteStorage(path)
        storage.claim(record(), 0.0, True)
        assert owners._host() == ""
        monkeypatch.undo()
        owners._host.cache_clear()
        assert storage.claim(record(lease=2000.0), 500.0, False) == (record(), False)
        assert storage.claim(record(lease=2000.0), 1000.0, False)[1]
        storage.close()


FORK = """if True:
    import os, sys, threading
    from sequential import FlowExecutor, tool
    from sequential.stores.sqlite import SQLiteStorage

    def workflow(input):
        for number in range(input["steps"]):
            yield tool("api", "call", {"number": number})
        return "done"

    storage = SQLiteStorage(sys.argv[1], timeout=20.0)
    flow = FlowExecutor(storage, call=lambda *_: 1, workflows=[workflow], retain=True, budget=1e9)

    def fork(child):
        pid = os.fork()
        if pid == 0:
            try:
                child()
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        return pid
"""


def run_python(code: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_what_a_forked_child_commits_outlives_its_parents_connection(path: Path, storage: SQLiteStorage) -> None:
    """SQLite's locks belong to a process: a child that inherited their account would write into a deleted file."""
    code = """
    for number in range(3):
        flow.start_sync(workflow, {"steps": 3}, f"e{number}")
    reader, writer = os.pipe()
    children = [fork(lambda id=f"e{number}": (os.read(reader, 1), flow.resume_sync(id))) for number in range(3)]
    storage.close()
    os.write(writer, b"go!")
    print([os.waitpid(child, 0)[1] for child in children])
    """
    assert run_python(FORK + code, path) == ["[0, 0, 0]"]
    for number in range(3):
        status = FlowExecutor(storage).status_sync(f"e{number}")
        assert status is not None
        assert (status.status, status.value) == ("finished", "done")


def test_a_daemon_outlives_the_process_that_started_it(path: Path, storage: SQLiteStorage) -> None:
    code = """
    flow.start_sync(workflow, {"steps": 3}, "e")
    reader, writer = os.pipe()
    fork(lambda: (os.close(writer), os.read(reader, 1), flow.resume_sync("e"), print("done", flush=True)))
    """
    assert run_python(FORK + code, path) == ["done"]
    status = FlowExecutor(storage).status_sync("e")
    assert status is not None
    assert status.status == "finished"


def test_a_child_forked_while_a_thread_commits_can_write(path: Path, storage: SQLiteStorage) -> None:
    code = """
    flow.execute_sync(workflow, "first", {"steps": 1})  # whoever forks within a thread's first import is stuck in Python
    ended = threading.Event()
    def busy(name):
        number = 0
        while not ended.is_set():
            number += 1
            flow.execute_sync(workflow, f"{name}-{number}", {"steps": 5})
    threads = [threading.Thread(target=busy, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    statuses = []
    for number in range(15):
        child = fork(lambda: flow.execute_sync(workflow, f"child-{number}", {"steps": 2}))
        statuses.append(os.waitpid(child, 0)[1])
    ended.set()
    for thread in threads:
        thread.join()
    print(statuses)
    """
    assert run_python(FORK + code, path) == [str([0] * 15)]
    for number in range(15):
        assert storage.read(f"child-{number}") is not None


def test_a_database_in_memory_is_copied_by_a_fork() -> None:
    code = """
    flow.execute_sync(workflow, "before", {"steps": 2})
    child = fork(lambda: print(flow.execute_sync(workflow, "child", {"steps": 2}), flow.status_sync("before").value, flush=True))
    os.waitpid(child, 0)
    print(flow.status_sync("before").value, flow.status_sync("child"))
    """
    assert run_python(FORK + code, ":memory:") == ["done done", "done None"]
