"""What is known about an execution, and everything that can happen to it.

Theory of operation
===================

An execution is one small `Record` and a log of `Entry` values.  A store keeps both, compares a stamp and writes;
what a write may do is decided here, by functions that read nothing but the stored record and the time.  Each takes
the record as it is in the store now and returns the one to put in its place, ``None`` if its wish is fulfilled or
cannot be, or raises.  `sequential.journal.Journal.update` calls it again whenever another write came first.

So no function may rely on what was read earlier.  It knows what is its own by marks that nobody else makes:

* **The holder.**  A claim writes a nonce, and only who finds it in the record moves the log.  It stays when the lease
  is given back, so that after a lost answer an invocation knows its own write; whoever finds another's is `Fenced`.
* **The run and the step.**  Only the holder raises the step, by one for each entry.  A holder that finds the step which
  it wanted to write has written it.
* **A signal's nonce**, in the record until the signal is taken and in the log from then on.

Everybody but the holder leaves a mark, a signal or a cancellation, in the record.  The holder's next write is refused
by the stamp that came with the mark, and so it finds the mark: what it writes is put on top of it.  An invocation may
not give the lease back while a mark concerns it, or nobody would be there to look at it.

States
------

::

    making -> running <-> sleeping, waiting -> finished
                 |                         `-> cancelling -> cancelled
                 `-> failed, diverged, stuck -> running

A *resting* execution (sleeping, waiting) goes on when its time or its signal comes, a *parked* one (failed, diverged,
stuck) when somebody takes it up, and one that *has ended* (finished, cancelled) never.  Whether somebody holds the
lease is not a status.  ``due`` is when the sweep must look at it, at the latest.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from os import urandom
from typing import Any, NamedTuple

from .codec import decode_json, encode_json
from .errors import AlreadyEnded, Damaged, Fenced, StorageError, UnknownExecution

FORMAT = 1
"""The format of `State`; a later one is refused."""

INPUT = -1
"""The place of the input.  Below it are the payloads of signals, each at a place drawn at random."""

LAST = 2**31 - 1
"""A place beyond every log."""

GRACE = 30.0
"""Seconds after a pause by which the callback should have come: above any cold start, below human patience."""

MAKING = 3600.0
"""Seconds after which what is still being made was left by a process that died."""

ATTEMPTS = 10
"""Rings of the sweep without progress after which an execution is parked: some four hours of backoff."""

LONGEST_WAIT = 3600.0
"""Seconds that the sweep waits at most before it rings the same execution again."""

CLOSED_NAMES = 100
"""Names of signals that are remembered as closed: a late duplicate comes soon, or never."""

RESTING = frozenset({"sleeping", "waiting"})
PARKED = frozenset({"failed", "diverged", "stuck"})
ENDED = frozenset({"finished", "cancelled"})
STATUSES = RESTING | PARKED | ENDED | {"making", "running", "cancelling"}
"""All that `Record.status` can be."""


class Record(NamedTuple):
    """All that is known about one execution, apart from its log.  Times are seconds since the epoch."""

    id: str
    run: str
    """A nonce: entries belong to a run, and those of another are never read again."""
    stamp: str
    """A nonce, fresh at every write: it tells this state of the record from every other."""
    step: int
    """How many answers the log has."""
    workflow: str
    """Its name."""
    status: str
    due: float | None
    """At or before the time when the sweep must look at it; ``None``: never."""
    changed: float
    """When an answer was last recorded, or the status changed."""
    state: str
    """A `State` as JSON, the core's business alone; the same text for most steps."""
    version: Any = None
    """A store's own handle of this state (an ETag), if it needs one."""


class Entry(NamedTuple):
    """One entry of a run: an answer of the log, the input, or the payload of a signal."""

    run: str
    """Which run it belongs to: the record's, or the one that is about to begin."""
    place: int
    """From 0 on: the log; `INPUT`; below: signals."""
    part: int
    """From 0 on: a value larger than the store's ``part_size`` is in several."""
    about: str
    """JSON, the core's business alone; replay compares its beginning."""
    data: bytes
    """What the codec made of a value."""


class Signal(NamedTuple):
    """A signal that was kept and not yet taken."""

    name: str
    place: int
    """Where its payload is."""
    nonce: str


