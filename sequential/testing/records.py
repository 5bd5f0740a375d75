"""What the suites for a Journal begin with: a record, and how to write and read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import Fenced
from ..storage import Maybe, Record, Result
from .conformance import StorageSuite

NOW = 1_700_000_000.0
TURNS = 40


class RecordSuite(StorageSuite):
    """A record to begin with, and how to read all of an execution's results."""

    def record(self, id: str = "one", **fields: Any) -> Record:
        """Return a record as the executor creates it, held until `NOW` plus a minute."""
        fixed = (id, f"run of {id}", "workflow", b'{"n":1}', 7, None)
        record = Record(*fixed, token=1, due=NOW, lease=NOW + 60.0)
        return record._replace(**fields)

    def create(self, id: str = "one", **fields: Any) -> Record:
        """Store a record and return it."""
        record = self.record(id, **fields)
        assert self.ask(self.storage.claim, record, NOW, True) == (record, True)
        return record

    def step(self, record: Record, data: bytes = b"null", **fields: Any) -> Record:
        """Commit the next result and return the record as it then stands."""
        result = Result(record.step, f"tool t.{record.step}", record.step + 5, data, NOW, NOW + 0.25)
        record = record._replace(token=record.token + 1, step=record.step + 1, **fields)
        self.ask(self.storage.commit, record, record.token - 1, result)
        return record

    def refused(self, method: Callable[..., Maybe[Any]], *arguments: Any) -> bool:
        """Whether the store answers with `Fenced`."""
        try:
            self.ask(method, *arguments)
        except Fenced:
            return True
        return False

    def all_results(self, record: Record, start: int = 0) -> list[Result]:
        """Read all results from `start` on, page by page."""
        found: list[Result] = []
        while start + len(found) < record.step:
            found += self.ask(self.storage.results, record, start + len(found), record.step)
        return found
