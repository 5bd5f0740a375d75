"""What tests of workflows and of storages need: crash points, conformance suites, a clock that stands still.

* `crash_points` kills a workflow at every place where a process can die, and checks that nothing is lost or
  doubled.
* `replay` sends a recorded history into today's code, and fails if they do not fit.
* `StorageTests` and `JournalTests` are what a storage must do; derive a test class, write ``make``, run pytest.
* `FakeClock` is time that moves only when told to.
* `JournalAround` is a Journal around another, to delay, count, refuse or interrupt its calls.
"""

import sys

if "pytest" in sys.modules:  # so that a failing test shows its values
    sys.modules["pytest"].register_assert_rewrite(
        *(f"sequential.testing.{name}" for name in ("conformance", "records", "journals", "signals"))
    )

from .around import JournalAround
from .conformance import StorageTests
from .crash import crash_points
from .fakes import FakeClock
from .history import replay
from .journals import (
    AheadTests,
    CapabilityTests,
    ClaimTests,
    CommitTests,
    ConcurrencyTests,
    DueTests,
    FindTests,
    JournalTests,
    RemoveTests,
    ResultsTests,
)
from .signals import SignalTests

__all__ = [
    "AheadTests",
    "CapabilityTests",
    "ClaimTests",
    "CommitTests",
    "ConcurrencyTests",
    "DueTests",
    "FakeClock",
    "FindTests",
    "JournalAround",
    "JournalTests",
    "RemoveTests",
    "ResultsTests",
    "SignalTests",
    "StorageTests",
    "crash_points",
    "replay",
]
