"""What only the SQLite store can get wrong: files, processes, forks, plans, and every way in which a file is bad."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sequential import FlowExecutor
from sequential.blocking import complete
from sequential.errors import Damaged, StorageError
from sequential.journal import Log
from sequential.record import STATUSES, Entry, Record
from sequential.stores import sqlite, sqlite_file
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


@pytest.fixture
def storage(path: Path) -> Iterator[SQLiteStorage]:
    storage = SQLiteStorage(path)
    yield storage
    storage.close()


def record(id: str = "one", **fields: Any) -> Record:
    return Record(id, "run", "stamp 0", 0, "workflow", "running", 5.0, 1.0, "{}")._replace(**fields)


def entry(place: int = 0, data: bytes = b"1", part: int = 0, run: str = "run") -> Entry:
    return Entry(run, place, part, '{"asked":"tool api.one"}', data)


def stepped(old: Record, **fields: Any) -> Record:
    return old._replace(stamp=f"stamp {old.step + 1}", step=old.step + 1, changed=old.changed + 1.0, **fields)


def connection_of(storage: SQLiteStorage) -> sqlite3.Connection:
    storage.read("open it")
    assert storage._file.connection is not None
    return storage._file.connection


def alter(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def everything(journal: SQLiteStorage | MemoryStorage, id: str) -> tuple[Record | None, list[Entry]]:
    start, found = (-(1 << 62), 0), list[Entry]()
    while True:
        record, page = journal.read(id, start, 1 << 62)
        if not page:
            return record, found
        found += page
        start = page[-1].place, page[-1].part + 1


def test_nothing_is_opened_before_the_first_use_and_closing_is_no_end(path: Path) -> None:
    storage = SQLiteStorage(path)
    storage.close()
    assert not path.exists()
    assert storage.write(None, record())
    storage.close()
    assert storage.read("one") == (record(), [])
    storage.close()
    assert SQLiteStorage(str(path)).read("one")[0] == record()


def test_a_relative_path_stays_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    storage = SQLiteStorage(path.name)
    monkeypatch.chdir("/")
    assert storage.write(None, record())
    storage.close()
    assert path.exists()


def test_it_lives_beside_the_users_own_tables(path: Path, storage: SQLiteStorage) -> None:
    alter(path, "CREATE TABLE mine (value)", "PRAGMA user_version = 42")
    storage.write(None, record())
    names = {name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}
    assert all(name == "mine" or name.startswith("sequential_") for name in names)
    assert rows(path, "PRAGMA user_version") == [(42,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_the_log_can_be_read_by_sql(path: Path, storage: SQLiteStorage) -> None:
    storage.write(None, record(), [entry(1, b"[2]"), entry(0, b"1")])
    statement = (
        "SELECT r.id, place, CAST(data AS TEXT) FROM sequential_records AS r JOIN sequential_entries USING (id, run)"
    )
    assert rows(path, statement) == [("one", 0, "1"), ("one", 1, "[2]")]


def test_what_is_removed_leaves_no_row(path: Path, storage: SQLiteStorage) -> None:
    old, other = record(), record("other")
    storage.write(None, old, [entry()])
    storage.write(None, other, [entry()])
    new = stepped(old, run="next")
    storage.write(old, new, [entry(run="next"), entry(run="begun by a dead process")])
    assert rows(path, "SELECT id, run FROM sequential_entries ORDER BY id, run") == [("one", "next"), ("other", "run")]
    assert not storage.write(old, None)
    assert storage.write(new, None)
    for table in ("records", "entries"):
        assert rows(path, f"SELECT DISTINCT id FROM sequential_{table}") == [("other",)]


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_the_store_in_memory(storage: SQLiteStorage, seed: int) -> None:
    """Whatever runs, places, parts and stamps, in any order."""
    draw, memory, dues = random.Random(seed), MemoryStorage(), iter(range(1, 1000))
    ids, statuses = ["a", "b", "B", "~", "1", "01"], sorted(STATUSES)

    def next_of(old: Record | None, id: str) -> Record | None:
        fields: dict[str, Any] = {"stamp": f"{draw.random()}", "step": draw.randrange(9), "changed": draw.randrange(9)}
        if old is None or draw.random() < 0.5:
            due = draw.choice([None, float(next(dues))])
            fields.update(status=draw.choice(statuses), workflow=draw.choice("vw"), run=draw.choice("rst"), due=due)
        return (old or record(id))._replace(**fields) if old is None or draw.random() < 0.9 else None

    for _ in range(300):
        id = draw.choice(ids)
        stored = memory.read(id)[0]
        old = stored if draw.random() < 0.8 else draw.choice([None, record(id, stamp="of nobody")])
        new = next_of(old, id)
        places = [draw.choice([-(1 << 61), -2, -1, 0, 1, 2]) for _ in range(draw.choice([0, 1, 1, 3]))]
        sizes = [0, 10, sqlite._LARGE - 1, sqlite._LARGE]
        entries = [
            entry(place, draw.randbytes(draw.choice(sizes)), draw.randrange(3), draw.choice("rst")) for place in places
        ]
        assert storage.write(old, new, entries) == memory.write(old, new, entries)
        assert everything(storage, id) == everything(memory, id)
        now, limit = draw.uniform(0.0, 300.0), draw.randrange(1, 5)
        assert storage.due(now, limit) == memory.due(now, limit)
        status, workflow, before = (
            draw.choice([None, draw.choice(options)]) for options in (statuses, "vw", [3.0, 7.0])
        )
        arguments: Any = (draw.choice(["", *ids]), limit, status, workflow, before)
        assert storage.find(*arguments) == memory.find(*arguments)


def test_a_large_value_in_parts_goes_in_and_out_and_is_nowhere_whole(storage: SQLiteStorage) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    value = random.Random(1).randbytes(20_000_000)
    tracemalloc.start()
    try:
        new = record(step=1)
        written = complete(storage.update("one", None, lambda stored, _: None if stored else (new, [entry(0, value)])))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert written is not None
    assert peak < 3 * storage.write_size
    found, page = storage.read("one", (0, 0), 1)
    assert found is not None
    assert found == written
    assert [len(each.data) for each in page] == [storage.part_size]
    assert complete(Log(storage, found, page, 1).take(0))[1] == [value]


def test_a_large_value_begins_a_page_and_is_not_read_before(
    storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [10, 10, 900_000, 10, sqlite._LARGE, sqlite._LARGE - 1, 10]
    entries = [entry(place, b"x" * size) for place, size in enumerate(sizes)]
    storage.write(None, record(), entries)
    pages, start = list[list[int]](), (-5, 0)
    while page := storage.read("one", start, 99)[1]:
        pages.append([each.place for each in page])
        start = page[-1].place + 1, 0
    assert pages == [[0, 1], [2, 3], [4, 5, 6]]
    assert storage.read("one", (1, 1), 99)[1] == entries[2:4]  # it begins the page, though nobody asked for its place
    monkeypatch.setattr(sqlite, "_PAGE", 25)
    assert storage.read("one", (0, 0), 99)[1] == entries[:2]
    assert storage.read("one", (3, 0), 99)[1] == entries[3:4]
    monkeypatch.setattr(sqlite, "_PAGE", 10)
    assert storage.read("one", (0, 0), 99)[1] == entries[:1]


def test_a_record_and_its_entries_are_of_one_moment(
    path: Path, storage: SQLiteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, read_page = record(step=1), sqlite._page
    storage.write(None, old, [entry()])

    def overtaken(*arguments: Any) -> list[Entry]:
        with closing(SQLiteStorage(path)) as other:
            assert other.write(old, stepped(old, run="next"), [entry(run="next")])
        return read_page(*arguments)

    monkeypatch.setattr(sqlite, "_page", overtaken)
    assert storage.read("one", (0, 0), 9) == (old, [entry()])
    monkeypatch.undo()
    assert storage.read("one", (0, 0), 9) == (stepped(old, run="next"), [entry(run="next")])


class TestArguments:
    @pytest.mark.parametrize(("path", "timeout"), [(None, 1.0), (5, 1.0), (b"a.db", 1.0), ("a.db", "5"), ("a", None)])
    def test_what_is_no_file_or_no_time_is_refused(self, path: Any, timeout: Any) -> None:
        with pytest.raises(TypeError, match="path= is a file's, and timeout= a number of seconds: got"):
            SQLiteStorage(path, timeout=timeout)

    @pytest.mark.parametrize("option", ["OFF", "full", None, []])
    def test_a_durability_that_is_none_is_refused(self, path: Path, option: Any) -> None:
        with pytest.raises(ValueError, match="synchronous must be 'FULL' or 'NORMAL'"):
            SQLiteStorage(path, synchronous=option)

    def test_a_url_in_place_of_a_path_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"write SQLiteStorage.from_url\('sqlite:///flows.db'\)"):
            SQLiteStorage("sqlite:///flows.db")

    def test_a_url_names_a_file(self, path: Path) -> None:
        codec: Any = object()
        storage = SQLiteStorage.from_url(f"sqlite:///{path}", timeout=3.0, synchronous="NORMAL", codec=codec)
        assert (storage._file.path, storage._synchronous, storage.codec) == (str(path), "NORMAL", codec)
        assert SQLiteStorage.from_url("sqlite:///flows.db")._file.path == str(Path.cwd() / "flows.db")
        assert SQLiteStorage.from_url("sqlite:///:memory:")._file.path == ":memory:"

    @pytest.mark.parametrize("url", ["sqlite://flows.db", "sqlite:///", "sqlite:///flows.db?timeout=3", "flows.db"])
    def test_a_url_that_names_none_is_refused(self, url: str) -> None:
        with pytest.raises(StorageError, match=r"names no file: write sqlite:///relative/path or sqlite:////absolute"):
            SQLiteStorage.from_url(url)


class TestCost:
    """What makes a step cheap: which pages it writes, which indexes are used, when the disk is waited for."""

    @pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
    def test_only_what_may_be_lost_does_not_wait_for_the_disk(self, path: Path, synchronous: Any) -> None:
        storage = SQLiteStorage(path, synchronous=synchronous)
        connection, levels, old = connection_of(storage), list[int](), None
        for flush in (True, False, False, True):
            new = record() if old is None else stepped(old)
            assert storage.write(old, new, flush=flush)
            levels += connection.execute("PRAGMA synchronous").fetchone()
            old = new
        storage.close()  # and the level is not taken for that of the next connection
        connection, new = connection_of(storage), stepped(new)
        assert storage.write(old, new)
        levels += connection.execute("PRAGMA synchronous").fetchone()
        storage.close()
        assert levels == ([2, 1, 1, 2, 2] if synchronous == "FULL" else [1, 1, 1, 1, 1])

    def frames(self, path: Path, write: Callable[[], bool]) -> int:
        """Return how many pages a write has written."""
        alter(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert write()
        return (Path(f"{path}-wal").stat().st_size - 32) // (4096 + 24)

    def test_a_step_writes_two_pages_and_no_index(self, path: Path, storage: SQLiteStorage) -> None:
        old = record(due=None)
        storage.read("open it")
        assert self.frames(path, lambda: storage.write(None, old, [entry(-1)])) == 2
        claimed = stepped(old, due=90.0)
        assert self.frames(path, lambda: storage.write(old, claimed)) == 2  # the index of what is due
        new = stepped(claimed)
        assert self.frames(path, lambda: storage.write(claimed, new, [entry()])) == 2
        assert self.frames(path, lambda: storage.write(new, stepped(new))) == 1
        new = stepped(new)
        ended = stepped(new, status="finished", due=None)
        assert self.frames(path, lambda: storage.write(new, ended)) == 4  # and those of what rests

    def test_what_is_stored_is_compared_and_not_what_the_caller_thinks(self, storage: SQLiteStorage) -> None:
        old = record(status="stuck", due=None)
        storage.write(None, old)
        mistaken = old._replace(status="running", due=7.0)
        assert storage.write(mistaken, stepped(mistaken))
        assert storage.due(9.0, 9) == [stepped(mistaken)]
        assert storage.find("", 9, "stuck") == []

    def test_every_statement_finds_by_a_key_or_an_index(self, storage: SQLiteStorage) -> None:
        connection, statements = connection_of(storage), list[str]()
        old = record()
        connection.set_trace_callback(statements.append)
        storage.write(None, old, [entry()])
        storage.write(old, stepped(old), [entry()])
        storage.write(stepped(old), old._replace(run="next", due=None))
        storage.read("one", (0, 0), 9)
        storage.due(9.0, 9)
        for status in (None, "running", "stuck"):
            for before in (None, 5.0):
                storage.find("", 9, status, "workflow", before)
        storage.write(old, None)
        connection.set_trace_callback(None)
        plans: dict[str, str] = {}
        for statement in statements:
            if statement.split()[0] in {"INSERT", "UPDATE", "SELECT", "DELETE"}:
                steps = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans[" ".join(statement.split())] = "; ".join(step for *_, step in steps)
        assert len(plans) > 12
        assert not [plan for plan in plans.values() if "SCAN" in plan]
        # In the order of ids, of what is old by an index: that order is made, and only of what is old.
        (sorted_,) = (statement for statement, plan in plans.items() if "TEMP B-TREE" in plan)
        assert "INDEXED BY sequential_changed" in sorted_
        for index in ("sequential_due", "sequential_status", "sequential_changed"):
            assert sum(f"INDEX {index}" in plan for plan in plans.values()) == 1

    def test_to_find_nothing_old_reads_nothing_to_speak_of(self, storage: SQLiteStorage) -> None:
        for number in range(1000):
            storage.write(None, record(f"{number}", status="finished", changed=100.0 + number), flush=False)
        connection, work = connection_of(storage), list[int]()
        connection.set_progress_handler(lambda: work.append(1), 10)
        assert storage.find("", 100, "finished", before=99.0) == []
        assert len(work) < 50
        assert storage.find("", 100, "stuck") == []
        assert len(work) < 100
        assert len(storage.find("", 100, "finished", before=104.0)) == 5
        assert len(work) < 200
        connection.set_progress_handler(None, 0)


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
            storage.write(None, record())

    def test_a_file_that_another_holds_locked(self, path: Path) -> None:
        storage = SQLiteStorage(path, timeout=0.01)
        storage.write(None, record())
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                StorageError, match=r"flows.db: database is locked \(SQLITE_BUSY\): another process holds it"
            ):
                storage.write(record(), stepped(record()))
            assert storage.read("one")[0] == record()
            holder.execute("ROLLBACK")
        assert storage.write(record(), stepped(record()))
        storage.close()

    def test_a_file_that_cannot_be_written(self, storage: SQLiteStorage) -> None:
        storage.write(None, record())
        connection_of(storage).execute("PRAGMA query_only = ON")
        with pytest.raises(
            StorageError, match=r"attempt to write a readonly database .*: it cannot be written: check the perm"
        ):
            storage.write(record(), None)
        assert storage.read("one")[0] == record()

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
    def test_a_file_of_somebody_elses(self, path: Path) -> None:  # pragma: no cover - not as root
        SQLiteStorage(path).write(None, record())
        path.chmod(0o400)
        path.parent.chmod(0o500)
        try:
            with pytest.raises(StorageError, match="check "):
                SQLiteStorage(path).write(record(), None)
        finally:
            path.parent.chmod(0o700)

    def test_a_disk_that_is_full(self, storage: SQLiteStorage) -> None:
        storage.write(None, record())
        connection = connection_of(storage)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        for size in (20_000, 1 << 20):
            with pytest.raises(
                StorageError, match=r"flows.db: database or disk is full \(SQLITE_FULL\): the disk is full: make room"
            ):
                storage.write(record(), stepped(record()), [entry(0, b""), entry(1, b"x" * size)])
            assert storage.read("one", (0, 0), 9) == (record(), [])
        connection.execute("PRAGMA max_page_count = 100000")
        assert storage.write(record(), stepped(record()), [entry(1, b"x" * 20_000)])

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"state": "x" * 3_000_000}, "SQLITE_TOOBIG): a text or a number is larger than SQLite allows"),
            ({"step": 1 << 64}, "OverflowError): a text or a number is larger than SQLite allows"),
            ({"state": "\ud800"}, "UnicodeEncodeError): nothing was recorded"),
            ({"due": []}, "nothing was recorded"),
            ({"status": None}, "SQLITE_CONSTRAINT_NOTNULL): nothing was recorded"),
        ],
    )
    def test_what_sqlite_does_not_take(self, path: Path, storage: SQLiteStorage, fields: Any, text: str) -> None:
        connection_of(storage).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2_000_000)
        with pytest.raises(StorageError) as caught:
            storage.write(None, record(**fields), [entry()])
        assert str(caught.value).startswith(f"{path}: ")
        assert text in str(caught.value)
        assert storage.read("one", (0, 0), 9) == (None, [])
        assert storage.write(None, record())

    def test_tables_of_a_later_version(self, path: Path) -> None:
        SQLiteStorage(path).read("make them")
        alter(path, "UPDATE sequential_schema SET version = 9")
        with pytest.raises(
            StorageError, match="its tables are of version 9, this release knows 2: upgrade sequential-flow"
        ):
            SQLiteStorage(path).read("one")

    def test_tables_of_the_first_release(self, path: Path) -> None:
        statements = (
            "CREATE TABLE sequential_schema (version INTEGER NOT NULL)",
            "INSERT INTO sequential_schema VALUES (1)",
            "CREATE TABLE sequential_executions (key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, rings REAL)",
            "CREATE INDEX sequential_due ON sequential_executions (rings) WHERE rings IS NOT NULL",
        )
        alter(path, *statements)
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                SQLiteStorage(path).write(None, record())
            assert str(caught.value) == (
                f"{path}: its tables are of version 1, this release knows 2: an earlier release wrote it: let that one "
                f"finish what is in it, and give this one another path"
            )
        assert len(rows(path, "SELECT * FROM sqlite_master")) == 4


class TestDamage:
    """One damaged row keeps nobody from the others, and is no TypeError of somebody else's."""

    @pytest.mark.parametrize(
        "change",
        ["state = x'00'", "changed = 'late'", "step = 'five'", "due = 'soon'", "status = x'ff'", "stamp = 1.5"],
    )
    def test_a_record_of_other_types_is_told_and_passed_over(
        self, path: Path, storage: SQLiteStorage, change: str
    ) -> None:
        for id in ("a", "b", "c"):
            storage.write(None, record(id))
        alter(path, f"UPDATE sequential_records SET {change} WHERE id = 'b'")
        if change.startswith("stamp"):  # a number becomes a text there, and is only another stamp
            assert storage.read("b")[0] == record("b", stamp="1.5")
            return
        flow = FlowExecutor(storage)
        calls: list[Callable[[], Any]] = [
            lambda: flow.status_sync("b"),
            lambda: flow.history_sync("b"),
            lambda: flow.resume_sync("b"),
            lambda: flow.signal_sync("b", "go"),
            lambda: flow.fork_sync("b", 0),
        ]
        for call in calls:
            with pytest.raises(Damaged) as caught:
                call()
            assert (caught.value.id, caught.value.place) == ("b", None)
        assert storage.find("", 2) == storage.due(9.0, 2) == [record("a"), record("c")]
        flow.delete_sync("b")
        assert storage.read("b") == (None, [])

    def test_a_text_that_is_none_keeps_nobody_from_the_others(self, path: Path, storage: SQLiteStorage) -> None:
        for id in ("a", "b"):
            storage.write(None, record(id))
        alter(path, "UPDATE sequential_records SET state = CAST(x'7bff' AS TEXT) WHERE id = 'a'")
        assert storage.find("", 9) == storage.due(9.0, 9) == [record("a", state="{\ufffd"), record("b")]
        assert storage.read("a")[0] == record("a", state="{\ufffd")

    @pytest.mark.parametrize("change", ["data = 'text'", "data = 5", "about = x'00'"])
    def test_an_entry_of_other_types(self, path: Path, storage: SQLiteStorage, change: str) -> None:
        storage.write(None, record(), [entry(0), entry(1)])
        alter(path, f"UPDATE sequential_entries SET {change} WHERE place = 1")
        with pytest.raises(Damaged) as caught:
            storage.read("one", (0, 0), 9)
        assert (caught.value.id, caught.value.place) == ("one", 1)
        assert storage.read("one", (0, 0), 1) == (record(), [entry(0)])

    def test_an_entry_that_is_no_text_is_not_quoted(self, path: Path, storage: SQLiteStorage) -> None:
        storage.write(None, record(), [entry(0)])
        alter(path, "UPDATE sequential_entries SET about = CAST(x'736563726574ff' AS TEXT)")
        with pytest.raises(StorageError, match=r"'about' .*: it is damaged: restore it from a backup") as caught:
            storage.read("one", (0, 0), 9)
        assert "secret" not in str(caught.value)


