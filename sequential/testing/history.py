"""Check that today's code still goes the way that an execution has gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import Diverged
from ..executor import FlowExecutor
from ..observe import Event
from ..storage import Record, Result
from ..stores.memory import MemoryStorage
from ..workflow import Workflow, check

_ID = "replay"


class _EndOfHistory(BaseException):
    """The workflow asks for a step that is not recorded; no code of a user's takes this for a tool's error."""


def replay(workflow: Workflow[Any], history: Iterable[dict[str, Any]], input: Any = None, *, version: int = 0) -> None:
    """Send a recorded history into a workflow, as the next deployment will, and fail if they do not fit.

    Export histories of executions in progress as JSON (``FlowExecutor.history``, and ``input`` and ``version`` of
    ``FlowExecutor.status``), and replay them in the tests of the code that is to be deployed.  No tool is called.

    Args:
        workflow: The workflow as it is today.
        history: What ``FlowExecutor.history`` has returned.
        input: What the execution was started with; left out, ``{}``.
        version: What ``version()`` is answered with: the executor's ``version=`` when the execution began.

    Raises:
        AssertionError: When the workflow asks for another tool than was recorded, for the same with another input,
            or ends too early; the text says at which step.
        TypeError: When `history` is not what ``FlowExecutor.history`` returns.
        Exception: What the workflow raises.
    """
    if isinstance(history, (dict, str)):
        raise TypeError(f"replay() takes the list that FlowExecutor.history returns, not {history!r:.80}")
    storage, unlike = MemoryStorage(), list[str]()
    data = storage.codec.dumps({} if input is None else input)
    record = Record(_ID, "0", check(workflow), data, version, token=1, lease=1.0)
    storage.claim(record, 0.0, True)
    for step, recorded in enumerate(history):
        result = Result(step, recorded["asked"], recorded["fingerprint"], storage.codec.dumps(recorded["result"]))
        record = record._replace(token=record.token + 1, step=step + 1)
        storage.commit(record, record.token - 1, result)

    def call(*_: Any) -> Any:
        raise _EndOfHistory

    def observe(event: Event) -> None:
        if event.kind == "input changed":
            unlike.append(f"step {event.step} ({event.detail})")

    flow = FlowExecutor(storage, call=call, workflows=[workflow], observe=observe)
    try:
        flow.resume_sync(_ID)
    except _EndOfHistory:
        pass
    except Diverged as error:
        raise AssertionError(
            f"step {error.step} of the history is {error.recorded!r}, but {record.workflow} now asks for "
            f"{error.asked!r}: executions like this one would be parked as diverged; branch on version()"
        ) from error
    assert not unlike, (
        f"{record.workflow} now asks with another input than was recorded, at {', '.join(unlike)}: the recorded result "
        f"would be used for it; branch on version(), or let the input depend on nothing but recorded results"
    )
