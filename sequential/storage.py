"""What a store has to offer: five methods from the user, or a Journal, which can promise more.

A `Storage` is what a user writes: five methods, plain or ``async``, nothing to inherit.  A `Journal` is what
the built-in stores are: a compare-and-swap store of one record per execution plus its results, which knows
nothing of workflows.  The executor speaks only `Journal`; `journal_for` wraps a plain storage once.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from os import urandom
from time import time
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, TypeVar, cast

from .codec import Codec, JSONCodec, as_bytes
from .errors import Fenced, InvalidId, NotEncodable, NotSupported

T = TypeVar("T")
R = TypeVar("R")

Maybe: TypeAlias = T | Awaitable[T]
"""What a method returns that may be plain or ``async``."""

PARKED = frozenset({"failed", "diverged", "stuck"})
"""Statuses that keep their results and wait for ``resume``; the sweep leaves them alone."""

CLOSED = frozenset({"finished", "cancelled", "forking"})
"""Statuses that no invocation takes up: what has ended, or is a copy not yet complete."""

STATUSES = PARKED | CLOSED | {"running", "sleeping", "waiting"}
"""All that `Record.status` can be."""


_LONGEST = 200
_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@~-")


class Record(NamedTuple):
    """All that is known about one execution, apart from its results.  Times are seconds since the epoch."""

    id: str
    run: str
    """A nonce, so that a reused id never sees an earlier run's results."""
    workflow: str = ""
    input: bytes = b""
    version: int | None = None
    first_input: int | None = None
    """The fingerprint of the input that it was started with, if ``again`` has given it another since."""
    # What is above stays the same within a run; what is below, a commit may change.
    token: int = 0
    """The fencing token: every claim and every commit raises it, a writer with an older one is refused."""
    step: int = 0
    """How many results are recorded, and so the index of the next step."""
    status: str = "running"
    due: float | None = None
    """When the sweep should ring if nobody holds the lease; ``None``: never."""
    lease: float = 0.0
    """When the lease of the invocation that runs this execution ends; ``0.0``: nobody runs it."""
    attempts: int = 0
    """How often the sweep has rung since the last recorded result."""
    error: str | None = None
    wake: float | None = None
    """When its sleep ends, or its wait times out."""
    waits: str | None = None
    """The signal that it waits for."""
    changed: float = 0.0
    """When a step was last recorded, or the status changed; a lease, a ring and a signal leave it as it is."""

    @property
    def rings_at(self) -> float | None:
        """When the sweep should ring: at the end of a lease that nobody gave back, or when it is due."""
        return self.lease or self.due


class Result(NamedTuple):
    """What one step left behind."""

    step: int
    asked: str = ""
    """What the workflow asked for (``"tool api.user"``, ``"save"``, ``"return"``); empty: not recorded."""
    fingerprint: int | None = None
    """A checksum of the tool's input; ``None``: not recorded."""
    data: bytes = b""
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    """The type's name when the tool raised."""


as_record: Callable[[tuple[Any, ...]], Record] = partial(tuple.__new__, Record)
as_result: Callable[[tuple[Any, ...]], Result] = partial(tuple.__new__, Result)
"""Makes one of all its values, in half the time of ``Result(*values)``: a step makes three of them."""

FRESH = (0, None, None, None)
"""No attempts, no error, no wake, no wait: what a record has there after a step."""


class Storage(Protocol):
    """The five methods that a user writes, each plain or ``async``.

    The executor writes a result before the step that counts it, and deletes everything at the end.
    """

    def get(self, id: str, /) -> Any:
        """Return the last state that was set, ``{"step": int}``, or ``None``."""

    def set(self, id: str, state: dict[str, int], /) -> Any:
        """Keep the state, ``{"step": int}``."""

    def delete(self, id: str, /) -> Any:
        """Forget the state and all results; an unknown id is no error."""

    def get_result(self, id: str, step: int, /) -> Any:
        """Return what `set_result` was given for this step."""

    def set_result(self, id: str, step: int, data: Any, /) -> Any:
        """Keep the result of a step, any JSON value; a second one for the same step replaces the first."""


async def settle(value: Maybe[T]) -> T:
    """Return `value`, awaited if it can be."""
    anything: Any = value
    # In a fifth of the time of isinstance(value, Awaitable), and this is asked often.
    settled: T = await anything if hasattr(anything, "__await__") else anything
    return settled


