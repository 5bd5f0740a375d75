"""What is stored and cannot be read is told with execution and place, and keeps nobody from the others."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from sequential import Damaged, Event, FlowExecutor, StorageError, tool
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock


def workflow() -> Generator[Any, Any, Any]:
    return [(yield tool("t", "a")), (yield tool("t", "b")), (yield tool("t", "c"))]


class Scene:
    """Two executions of two steps each, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.rung = path / "flows.db", FakeClock(), list[str]()
        self.events: list[Event] = []
        self.flow = FlowExecutor(
            SQLiteStorage(self.path),
            call=lambda *_: 1,
            resume=self.rung.append,
            workflows=[workflow],
            clock=self.clock,
            observe=self.events.append,
        )
        for id in ("bad", "good"):
            for _ in range(2):
                self.flow.execute_sync(workflow, id)
        self.rung.clear()

    def damage(self, statement: str) -> None:
        with sqlite3.connect(self.path) as connection:
            assert connection.execute(statement).rowcount == 1
        connection.close()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


ENTRIES = {
    "a value that is no JSON": ("UPDATE sequential_entries SET data = x'7b' WHERE id = 'bad' AND place = 1", 1),
    "what was asked is not told": (
        "UPDATE sequential_entries SET about = '{\"x\":1}' WHERE id = 'bad' AND place = 0",
        0,
    ),
    "what was asked is no JSON": ("UPDATE sequential_entries SET about = '{' WHERE id = 'bad' AND place = 0", 0),
    "an entry is missing": ("DELETE FROM sequential_entries WHERE id = 'bad' AND place = 0", 0),
    "the input is missing": ("DELETE FROM sequential_entries WHERE id = 'bad' AND place = -1", -1),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_damaged_entry_is_told_with_its_place_and_nothing_is_lost(scene: Scene, name: str) -> None:
    statement, place = ENTRIES[name]
    scene.damage(statement)
    with pytest.raises(Damaged, match=r"of execution 'bad' is damaged") as caught:
        scene.flow.execute_sync(workflow, "bad")
    assert (caught.value.id, caught.value.place) == ("bad", place)
    assert scene.flow.execute_sync(workflow, "good") == {"paused": "good", "step": 2}
    scene.flow.delete_sync("bad")
    assert scene.flow.execute_sync(workflow, "bad") == {"paused": "bad", "step": 0}


def test_a_damaged_record_is_skipped_told_and_removed(scene: Scene) -> None:
    scene.damage("UPDATE sequential_records SET state = 'x' WHERE id = 'bad'")
    asks: list[Callable[[str], Any]] = [
        scene.flow.status_sync,
        scene.flow.resume_sync,
        scene.flow.ring_sync,
        lambda id: scene.flow.signal_sync(id, "go"),
        scene.flow.cancel_sync,
    ]
    for ask in asks:
        with pytest.raises(Damaged, match=r"of execution 'bad' is damaged \(its record\)"):
            ask("bad")
    assert [status.id for status in scene.flow.list_sync()] == ["good"]
    scene.clock.advance(100.0)
    assert scene.flow.sweep_sync() == scene.rung == ["good"]
    assert [(event.kind, event.id) for event in scene.events if event.kind == "damaged"] == [("damaged", "bad")] * 2
    scene.clock.advance(100.0)
    assert scene.flow.sweep_sync() == ["good"]  # the other is parked, and told once
    scene.flow.delete_sync("bad")
    assert scene.flow.status_sync("bad") is None


STATES = ['{"format":1,"attempts":"x"}', '{"format":1,"owner":5,"lease":9e9}', '{"format":2}']


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_does_not_fit_keeps_nobody_from_the_others(scene: Scene, state: str) -> None:
    scene.damage(f"UPDATE sequential_records SET state = '{state}', status = 'waiting' WHERE id = 'bad'")
    with pytest.raises(StorageError):
        scene.flow.resume_sync("bad")
    assert [status.id for status in scene.flow.list_sync()] == ["good"]
    assert scene.flow.purge_sync(0, waiting=True) == []
    scene.clock.advance(1e6)
    assert scene.flow.sweep_sync() == scene.rung == ["good"]
    scene.flow.delete_sync("bad")
    assert scene.flow.status_sync("bad") is None


def test_a_page_is_as_long_as_it_may_be_though_one_cannot_be_read(scene: Scene) -> None:
    scene.damage("UPDATE sequential_records SET state = 'x' WHERE id = 'bad'")
    assert [status.id for status in scene.flow.list_sync(limit=1)] == ["good"]
    assert scene.flow.list_sync(limit=1, after="good") == []


def test_a_history_with_an_entry_that_is_no_json_says_where(scene: Scene) -> None:
    scene.damage("UPDATE sequential_entries SET about = '{' WHERE id = 'bad' AND place = 1")
    with pytest.raises(Damaged) as caught:
        scene.flow.history_sync("bad")
    assert caught.value.place == 1


def test_a_purge_ends_though_an_id_cannot_be_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    find, pages = SQLiteStorage.find, list[str]()

    def counted(storage: SQLiteStorage, after: str, *what: Any) -> Any:
        pages.append(after)
        assert len(pages) < 50
        return find(storage, after, *what)

    monkeypatch.setattr(SQLiteStorage, "find", counted)
    scene.damage("UPDATE sequential_records SET id = cast(x'ff41' AS TEXT), status = 'failed' WHERE id = 'bad'")
    scene.damage("UPDATE sequential_records SET status = 'failed' WHERE id = 'good'")
    scene.clock.advance(10)
    assert "good" in scene.flow.purge_sync(1)