class State(NamedTuple):
    """What the core alone knows about an execution; only what differs from here is stored."""

    holder: str = ""
    """The nonce of the invocation that holds it, or held it last."""
    owner: str = ""
    """Its process, as `sequential.owner.describe_process` tells it."""
    lease: float = 0.0
    """When the holder's lease ends; 0: nobody holds it."""
    over: float = 0.0
    """When the lease counts as over for everybody else: later by half of it, for clocks differ."""
    errors: str = "value"
    """The executor's ``errors=`` when it began."""
    version: int = 0
    """The executor's ``version=`` when this run began."""
    started: float = 0.0
    """When this run began."""
    input: int | None = None
    """The fingerprint of the input that it was started with."""
    attempts: int = 0
    """How often the sweep has rung without progress."""
    error: str = ""
    waits: tuple[str, ...] = ()
    """The signals that it waits for, each once."""
    once: tuple[str, ...] = ()
    """The ``once`` calls that were begun, as ``branch.request``."""
    cancel: str = ""
    """A cancellation: ``"asked"`` until the holder has turned it into an entry, then ``"done"``."""
    signals: tuple[Signal, ...] = ()
    """What was sent and not yet taken, in the order in which it came."""
    closed: tuple[str, ...] = ()
    """Names whose wait has ended."""


class Hold(NamedTuple):
    """Who takes a lease, of which run, and for how long."""

    id: str
    run: str
    holder: str
    owner: str
    seconds: float

    def until(self, now: float) -> dict[str, Any]:
        """Return the fields of a `State` that say how long it is held."""
        return {"lease": now + self.seconds, "over": now + 1.5 * self.seconds}


class Answers(NamedTuple):
    """What the holder appends to the log."""

    step: int
    """How many answers the log has with these."""
    waits: Collection[str] = ()
    """The signals that are still waited for."""
    ended: Collection[str] = ()
    """The names of waits that end by this."""
    once: str = ""
    """The mark of a ``once`` call that is answered by this."""
    signal: str = ""
    """The nonce of a signal that is taken by this."""
    is_cancel: bool = False
    """Whether this is the cancellation that was asked for."""
    is_timeout: bool = False
    """Whether this is a timeout, which is no answer when its signal is there."""


IsDead = Callable[[str], bool]
"""Tells of a process, as `State.owner` has it, whether it is known to have ended."""

Since = Sequence[Entry] | None
"""After a lost answer, the entries that the log has got since; otherwise ``None``."""

Changed = tuple[Record | None, Sequence[Entry]] | None
"""What to write: the record (``None``: remove it) and entries; ``None``: nothing."""


def nonce() -> str:
    """Return what nobody else has drawn or will draw."""
    return urandom(8).hex()


def random_place() -> int:
    """Return a place for the payload of a signal, which fits into 32 bits."""
    return INPUT - 1 - (int.from_bytes(urandom(4), "big") >> 2)


def free_place(record: Record | None) -> int:
    """Return a place where no payload is that was kept and not yet taken."""
    taken = {signal.place for signal in state_of(record).signals} if record else ()
    while (place := random_place()) in taken:
        pass
    return place


def fresh_id() -> str:
    """Return a fresh execution id."""
    from nanoid import generate  # noqa: PLC0415 - needed only by those who bring no id of their own

    return str(generate(size=21))


def state_of(record: Record) -> State:
    """Return a record's state.

    Raises:
        Damaged: When it cannot be read.
        StorageError: When a later release has written it.
    """
    try:
        return _read_state(record.state)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged(record.id, None) from error


def state_text(state: State) -> str:
    """Return a state as it is stored."""
    told = {name: value for name, value in state._asdict().items() if value != State._field_defaults[name]}
    return encode_json({"format": FORMAT, **told})


@lru_cache(maxsize=512)
def _read_state(text: str) -> State:
    told = decode_json(text)
    format = told.pop("format")
    if format > FORMAT:
        raise StorageError(f"the store has records of format {format}, this release knows {FORMAT}: upgrade it")
    for name in ("waits", "once", "closed"):
        told[name] = tuple(map(str, told.get(name, ())))
    told["signals"] = tuple(Signal(str(name), int(place), str(mark)) for name, place, mark in told.get("signals", ()))
    for name in ("lease", "over", "started"):
        told[name] = float(told.get(name, 0.0))
    for name in ("holder", "owner", "errors", "error", "cancel", "version", "attempts"):
        if not isinstance(told.get(name, default := State._field_defaults[name]), type(default)):
            raise TypeError(name)
    return State(**{name: told[name] for name in State._fields if name in told})


def is_held(record: Record, now: float, is_dead: IsDead) -> bool:
    """Whether an invocation holds an execution, and is not known to be dead."""
    state = state_of(record)
    return state.lease > 0 and now < state.over and not is_dead(state.owner)


def is_new(record: Record | None, new: Record, patience: float) -> bool:
    """Whether an execution is still to be created: there is none, or but parts that this or a dead process has made."""
    if record is None:
        return True
    return record.status == "making" and (record.run == new.run or record.changed + 1.5 * patience <= new.changed)