def then(value: Maybe[T], use: Callable[[T], Maybe[R]]) -> Maybe[R]:
    """Apply `use` to `value`: now, or in an awaitable when `value` is one."""
    anything: Any = value
    if not hasattr(anything, "__await__"):
        return use(anything)

    async def later() -> R:
        return await settle(use(await anything))

    return later()


def is_name(name: object) -> bool:
    """Whether `name` is 1 to 200 characters of ``A-Z a-z 0-9 _ . : @ ~ -``, and not ``.`` or ``..``."""
    return (
        isinstance(name, str) and 0 < len(name) <= _LONGEST and _CHARACTERS.issuperset(name) and name not in {".", ".."}
    )


def is_number(value: object, least: float = -inf, most: float = inf) -> TypeGuard[float]:
    """Whether `value` is an int or a float, and from `least` to `most`."""
    return isinstance(value, (int, float)) and least <= value <= most


def is_whole(value: object, least: float = -inf, most: float = inf) -> TypeGuard[int]:
    """Whether `value` is an int, and from `least` to `most`."""
    return isinstance(value, int) and is_number(value, least, most)


def check_id(id: object) -> str:
    """Return `id` if it can go into URLs, keys and paths.

    Raises:
        InvalidId: When it cannot.
    """
    if isinstance(id, str) and is_name(id):
        return id
    raise InvalidId(id)


def is_past(wanted: Record, record: Record) -> bool:
    """Whether `wanted` names a run or a step that the execution of `record` has left behind."""
    return wanted.run != "" and (wanted.run != record.run or wanted.step < record.step)


def refuses(record: Record, wanted: Record, create: bool) -> bool:
    """Whether a claim does not take a record, however free its lease is; see `Journal.claim`."""
    return not wanted.lease or record.status in CLOSED or (not create and is_past(wanted, record))


def new_id() -> str:
    """Return a fresh execution id."""
    from nanoid import generate  # noqa: PLC0415 - needed only by those who bring no id of their own

    return str(generate(size=21))


def new_run() -> str:
    """Return a fresh nonce for `Record.run`."""
    return urandom(8).hex()


