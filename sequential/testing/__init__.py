"""What tests of workflows and of storages need: crash points, conformance suites, a clock that stands still.

* `crash_points` kills a workflow at every place where a process can die, and checks that nothing is lost or
  doubled.
* `StorageTests` and `JournalTests` are what a storage must do; derive a test class, write ``make``, run pytest.
* `FakeClock` is time that moves only when told to.
"""

import sys

if "pytest" in sys.modules:  # so that a failing test shows its values
    sys.modules["pytest"].register_assert_rewrite("sequential.testing.conformance", "sequential.testing.journals")

from .conformance import StorageTests
from .crash import crash_points
from .fakes import FakeClock
from .journals import (
    ClaimTests,
    CommitTests,
    ConcurrencyTests,
    DueTests,
    JournalTests,
    RemoveTests,
    ResultsTests,
)

__all__ = [
    "ClaimTests",
    "CommitTests",
    "ConcurrencyTests",
    "DueTests",
    "FakeClock",
    "JournalTests",
    "RemoveTests",
    "ResultsTests",
    "StorageTests",
    "crash_points",
]
