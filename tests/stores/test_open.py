"""A storage from a URL."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sequential import FlowExecutor, tool
from sequential.errors import StorageError
from sequential.stores import open as open_storage
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from tests.support import AsyncJournal, echo
from tests.test_public_api import loaded_by


def workflow() -> Generator[Any, Any, Any]:
    return (yield tool("a", "b", "answer"))


@pytest.mark.parametrize("url", ["memory://", "MEMORY://"])
def test_memory(url: str) -> None:
    assert isinstance(open_storage(url), MemoryStorage)


def test_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///flows.db", f"sqlite:///{tmp_path}/flows.db"):
        storage = open_storage(url, synchronous="NORMAL")
        assert isinstance(storage, SQLiteStorage)
        with closing(storage):
            flow = FlowExecutor(storage, call=echo, retain=True)
            flow.execute_sync(workflow, "one")
            assert flow.execute_sync(workflow, "one") == "answer"
    assert [path.name for path in tmp_path.glob("*.db")] == ["flows.db"]


@pytest.mark.parametrize("url", ["", "flows.db", "mysql://host/database", "sqlite:/flows.db", "://x"])
def test_a_url_of_no_store(url: str) -> None:
    with pytest.raises(StorageError, match=r"there is no store for '.*': a URL begins with memory://, sqlite://$"):
        open_storage(url)


def test_a_password_is_not_told() -> None:
    with pytest.raises(StorageError, match=r"there is no store for 'mysql\+driver://': a URL begins with"):
        open_storage("mysql+driver://user:secret@host/database")


def test_options_that_a_store_does_not_know() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'ttl'"):
        open_storage("memory://", ttl=5)


def test_no_driver_is_imported_before_it_is_needed() -> None:
    assert "sqlite3" not in loaded_by("from sequential.stores import open; open('memory://')")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://flows.db", "sqlite:///a.db?timeout=5"])
def test_sqlite_without_a_file(url: str) -> None:
    with pytest.raises(StorageError, match="names no file: write sqlite:///relative/path or sqlite:////absolute/path"):
        open_storage(url)


def test_tables_are_asked_for_wherever_none_are_needed(tmp_path: Path) -> None:
    for storage in (open_storage("memory://"), open_storage(f"sqlite:///{tmp_path}/flows.db"), AsyncJournal()):
        assert storage.create_schema() is None
        assert storage.close() is None
