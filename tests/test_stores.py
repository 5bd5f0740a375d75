"""Every store does what the shipped conformance suite asks."""

from __future__ import annotations

import math
import tempfile
from typing import Any, Literal

from sequential.journal import Journal
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import JournalTests, ListTests, ReadTests, StorageTests, WriteTests
from tests.support import AsyncJournal, AsyncPlainStorage, PlainStorage


class TestMemory(JournalTests):
    page_size = math.inf

    def make(self) -> Journal:
        return MemoryStorage()


class TestAsyncJournal(JournalTests):
    page_size = math.inf

    async def make(self) -> Journal:
        return AsyncJournal()


class OnFile:
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


class TestSQLite(OnFile, JournalTests):
    pass


class TestSQLiteNormal(OnFile, WriteTests, ReadTests, ListTests):
    synchronous = "NORMAL"


class TestSQLiteInMemory(WriteTests, ReadTests, ListTests):
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
