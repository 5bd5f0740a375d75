"""What an executor was given, and how it tells that a workflow has not ended, or how an execution stands."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from . import hooks
from .blocking import settle
from .codec import as_bytes
from .context import Current, being_called
from .errors import NotEncodable, message_of
from .five import FiveMethods
from .journal import Journal
from .observe import Observer
from .owner import is_dead
from .record import Record, is_held, state_of
from .workflow import Workflow

Reason = Literal["tool", "save", "sleep", "wait", "budget", "busy", "parked"]


class Paused(dict[str, Any]):
    """What ``execute`` and ``resume`` return when the workflow has not ended: ``{"paused": id, "step": n}``.

    Args:
        id: The execution's id.
        step: The index of the last step recorded; -1 before the first.
        reason: Why it paused: ``"tool"``, ``"save"``, ``"sleep"``, ``"wait"``, ``"budget"``; ``"busy"`` when another
            invocation holds the lease, and ``"parked"`` when somebody must mend it first: then nothing was run.
    """

    __slots__ = ("reason",)
    reason: Reason

    def __init__(self, id: str, step: int, reason: Reason) -> None:
        super().__init__(paused=id, step=step)
        self.reason = reason

    def __repr__(self) -> str:
        return f"Paused({super().__repr__()}, reason={self.reason!r})"


class Status(NamedTuple):
    """How an execution stands.  Times are seconds since the epoch.

    Its ``status`` is ``running``, ``sleeping``, ``waiting``; ``cancelling`` from a cancellation to its end; ``failed``,
    ``diverged`` or ``stuck`` when it is parked until somebody takes it up; ``finished`` (with ``retain=``) or
    ``cancelled``; or ``making`` while `FlowExecutor.fork`, or the start with a large input, is under way.
    """

    id: str
    status: str
    step: int
    """How many steps are recorded."""
    busy: bool
    """Whether an invocation holds the lease at this moment."""
    workflow: str
    due: float | None
    """When the sweep will look at it; ``None``: never."""
    attempts: int
    """How often the sweep has rung since the last recorded step."""
    error: str | None
    waits: tuple[str, ...]
    """The signals that it waits for."""
    version: int | None
    """The executor's ``version=`` when it began."""
    input: Any
    """What it was started with, or what ``again`` has given it since; not in a list of several."""
    value: Any
    """The final value when finished; likewise."""


class Setup(NamedTuple):
    """What an executor was given: what its parts, and the adapters of this package, ask for; not for users."""

    journal: Journal
    call: hooks.Call | None
    resume: hooks.Resume | None
    workflows: dict[str, Workflow[Any]]
    budget: float
    lease: float
    retain: bool | float
    version: int
    errors: str
    strict: bool
    observer: Observer
    clock: Callable[[], float]
    fingerprint: Callable[[Any], int | None]
    """Tells one input of a tool from another."""
    is_five: bool
    """Whether the storage has but five methods."""

    def needs_journal(self, what: str) -> None:
        """Refuse what five methods would silently not do.

        Raises:
            NotSupported: On a storage of five methods.
        """
        if isinstance(self.journal, FiveMethods):
            self.journal.refuse(what)

    def encode(self, value: Any, whose: str) -> bytes:
        """Return `value` as bytes; `whose` it is, is said when the codec refuses it."""
        try:
            return as_bytes(self.journal.codec, self.journal.codec.dumps(value))
        except Exception as error:
            raise NotEncodable(whose, message_of(error)) from error

    def kept_until(self, now: float) -> float | None:
        """Return when the sweep is to remove what has ended now, if ever."""
        return None if isinstance(self.retain, bool) else now + self.retain

    @property
    def ringing(self) -> hooks.Resume | None:
        """The hook that rings."""
        return hooks.find_resume() if self.resume is None else self.resume

    async def ring(self, record: Record) -> bool:
        """Ring for the next invocation, and return whether that went well; if not, the sweep rings again."""
        ring = self.ringing
        if ring is None:
            return True
        token = being_called.set(Current(record.id, record.run, record.step, f"{record.id}:{record.run}"))
        try:
            rang = await settle(ring(record.id))
        except Exception as error:
            self.observer.tell("ring failed", record, "the sweep will ring again", error)
            return False
        finally:
            being_called.reset(token)
        self.observer.tell("not rung" if rang is False else "rang", record)
        return True

    def status(self, record: Record) -> Status:
        """Return how an execution stands, apart from its input and its value."""
        state = state_of(record)
        busy = is_held(record, self.clock(), is_dead)
        standing = (record.id, record.status, record.step, busy, record.workflow, record.due, state.attempts)
        version = None if self.is_five else state.version
        return Status(*standing, state.error or None, state.waits, version, None, None)
