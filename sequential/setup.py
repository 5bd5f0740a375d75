"""What an executor was given, and how it tells that a workflow has not ended, or how an execution stands."""

from collections.abc import Callable
from time import time
from typing import Any, NamedTuple

from . import hooks
from .codec import as_bytes
from .context import being_called
from .errors import NotEncodable, message_of
from .observe import Observer
from .storage import Journal, Record, settle

GRACE = 30.0
"""Seconds after a pause by which the callback should have come: above any cold start, below human patience."""


class Setup:
    """What an executor was given."""

    # A NamedTuple would be read in five times the time, and a step reads ten of these.
    __slots__ = ("budget", "call", "clock", "journal", "lease", "observer", "resume", "retain", "version")

    def __init__(
        self,
        *,
        journal: Journal,
        call: hooks.Call | None,
        resume: hooks.Resume | None,
        budget: float,
        lease: float,
        retain: bool,
        version: int,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self.journal, self.call, self.resume = journal, call, resume
        # Of a subclass of float or int (numpy's, an Enum's) a store might write what nobody can read again.
        self.budget, self.lease, self.retain = float(budget), float(lease), retain
        self.version, self.observer = int(version), observer
        self.clock = clock if clock is time else lambda: float(clock())

    def encode(self, value: Any, whose: str) -> bytes:
        """Return `value` as bytes; `whose` it is, is said when the codec refuses it."""
        try:
            return as_bytes(self.journal.codec, self.journal.codec.dumps(value))
        except Exception as error:
            raise NotEncodable(whose, message_of(error)) from error

    async def ring(self, record: Record) -> bool:
        """Ring for the next invocation, and return whether that went well; if not, the sweep rings again."""
        ring = hooks.find_resume() if self.resume is None else self.resume
        if ring is None:
            return True
        token = being_called.set(record)
        try:
            rang = await settle(ring(record.id))
        except Exception as error:
            self.observer.tell("ring failed", record, "the sweep will ring again", error)
            return False
        finally:
            being_called.reset(token)
        self.observer.tell("not rung" if rang is False else "rang", record)
        return True


class Paused(dict[str, Any]):
    """What ``execute`` and ``resume`` return when the workflow has not ended: ``{"paused": id, "step": n}``.

    Args:
        id: The execution's id.
        step: The index of the last step performed; -1 before the first.
        reason: Why it paused: ``"tool"``, ``"save"``, ``"sleep"``, ``"wait"``, ``"budget"``, or ``"busy"`` when
            another invocation holds the lease and nothing was run.
    """

    __slots__ = ("reason",)

    def __init__(self, id: str, step: int, reason: str) -> None:
        super().__init__(paused=id, step=step)
        self.reason = reason


class Status(NamedTuple):
    """How an execution stands.  Times are seconds since the epoch.

    Its ``status`` is ``running``, ``sleeping``, ``waiting``; ``failed``, ``diverged`` or ``stuck`` when it is parked
    until it is resumed; ``finished`` (with ``retain=True``) or ``cancelled``; or ``forking`` while
    `FlowExecutor.fork` copies.
    """

    id: str
    status: str
    step: int
    """How many steps are recorded."""
    busy: bool
    """Whether an invocation holds the lease at this moment."""
    workflow: str
    due: float | None
    """When the sweep will ring; ``None``: never."""
    attempts: int
    """How often the sweep has rung since the last recorded step."""
    error: str | None
    waits: str | None
    """The signal that it waits for."""
    version: int | None
    """The executor's ``version=`` when it began."""
    input: Any
    """What it was started with, or what ``again`` has given it since; ``None`` on a storage of five methods."""
    value: Any
    """The final value when finished; not in a list of several."""