def test_an_interruption_within_a_transaction_undoes_it(storage: SQLiteStorage) -> None:
    storage.write(None, record())

    def interrupted(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM sequential_records")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage._file.run(interrupted, "FULL")
    assert storage.read("one")[0] == record()
    assert storage.write(record(), None)


class TestAtTheSameTime:
    def test_many_threads_share_one_storage(self, storage: SQLiteStorage) -> None:
        storage.write(None, record())
        won = list[int]()

        def work(number: int) -> None:
            for turn in range(50):
                old = storage.read("one")[0]
                assert old is not None
                new = old._replace(stamp=f"{number} {turn}", step=old.step + 1)
                if storage.write(old, new, [entry(old.step, str(number).encode())], flush=False):
                    won.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found, entries = everything(storage, "one")
        assert found is not None
        assert found.step == len(won) == len(entries) >= 50
        assert sorted(int(each.data) for each in entries) == sorted(won)

    def test_many_processes_open_a_new_file_at_once(self, path: Path) -> None:
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
        assert [process.communicate()[0] for process in processes] == ["(None, [])\n"] * 8

    def test_of_two_processes_one_wins_each_stamp(self, path: Path, storage: SQLiteStorage) -> None:
        storage.write(None, record())
        code = """
        won, number = [], 0
        while (old := storage.read("one")[0]).step < 300:
            number += 1
            new = old._replace(stamp=f"{os.getpid()} {number}", step=old.step + 1)
            if storage.write(old, new, [Entry("run", old.step, 0, "{}", b"%d" % os.getpid())], flush=False):
                won.append(old.step)
        print(os.getpid(), *won)
        """
        command = [sys.executable, "-c", HEAD + code, str(path)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        winners: dict[int, str] = {}
        for process in processes:
            pid, *won = process.communicate()[0].split()
            winners |= dict.fromkeys(map(int, won), pid)
        found, entries = everything(storage, "one")
        assert found is not None
        assert found.step == len(winners) == 300
        assert [each.data.decode() for each in entries] == [winners[step] for step in range(300)]

    @pytest.mark.parametrize("seed", range(3))
    def test_a_process_killed_while_it_writes_leaves_whole_steps(
        self, path: Path, storage: SQLiteStorage, seed: int
    ) -> None:
        code = """
        old, data = Record("one", "run", "0", 0, "workflow", "running", None, 1.0, "{}"), b"x" * 50_000
        storage.write(None, old)
        while True:
            new = old._replace(stamp=str(old.step + 1), step=old.step + 1, due=float(old.step))
            storage.write(old, new, [Entry("run", old.step, part, "{}", data) for part in range(3)])
            print(new.step, flush=True)
            old = new
        """
        command = [sys.executable, "-c", HEAD + code, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(20 + 7 * seed)]
            process.send_signal(signal.SIGKILL)
            told += process.stdout.readlines()
        found, entries = everything(storage, "one")
        assert found is not None
        assert int(told[-1]) <= found.step <= int(told[-1]) + 1
        assert [(each.place, each.part) for each in entries] == [(n // 3, n % 3) for n in range(3 * found.step)]
        assert storage.due(1e9, 9) == [found]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]

    def test_a_file_that_another_is_just_opening_is_waited_for(self) -> None:
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

    def test_a_file_that_stays_locked_while_it_is_opened_is_given_up(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("CREATE TABLE mine (value)")
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StorageError, match="database is locked"):
                SQLiteStorage(path, timeout=0.02).read("one")


HEAD = """if True:
        import os, sys, threading
        from sequential.record import Entry, Record
        from sequential.stores.sqlite import SQLiteStorage

        storage = SQLiteStorage(sys.argv[1], timeout=20.0)

        def put(id, steps=3):
            old = Record(id, "run", "0", 0, "workflow", "running", None, 1.0, "{}")
            assert storage.write(None, old)
            for step in range(steps):
                new = old._replace(stamp=str(step + 1), step=step + 1)
                assert storage.write(old, new, [Entry("run", step, 0, "{}", b"1")])
                old = new

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
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestForks:
    """SQLite's locks belong to a process: a child that inherited their account would write into a deleted file."""

    def test_what_a_child_commits_outlives_its_parents_connection(self, path: Path, storage: SQLiteStorage) -> None:
        code = """
        put("first")
        reader, writer = os.pipe()
        children = [fork(lambda id=f"e{number}": (os.read(reader, 1), put(id))) for number in range(3)]
        storage.close()
        os.write(writer, b"go!")
        print([os.waitpid(child, 0)[1] for child in children])
        """
        assert run_python(code, path) == ["[0, 0, 0]"]
        assert [(each.id, each.step) for each in storage.find("", 9)] == [("e0", 3), ("e1", 3), ("e2", 3), ("first", 3)]

    def test_a_daemon_outlives_the_process_that_started_it(self, path: Path, storage: SQLiteStorage) -> None:
        code = """
        put("first")
        reader, writer = os.pipe()
        fork(lambda: (os.close(writer), os.read(reader, 1), put("second"), print("done", flush=True)))
        """
        assert run_python(code, path) == ["done"]
        assert [each.step for each in storage.find("", 9)] == [3, 3]

    def test_a_child_forked_while_a_thread_writes_can_write(self, path: Path, storage: SQLiteStorage) -> None:
        code = """
        put("first")  # whoever forks within a thread's first import is stuck in Python
        ended = threading.Event()
        def busy(name):
            number = 0
            while not ended.is_set():
                number += 1
                put(f"{name}-{number}")
        threads = [threading.Thread(target=busy, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        statuses = [os.waitpid(fork(lambda: put(f"child-{number}")), 0)[1] for number in range(15)]
        ended.set()
        for thread in threads:
            thread.join()
        print(statuses)
        """
        assert run_python(code, path) == [str([0] * 15)]
        for number in range(15):
            found, entries = everything(storage, f"child-{number}")
            assert found is not None
            assert found.step == len(entries) == 3

    def test_a_database_in_memory_is_copied(self) -> None:
        code = """
        put("before")
        def show(id):
            print(*(record.id for record in storage.find("", 9)), flush=True)
        os.waitpid(fork(lambda: (put("child"), show("child"))), 0)
        show("parent")
        """
        assert run_python(code, ":memory:") == ["before child", "before"]
