"""What tests of workflows and of storages need: crash points, conformance suites, a clock that stands still.

* `crash_points` kills a workflow at every place where a process can die, and checks that nothing is lost or
  doubled.
* `explore` tries every order in which the processes around an execution can take turns, and every place to fail.
* `run` takes a workflow to its value: time passes and signals come as it needs them.
* `replay` sends a recorded history into today's code, and fails if they do not fit.
* `StorageTests` and `JournalTests` are what a storage must do; derive a test class, write ``make``, run pytest.
  `WriteTests`, `ReadTests` and `ListTests` are parts of the latter, for a store that is not finished yet.
* `FakeClock` is time that moves only when told to.
* `JournalAround` is a Journal around another, to delay, count, refuse or interrupt its calls.
"""

import sys

if "pytest" in sys.modules:  # so that a failing test shows its values
    sys.modules["pytest"].register_assert_rewrite(
        *(f"sequential.testing.{name}" for name in ("conformance", "journals"))
    )

from .around import JournalAround
from .conformance import StorageTests
from .crash import crash_points
from .drive import run
from .explore import explore
from .fakes import FakeClock
from .history import replay
from .journals import JournalTests, ListTests, ReadTests, WriteTests

__all__ = [
    "FakeClock",
    "JournalAround",
    "JournalTests",
    "ListTests",
    "ReadTests",
    "StorageTests",
    "WriteTests",
    "crash_points",
    "explore",
    "replay",
    "run",
]