def is_holder(record: Record, hold: Hold) -> bool:
    """Whether `hold` has the lease."""
    state = state_of(record)
    return record.run == hold.run and state.holder == hold.holder and state.lease > 0


def is_given_back(record: Record | None, since: Since, hold: Hold) -> bool:
    """Whether the lease was given back, though the answer to that was lost; another may have it by now."""
    if record is None or record.run != hold.run:
        return since is not None
    state = state_of(record)
    return not state.lease if state.holder == hold.holder else since is not None


def is_past(record: Record, run: str | None, step: int) -> bool:
    """Whether a callback for this run and step has been left behind; without a run it never is."""
    return run is not None and (run != record.run or step < record.step)


def claimed(
    record: Record, hold: Hold, now: float, is_dead: IsDead, run: str | None, step: int, take_parked: bool
) -> Record | None:
    """Take the lease, unless it is held, has ended, is parked and is to stay so, or the callback came too late."""
    state, is_parked = state_of(record), record.status in PARKED
    is_closed = record.status in ENDED or record.status == "making" or (is_parked and not take_parked)
    if is_closed or is_past(record, run, step) or is_holder(record, hold) or is_held(record, now, is_dead):
        return None
    if is_parked:
        record, state = _unparked(record, state, now)
    until = hold.until(now)
    due = until["over"] if record.due is None else min(record.due, until["over"])
    return _with(record._replace(due=due), state, holder=hold.holder, owner=hold.owner, **until)


def answered(record: Record | None, since: Since, hold: Hold, now: float, answers: Answers) -> Record | None:
    """Append answers to the log."""
    record, state = _ours(record, hold)
    if record.step == answers.step:
        return None  # it was written, though the answer to that was lost
    if answers.is_timeout and _concerns(state, (*answers.waits, *answers.ended)):
        return None
    changes: dict[str, Any] = {}
    if state.attempts or state.error:
        changes.update(attempts=0, error="")
    if answers.ended or answers.waits or state.waits:
        changes.update(_names(state, answers.waits, answers.ended))
    if answers.once:
        changes["once"] = tuple(mark for mark in state.once if mark != answers.once)
    if answers.signal:
        changes["signals"] = tuple(kept for kept in state.signals if kept.nonce != answers.signal)
    if answers.is_cancel:
        changes["cancel"] = "done"
    if state.lease - now < hold.seconds * 2 / 3:
        changes.update(hold.until(now))
    record = record._replace(step=answers.step, status="cancelling" if state.cancel else "running", changed=now)
    return _with(record, state, **changes) if changes else record


def marked(
    record: Record | None, since: Since, hold: Hold, now: float, once: Iterable[str], waits: Collection[str]
) -> Record | None:
    """Note what is about to be begun: ``once`` calls, and the names of pending waits, which are open from now on."""
    record, state = _ours(record, hold)
    changes = {**_names(state, waits, ()), "once": tuple(dict.fromkeys((*state.once, *once)))}
    return _with(record, state, **changes) if state._replace(**changes) != state else None


def unmarked(record: Record | None, since: Since, hold: Hold, now: float, once: Collection[str]) -> Record | None:
    """Take back that ``once`` calls were begun."""
    record, state = _ours(record, hold)
    # In any case: what an invocation knows may be older than the write that was interrupted.
    return _with(record, state, once=tuple(mark for mark in state.once if mark not in once))


def renewed(record: Record | None, since: Since, hold: Hold, now: float) -> Record | None:
    """Prolong the lease."""
    record, state = _ours(record, hold)
    return _with(record, state, **hold.until(now))


def paused(
    record: Record | None,
    since: Since,
    hold: Hold,
    now: float,
    status: str,
    due: float | None,
    waits: Collection[str],
    answers: Answers | None,
) -> Record | None:
    """Append the last answers and give the lease back, unless a mark is to be looked at: then do only the former.

    Args:
        record: As it is stored now.
        since: After a lost answer, the entries since then.
        hold: Who has it.
        now: The time.
        status: What it is from now on, apart from a cancellation.
        due: When the sweep must look at it.
        waits: The signals that it waits for.
        answers: What is appended to the log by this.
    """
    if is_given_back(record, since, hold):
        return None
    new = answered(record, since, hold, now, answers) if answers else None
    record, state = _ours(new or record, hold)
    if _concerns(state, waits):
        return new
    attempts = 0 if status in RESTING else state.attempts
    status = "cancelling" if state.cancel else status
    record = record._replace(status=status, due=due, changed=record.changed if record.status == status else now)
    return _with(record, state, lease=0.0, over=0.0, attempts=attempts, error="", **_names(state, waits, ()))


