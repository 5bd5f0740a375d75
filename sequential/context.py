"""What the hooks may know about the step they are called for, and until when an invocation has time."""

from contextvars import ContextVar, Token
from time import time
from types import TracebackType
from typing import NamedTuple, Self

from .checks import NEVER, is_number


class Current(NamedTuple):
    """The call that a tool is being performed for, or the step that the resume hook rings for."""

    id: str
    run: str
    """Differs between an execution and a later one of the same id; always ``"0"`` on a storage of five methods."""
    step: int
    """How many answers the log had when this began; another at a retry, if calls beside it were answered meanwhile."""
    key: str
    """The idempotency key of a call: the same at every retry, and no other call's.  Of a ring, the execution's id and
    run: not for queues to tell duplicate rings by."""


executing: ContextVar[str] = ContextVar("sequential.executing", default="")
"""The execution whose workflow runs: the beginning of its idempotency keys, the same at every replay."""

being_called: ContextVar[Current] = ContextVar("sequential.current")
"""What is being called or rung for."""

ends_at: ContextVar[float] = ContextVar("sequential.ends_at", default=NEVER)
"""When an invocation must begin no further step, in seconds since the epoch."""

_MARGIN = (1.0, 10.0)
"""Seconds to leave for the last step at least, and at most: its tool call, its commit and the ring."""


def current() -> Current:
    """Return the step that the running hook is called for: its id, step and idempotency ``key``.

    Raises:
        LookupError: Outside of a ``call`` and a ``resume`` hook.
    """
    try:
        return being_called.get()
    except LookupError:
        raise LookupError(
            "sequential.current() has an answer only while a call or resume hook runs, in its own task or thread "
            "(asyncio.to_thread carries it over; a bare thread needs contextvars.copy_context().run)"
        ) from None


class run_until:  # noqa: N801 - it reads as a sentence: `with run_until(deadline): flow.resume_sync(id)`
    """Let invocations in a ``with`` block begin no further step when the platform is about to stop them.

    It ends what the executor's ``budget=`` would allow, and with a budget of 0 changes nothing.  With an
    `asyncio.Runner`, which has a context of its own, the block belongs inside of what it runs.

    Args:
        deadline: When the platform stops this function, in seconds since the epoch; ``math.inf``: never.
        margin: Seconds before that at which to pause; left out, a fifth of the time left, but at least 1 second and
            at most 10.

    Raises:
        ValueError: When one of them is not a number.
    """

    def __init__(self, deadline: float, margin: float | None = None) -> None:
        if not (is_number(deadline) and (margin is None or is_number(margin))):
            raise ValueError(
                f"a deadline is in seconds since the epoch, and margin= in seconds: got {deadline=} and {margin=}"
            )
        least, most = _MARGIN
        left = deadline - time()
        self._tokens: list[Token[float]] = []
        self._ends_at = deadline - (min(max(left / 5, least), most) if margin is None else margin)

    def __enter__(self) -> Self:
        self._tokens.append(ends_at.set(min(self._ends_at, ends_at.get())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ends_at.reset(self._tokens.pop())