class Journal(ABC):
    """A compare-and-swap store of records and their results.

    Eleven methods are the store's own; any may be plain or ``async``.  The five methods of `Storage` come with
    them, so that a Journal serves wherever a `Storage` does.
    """

    codec: Codec = JSONCodec()
    """How results and inputs become bytes; a store may be given another."""

    @abstractmethod
    def claim(self, wanted: Record, now: float, create: bool) -> Maybe[tuple[Record | None, bool]]:
        """In one atomic step, take the lease of an execution, or create it, or see who has it.

        Args:
            wanted: The record to create if there is none.  To take an existing one, ``wanted.lease`` is the new
                lease's end; ``0.0`` takes nothing: it only creates.  If nothing is to be created, ``wanted.run`` and
                ``wanted.step`` tell for which step the lease is to be taken, an empty run: for whichever is next.
            now: The time in seconds since the epoch.  A lease that ends by then is free.
            create: Whether to create the record when there is none.

        Returns:
            The record as it now stands (``None``: there is none) and whether this call took or created it.
            Taking raises ``token`` by one, sets ``lease`` and changes nothing else; a record whose status is
            among `CLOSED` is never taken, nor for a step that `is_past`.
        """

    @abstractmethod
    def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> Maybe[None]:
        """In one atomic step, write the record and, if there is one, the result.

        Args:
            record: What to write; of its first six fields, which stay the same within a run, nothing is.
            token: The token that the stored record must have.
            result: Kept under ``record.run`` and ``result.step``, instead of an earlier one.
            absent: A signal that must not have come; its name is open from now on, even if one was taken before.
            taken: A signal that is used up by this: it is kept no longer, but its name stays closed to others.

        Raises:
            Fenced: When the stored record has another token or run, or is gone, or `absent` has come; nothing is
                written.
        """

    @abstractmethod
    def save(self, record: Record, result: Result) -> Maybe[None]:
        """In one atomic step, write a result ahead of the record that will count it.

        Args:
            record: The stored record must have its run and token, and stays as it is.
            result: As for `commit`.

        Raises:
            Fenced: When the stored record has another token or run, or is gone; nothing is written.
        """

    @abstractmethod
    def restart(self, record: Record, held: Record) -> Maybe[None]:
        """In one atomic step, put a record in the place of another with the same id, and remove all its results.

        Signals that nobody has taken are kept, and closed names are open again.

        Args:
            record: What to write, every field of it.
            held: Whose run and token the stored record must have.

        Raises:
            Fenced: When the stored record differs from `held`, or is gone; nothing is written.
        """

    @abstractmethod
    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> Maybe[list[Result]]:
        """Read saved results in order, those saved ahead among them.

        Args:
            record: Whose results; its run must be the stored one.
            start: The first step wanted.
            stop: The step after the last one wanted.
            brief: Whether ``started``, ``ended`` and ``error`` may be left out, because nobody will look at them.

        Returns:
            A page: at least the first result that there is in this range, more as long as their size stays
            moderate (about a megabyte); none when there is none, or this run was deleted.  The list is the
            caller's, and nothing else holds on to its data.
        """

    @abstractmethod
    def read(self, id: str) -> Maybe[Record | None]:
        """Return the record, or ``None``."""

    @abstractmethod
    def due(self, now: float, limit: int) -> Maybe[list[Record]]:
        """Return up to `limit` records whose ``rings_at`` is not after `now`, the earliest first."""

    @abstractmethod
    def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> Maybe[list[Record]]:
        """Return up to `limit` records in the order of their ids, byte by byte, from behind `after` on.

        Args:
            after: The id behind which to begin; empty: the first.
            limit: How many at most.
            status: Only records of this status.
            workflow: Only records of this workflow.
        """

    @abstractmethod
    def signal(self, id: str, name: str, data: bytes, now: float) -> Maybe[tuple[Record | None, bool]]:
        """In one atomic step, keep a signal for an execution, unless it is closed or one of that name is there.

        A record that waits for it and whose lease nobody has gets `now` as its ``due``; its token stays.

        Args:
            id: Whose signal.
            name: Its name.
            data: What comes with it.
            now: The time in seconds since the epoch.

        Returns:
            The record as it now stands (``None``: there is none) and whether the signal was kept: not if the
            record's status is among `CLOSED`, or if a signal of that name was kept or taken before.
        """

    @abstractmethod
    def received(self, record: Record, name: str) -> Maybe[bytes | None]:
        """Return the data of a signal that was kept and not yet taken, or ``None``."""

    @abstractmethod
    def remove(self, id: str, held: Record | None = None) -> Maybe[None]:
        """Remove an execution, its results and its signals; an unknown id is no error.

        Args:
            id: Which.
            held: Whose run and token the stored record must have; left out, whatever it has.

        Raises:
            Fenced: When `held` is given and the stored record differs from it, or is gone.
        """

    def create_schema(self) -> Any:  # noqa: B027 - to be overridden by those who have tables
        """Make the tables unless they are there; may be ``async``, and does nothing where none are needed."""

    def close(self) -> Any:  # noqa: B027 - to be overridden by those who hold something
        """Release what it holds, files or connections; may be ``async``, and does nothing by default."""

    def get(self, id: str, /) -> Any:
        """Return ``{"step": int}``, or ``None``."""
        return then(self.read(id), lambda record: record and {"step": record.step})

    def set(self, id: str, state: dict[str, int], /) -> Any:
        """Keep ``{"step": int}``."""
        return self._write(id, lambda record: self.commit(record._replace(step=state["step"]), record.token - 1))

    def delete(self, id: str, /) -> Any:
        """Forget an execution and its results."""
        return self.remove(id)

    def get_result(self, id: str, step: int, /) -> Any:
        """Return the result of a step."""

        def read(record: Record | None) -> Maybe[Any]:
            if record is None:
                return None
            return then(
                self.results(record, step, step + 1), lambda page: self.codec.loads(page.pop().data) if page else None
            )

        return then(self.read(id), read)

    def set_result(self, id: str, step: int, data: Any, /) -> Any:
        """Keep the result of a step."""
        result = Result(step, data=as_bytes(self.codec, self.codec.dumps(data)))
        return self._write(id, lambda record: self.commit(record, record.token - 1, result))

    def _write(self, id: str, write: Callable[[Record], Maybe[None]]) -> Maybe[None]:
        """Hand the record with its next token to `write`, creating it if need be."""
        claimed = self.claim(Record(id, new_run(), changed=time()), 0.0, True)
        return then(claimed, lambda found: write(_next(cast("Record", found[0]))))


def _next(record: Record) -> Record:
    return record._replace(token=record.token + 1, changed=time())