def parked(
    record: Record | None,
    since: Since,
    hold: Hold,
    now: float,
    status: str,
    error: str,
    answers: Answers | None = None,
    due: float | None = None,
) -> Record | None:
    """Keep an execution as it stands, out of the sweep's way, until somebody takes it up; a cancellation ends it.

    Args:
        record: As it is stored now.
        since: After a lost answer, the entries since then.
        hold: Who has it.
        now: The time.
        status: Why it is parked.
        error: What people are told.
        answers: What is appended to the log by this.
        due: When the sweep is to remove it, if it has ended by this.
    """
    if is_given_back(record, since, hold):
        return None
    new = answered(record, since, hold, now, answers) if answers else None
    record, state = _ours(new or record, hold)
    status, due = ("cancelled", due) if state.cancel == "asked" else (status, None)
    return _with(record._replace(status=status, due=due, changed=now), state._replace(**_REST), error=error)


def released(record: Record | None, since: Since, hold: Hold, now: float, error: str | None) -> Record | None:
    """Give the lease back without progress; who has left a mark has left the ringing to the holder: look again now."""
    if is_given_back(record, since, hold):
        return None
    record, state = _ours(record, hold)
    due = now if _concerns(state, state.waits) else record.due
    error = state.error if error is None else error
    return _with(record._replace(due=due), state, lease=0.0, over=0.0, error=error)


def begun_anew(
    record: Record | None, since: Since, hold: Hold, now: float, run: str, copied: Collection[Signal], version: int
) -> Record | None:
    """Begin another run in place of one; signals are kept, if their payloads were `copied` to it."""
    if record is not None and record.run == run:
        return None
    record, state = _ours(record, hold)
    if set(state.signals) != set(copied):
        return None
    cancel = "" if state.cancel == "done" else state.cancel
    fresh = State(state.holder, state.owner, errors=state.errors, version=version, started=now, input=state.input)
    fresh = fresh._replace(cancel=cancel, signals=state.signals, closed=state.closed, **hold.until(now))
    status = "cancelling" if cancel else "running"
    return record._replace(run=run, step=0, status=status, due=now + GRACE, changed=now, state=state_text(fresh))


def finished(
    record: Record | None, since: Since, hold: Hold, now: float, status: str, due: float | None, error: str
) -> Record | None:
    """End an execution whose record stays; after a lost answer, gone counts as done."""
    if record is not None and record.status == status and state_of(record).holder == hold.holder:
        return None
    if not is_to_be_removed(record, since, hold):
        return None
    record, state = _ours(record, hold)
    state = state._replace(**_REST, signals=(), closed=())
    return _with(record._replace(status=status, due=due, changed=now), state, error=error)


def is_to_be_removed(record: Record | None, since: Since, hold: Hold) -> bool:
    """Whether a finished execution is still there; after a lost answer, gone counts as done.

    Raises:
        Fenced: When another has it.
    """
    if since is not None and (record is None or record.run != hold.run):
        return False
    _ours(record, hold)
    return True


def signalled(
    record: Record | None, since: Since, known: Record, signal: Signal, now: float, queue: bool
) -> tuple[bool, Record | None]:
    """Keep a signal for the holder, unless its name is closed or taken already; a queue takes several.

    Args:
        record: As it is stored now.
        since: After a lost answer, the entries that the log has got since then.
        known: The record as the sender knew it.
        signal: What was sent.
        now: The time.
        queue: Whether it is one of several.

    Returns:
        Whether the signal is kept, and the record to write, if that is still to be done.

    Raises:
        AlreadyEnded: When nothing more can happen to the execution.
        StorageError: When after a lost answer nobody can tell whether it was kept.
        UnknownExecution: When there is none.
    """
    if since is not None and (record is None or record.run != known.run):
        raise StorageError(
            f"nobody can tell whether signal {signal.name!r} of execution {known.id!r} was kept: the answer of the "
            f"store was lost, and the execution has ended or begun anew since; send it again if it must not be lost"
        )
    record = _known(record, known.id)
    state = state_of(record)
    is_kept = any(kept.nonce == signal.nonce for kept in state.signals)
    if is_kept or any(f'"signal":"{signal.nonce}"' in entry.about for entry in since or ()):
        return True, None
    if record.status in ENDED:
        raise AlreadyEnded(record.id, record.status)
    if not queue and (signal.name in state.closed or any(kept.name == signal.name for kept in state.signals)):
        return False, None
    due = now if not state.lease and signal.name in state.waits else record.due
    return True, _with(record._replace(due=due), state, signals=(*state.signals, signal))


