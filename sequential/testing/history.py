"""Check that today's code still goes the way that an execution has gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ..checks import FAR
from ..codec import Codec, encode_json
from ..errors import Diverged
from ..executor import FlowExecutor
from ..record import INPUT, Entry, Record, State, state_text
from ..stores.memory import MemoryStorage
from ..workflow import Workflow, check
from .drive import no_ring
from .fakes import FakeClock

_ID, _RUN = "replay", "0"

_NEVER = 2 * FAR
"""When all was answered, as replayed: every timer that begins then is still to end now."""


class _EndOfHistory(BaseException):
    """The workflow asks for a call that is not recorded; no code of a user's takes this for a tool's error."""


def replay(
    workflow: Workflow[Any],
    history: Iterable[dict[str, Any]],
    input: Any = None,
    *,
    version: int = 0,
    errors: Literal["value", "raise"] = "value",
    codec: Codec | None = None,
) -> None:
    """Send a recorded history into a workflow, as the next deployment will, and fail if they do not fit.

    Export histories of executions in progress as JSON (``FlowExecutor.history``, and ``input`` and ``version`` of
    ``FlowExecutor.status``), and replay them in the tests of the code that is to be deployed.  No tool is called.

    Args:
        workflow: The workflow as it is today.
        history: What ``FlowExecutor.history`` has returned; a storage of five methods does not record enough for it.
        input: What the execution was started with; left out, ``{}``.
        version: What ``version()`` is answered with: the executor's ``version=`` when the execution began.
        errors: The executor's ``errors=`` when it began.
        codec: The store's, if it was given one.

    Raises:
        AssertionError: When the workflow asks for another tool than was recorded, for the same with another input,
            or ends too early; the text says at which step.
        TypeError: When `history` is not what ``FlowExecutor.history`` returns.
        Exception: What the workflow raises.
    """
    if isinstance(history, (dict, str)):
        raise TypeError(f"replay() takes the list that FlowExecutor.history returns, not {history!r:.80}")
    storage, name = MemoryStorage(codec=codec), check(workflow)
    log = [Entry(_RUN, INPUT, 0, "{}", storage.codec.dumps({} if input is None else input))]
    for place, step in enumerate(history):
        about = {key: step[key] for key in ("branch", "asked", "fingerprint", "error", "signal") if _tells(step, key)}
        about["ended"] = _NEVER
        log.append(Entry(_RUN, place, 0, encode_json(about), storage.codec.dumps(step["result"])))
    state = state_text(State(errors=errors, version=version, started=_NEVER))
    storage.write(None, Record(_ID, _RUN, "", len(log) - 1, name, "running", None, 0.0, state), log)

    def call(*_: Any) -> Any:
        raise _EndOfHistory

    flow = FlowExecutor(storage, call=call, resume=no_ring, workflows=[workflow], clock=FakeClock())
    try:
        flow.resume_sync(_ID)
    except _EndOfHistory:
        pass
    except Diverged as error:
        raise AssertionError(
            f"step {error.step} of the history is {error.recorded!r}, but {name} now asks for {error.asked!r}: "
            f"executions like this one would be parked as diverged; branch on version(), or let the input depend on "
            f"nothing but recorded results"
        ) from error


def _tells(step: dict[str, Any], key: str) -> bool:
    """Whether an entry told this, even if it was nothing: a fingerprint, of a tool."""
    return bool(step.get(key)) or (key == "fingerprint" and step["asked"].startswith("tool "))
