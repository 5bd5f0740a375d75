"""What a tool may know about the step it is called for."""

from contextvars import ContextVar
from typing import NamedTuple

from .storage import Record


class Current(NamedTuple):
    """The step that a tool is being called for."""

    id: str
    run: str
    """Differs between an execution and a later one of the same id; always ``"0"`` on a storage of five methods."""
    step: int

    @property
    def key(self) -> str:
        """The idempotency key: the same at every retry of this step, and no other step's."""
        return f"{self.id}:{self.run}:{self.step}"


executing: ContextVar[str] = ContextVar("sequential.executing", default="")
"""The execution whose workflow runs: the beginning of its idempotency keys, the same at every replay."""

being_called: ContextVar[Record] = ContextVar("sequential.current")
"""The record of the execution whose next step is being called for."""


def current() -> Current:
    """Return the step that the running tool is called for: its id, step and idempotency ``key``.

    Raises:
        LookupError: Outside of a ``call`` hook.
    """
    try:
        record = being_called.get()
    except LookupError:
        raise LookupError(
            "sequential.current() has an answer only while a call hook runs, in its own task or thread "
            "(asyncio.to_thread carries it over; a bare thread needs contextvars.copy_context().run)"
        ) from None
    return Current(record.id, record.run, record.step)