def cancelled(record: Record | None, id: str, now: float, force: bool, due: float | None) -> Record | None:
    """Ask the holder, or whoever comes next, to end an execution; what is parked ends at once.

    Args:
        record: As it is stored now.
        id: The execution's id.
        now: The time.
        force: Whether to end it at once, and fence whoever holds it.
        due: When the sweep is to remove what has ended, if ever.

    Raises:
        AlreadyEnded: When it is finished.
        UnknownExecution: When there is none.
    """
    record = _known(record, id)
    state = state_of(record)
    if record.status == "finished":
        raise AlreadyEnded(id, record.status)
    if record.status == "cancelled":
        return None
    if force or record.status in PARKED:
        state = state._replace(**_REST, holder="", signals=(), closed=())
        return _with(record._replace(status="cancelled", due=due, changed=now), state)
    if state.cancel:
        return None
    record = record._replace(status="cancelling", changed=now, due=record.due if state.lease else now)
    return _with(record, state, cancel="asked")


def rung(record: Record | None, id: str, now: float, is_dead: IsDead) -> Record | None:
    """Make an execution due, and take it up if it is parked; one that is held, or has ended, stays as it is.

    Raises:
        UnknownExecution: When there is none.
    """
    record = _known(record, id)
    if record.status in ENDED or is_held(record, now, is_dead):
        return None
    state = state_of(record)
    if record.status in PARKED:
        record, state = _unparked(record, state, now)
    return _with(record._replace(due=now), state)


def swept(record: Record, now: float, is_dead: IsDead, jitter: Callable[[int], float]) -> Record:
    """Move on when the sweep must look at an execution again, and count the ring that comes next as an attempt.

    One that is held is not rung, only looked at again when its lease is over; what has made no progress for too long
    is parked as ``stuck``.

    Args:
        record: As it is stored, and due.
        now: The time.
        is_dead: Tells of a process whether it is known to have ended.
        jitter: Given the number of the attempt, returns a factor about 1.
    """
    state = state_of(record)
    if is_held(record, now, is_dead):
        return record._replace(due=state.over)
    if state.attempts >= ATTEMPTS:
        last = f", the last error being {state.error}" if state.error else ""
        reason = f"no progress in {ATTEMPTS} attempts of the sweep{last}: mend what is wrong, then ring it"
        state = state._replace(**_REST, holder="")
        return _with(record._replace(status="stuck", due=None, changed=now), state, error=reason)
    wait = min(GRACE * 2**state.attempts, LONGEST_WAIT) * jitter(state.attempts)
    return _with(record._replace(due=now + wait), state, attempts=state.attempts + 1)


def not_rung(record: Record, attempts: int) -> Record:
    """Take an attempt back: that nobody could be rung is not the execution's fault, and must not park it."""
    return _with(record, state_of(record), attempts=attempts)


_REST: dict[str, Any] = {"lease": 0.0, "over": 0.0, "attempts": 0, "error": "", "waits": ()}
"""What no longer holds of an execution that is parked, or has ended."""


def _known(record: Record | None, id: str) -> Record:
    if record is None or record.status == "making":
        raise UnknownExecution(id)
    return record


def _ours(record: Record | None, hold: Hold) -> tuple[Record, State]:
    """Return a record and its state if it is still held by who wants to change it.

    Raises:
        Fenced: When it is not.
    """
    if record is None or not is_holder(record, hold):
        raise Fenced(hold.id)
    return record, state_of(record)


def _concerns(state: State, waits: Collection[str]) -> bool:
    """Whether somebody has left a mark that the holder must look at: a cancellation, or a signal that is waited for."""
    return state.cancel == "asked" or any(signal.name in waits for signal in state.signals)


def _unparked(record: Record, state: State, now: float) -> tuple[Record, State]:
    status = "cancelling" if state.cancel else "running"
    return record._replace(status=status, due=now, changed=now), state._replace(attempts=0, error="")


def _names(state: State, waits: Collection[str], ended: Collection[str]) -> dict[str, Any]:
    """Return which names are waited for, and which are closed: their wait has ended, and no other waits for them."""
    left = (name for name in state.closed if name not in ended)
    closed = dict.fromkeys(name for name in (*left, *ended) if name not in waits)
    return {"waits": tuple(dict.fromkeys(waits)), "closed": tuple(closed)[-CLOSED_NAMES:]}


def _with(record: Record, state: State, **changes: Any) -> Record:
    return record._replace(state=state_text(state._replace(**changes)))
