"""Every store does what the shipped conformance suite asks, which also runs each through the plain adapter."""

from __future__ import annotations

import tempfile
from typing import Any, Literal

from sequential.storage import Journal
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalTests, StorageTests
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage


class TestMemory(JournalTests):
    def make(self) -> Journal:
        return MemoryStorage()


class TestAsyncJournal(JournalTests):
    async def make(self) -> Journal:
        return AsyncJournal()


class TestSQLite(JournalTests):
    synchronous: Literal["FULL", "NORMAL"] = "FULL"

    def make(self) -> Journal:
        self.directory = tempfile.TemporaryDirectory()
        self.opened: list[SQLiteStorage] = []
        return self.another(None)

    def another(self, storage: Any) -> SQLiteStorage:
        self.opened.append(SQLiteStorage(f"{self.directory.name}/flows.db", synchronous=self.synchronous))
        return self.opened[-1]

    def discard(self, storage: Any) -> None:
        for opened in self.opened:
            opened.close()
        self.directory.cleanup()


class TestSQLiteNormal(TestSQLite):
    synchronous = "NORMAL"


class TestSQLiteInMemory(JournalTests):
    def make(self) -> Journal:
        return SQLiteStorage(":memory:")

    def discard(self, storage: SQLiteStorage) -> None:
        storage.close()


class TestPlain(StorageTests):
    def make(self) -> Any:
        return PlainStorage()


class TestAsyncPlain(StorageTests):
    def make(self) -> Any:
        return AsyncPlainStorage()