class PlainJournal(Journal):
    """A plain `Storage` seen as a Journal, as far as five methods can carry it.

    Nothing is kept here: the state is exactly ``{"step": n}``, results are what the tools returned, the
    result is written before the step.  What five methods cannot promise is refused by name.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def _refuse(self, what: str) -> NotSupported:
        return NotSupported(type(self._storage).__name__, what)

    def claim(self, wanted: Record, now: float, create: bool) -> Maybe[tuple[Record | None, bool]]:
        """Read how far the execution has come; there is no lease to take."""
        if not create:
            raise self._refuse("resume by id alone")
        if not wanted.lease:
            raise self._refuse("start")
        return then(
            self.read(wanted.id),
            lambda found: (
                wanted._replace(run="0", version=None, due=None, lease=0.0, step=found.step if found else 0),
                True,
            ),
        )

    def commit(
        self,
        record: Record,
        token: int,
        result: Result | None = None,
        *,
        absent: str | None = None,
        taken: str | None = None,
    ) -> Maybe[None]:
        """Write the result, then the step."""
        if result is None:
            return None
        return then(self.save(record, result), lambda _: self._storage.set(record.id, {"step": record.step}))

    def save(self, record: Record, result: Result) -> Maybe[None]:
        """Write the result."""
        written: Maybe[None] = self._storage.set_result(record.id, result.step, self.codec.loads(result.data))
        return written

    def restart(self, record: Record, held: Record) -> Maybe[None]:
        """Refuse: five methods cannot do this in one step."""
        raise self._refuse("again()")

    def results(self, record: Record, start: int, stop: int, brief: bool = False) -> Maybe[list[Result]]:
        """Read one result: how large several would be is not known beforehand."""

        def encode(value: Any) -> list[Result]:
            try:
                return [Result(start, data=self.codec.dumps(value))]
            except Exception as error:
                what = f"what {type(self._storage).__name__}.get_result({record.id!r}, {start}) returned"
                raise NotEncodable(what, str(error)) from error

        return then(self._storage.get_result(record.id, start), encode)

    def read(self, id: str) -> Maybe[Record | None]:
        """Read the state; anything but ``{"step": int}`` or ``None`` is an error of the storage."""

        def check(state: Any) -> Record | None:
            if state is None:
                return None
            step = state.get("step") if isinstance(state, dict) else None
            if not isinstance(step, int) or step < 0:
                raise TypeError(
                    f"{type(self._storage).__name__}.get({id!r}) returned {state!r}, not {{'step': int}} or None"
                )
            return Record(id, "0", step=step)

        return then(self._storage.get(id), check)

    def due(self, now: float, limit: int) -> Maybe[list[Record]]:
        """Refuse: five methods cannot list."""
        raise self._refuse("sweep")

    def find(
        self, after: str, limit: int, status: str | None = None, workflow: str | None = None
    ) -> Maybe[list[Record]]:
        """Refuse: five methods cannot list."""
        raise self._refuse("list")

    def signal(self, id: str, name: str, data: bytes, now: float) -> Maybe[tuple[Record | None, bool]]:
        """Refuse: five methods have no place for it."""
        raise self._refuse("signal")

    def received(self, record: Record, name: str) -> Maybe[bytes | None]:
        """Refuse: five methods have no place for it."""
        raise self._refuse("wait()")

    def remove(self, id: str, held: Record | None = None) -> Maybe[None]:
        """Delete state and results."""
        deleted: Maybe[None] = self._storage.delete(id)
        return deleted


async def page_of(journal: Journal, record: Record, start: int, stop: int, brief: bool = False) -> list[Result]:
    """Return a page of results as `Journal.results` does, the first of which must be there.

    Raises:
        Fenced: When it is not, because this run was deleted.
    """
    page = await settle(journal.results(record, start, stop, brief))
    if not page or page[0].step != start:
        raise Fenced(record.id, record.token)
    return page


def journal_for(storage: Storage) -> Journal:
    """Return `storage` itself if it is a `Journal`, or else a `PlainJournal` around it.

    Raises:
        TypeError: When `storage` lacks one of the five methods.
    """
    if isinstance(storage, Journal):
        return storage
    missing = [
        name
        for name in ("get", "set", "delete", "get_result", "set_result")
        if not callable(getattr(storage, name, None))
    ]
    if missing or isinstance(storage, type):
        what = (
            f"the class {storage.__name__}, not an instance of it"
            if isinstance(storage, type)
            else f"a {type(storage).__name__} without {', '.join(missing)}"
        )
        raise TypeError(
            f"{what} was given as a storage: a storage has the methods get, set, delete, get_result and set_result "
            f"(see sequential.storage.Storage), or is built in (sequential.stores.sqlite.SQLiteStorage); "
            f"sequential.stores.open(url) makes one of a URL"
        )
    return PlainJournal(storage)
