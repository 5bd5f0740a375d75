"""The executor: claim an execution, have one invocation of it run, tell how executions stand, ring the late ones."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from time import time
from typing import Any, TypeAlias, TypeVar

from . import hooks, upkeep
from .blocking import blocking
from .codec import fingerprint
from .errors import (
    AlreadyEnded,
    Fenced,
    IdInUse,
    InvalidName,
    NotSupported,
    UnknownExecution,
    UnknownWorkflow,
)
from .invocation import Invocation
from .observe import Event, Observer
from .requests import is_storable
from .setup import GRACE, Paused, Setup, Status
from .storage import (
    CLOSED,
    PARKED,
    STATUSES,
    PlainJournal,
    Record,
    Storage,
    check_id,
    is_name,
    is_number,
    is_whole,
    journal_for,
    new_run,
    page_of,
    settle,
)
from .storage import new_id as fresh_id
from .workflow import Workflow, check, name_all

T = TypeVar("T")

# The class below has a method `list`, within which Python 3.14 evaluates its annotations when they are asked for.
_Ids: TypeAlias = list[str]
_Statuses: TypeAlias = list[Status]
_Steps: TypeAlias = list[dict[str, Any]]


class FlowExecutor:
    """Runs workflows one tool call at a time over a store.

    It holds no mutable state: one instance serves any number of threads and tasks.  Every ``async`` method
    has a twin with ``_sync`` at the end of its name, which needs no event loop.

    Args:
        storage: A built-in store, or any object with the five methods of `sequential.storage.Storage`.
        call: Performs a tool, ``call(category, name, input) -> result``, plain or ``async``; left out, the
            process-wide hook of `sequential.install` is used.
        resume: Hands an execution over to the next invocation, ``resume(id)``, and returns quickly; likewise.
        workflows: The generator functions that `resume` finds by their names.
        budget: Seconds during which an invocation goes on with the next step; 0 is one tool call per
            invocation, ``math.inf`` runs to the end.
        lease: Seconds after which a silent invocation is taken for dead.  It is renewed while a call runs.
        retain: Whether a finished execution is kept with its value instead of being deleted.
        version: Recorded at the start of each execution and answered to ``version()``.
        observe: Called with an `Event` for each thing that happens.
        clock: Returns the time in seconds since the epoch.

    Raises:
        InvalidWorkflow: When one of `workflows` is not a generator function.
        NotSupported: When `retain` is asked of a storage of five methods.
        TypeError: When `storage` lacks a method, or a hook cannot be called.
        ValueError: When `lease`, `budget` or `version` is out of range.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        call: hooks.Call | None = None,
        resume: hooks.Resume | None = None,
        workflows: Iterable[Workflow[Any]] = (),
        budget: float = 0.0,
        lease: float = 120.0,
        retain: bool = False,
        version: int = 0,
        observe: Callable[[Event], object] | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        if not (is_number(lease) and lease > 0 and is_number(budget, 0)):
            raise ValueError(
                f"lease= is a number of seconds above 0, and budget= one not below 0, each an int or a float: got "
                f"{lease=} and {budget=}"
            )
        hooks.check_functions(call=call, resume=resume, observe=observe, clock=clock)
        if not is_whole(version, -(2**63), 2**63 - 1):
            raise ValueError(f"version must be an int of at most 64 bits, got {version!r:.100}")
        journal = journal_for(storage)
        self._workflows = name_all(workflows)
        self._setup = Setup(
            journal=journal,
            call=call,
            resume=resume,
            budget=budget,
            lease=lease,
            retain=retain,
            version=version,
            observer=Observer(observe),
            clock=clock,
        )
        self._plain = type(storage).__name__ if isinstance(journal, PlainJournal) else None
        if retain:
            self._needs_journal("retain=True")

    async def execute(self, workflow: Workflow[T], id: str | None = None, input: Any = None) -> T | Paused:
        """Begin an execution, or go on with it: perform the next tool call and pause.

        Args:
            workflow: A generator function of the input, or of no argument.
            id: The execution's id; left out, a new one.
            input: Any JSON value; left out, what the execution was started with, or ``{}``.

        Returns:
            The workflow's value when it ends, or else `Paused`.

        Raises:
            InvalidWorkflow, InvalidId: Before anything is read or written.
            IdInUse: When the id belongs to another workflow or has another input.
            Diverged: When the workflow asks for something else than it did before; the execution is parked.
            Fenced: When another invocation took the execution over meanwhile.
            Exception: What the workflow itself raises; the execution is parked as failed, and this method or
                `resume` goes on with it.
        """
        wanted = self._record(workflow, id, input)

        def find(record: Record) -> "Workflow[T]":  # in quotes, or each call would make that type anew
            self._compare(record, wanted, input)
            return workflow

        record, invocation = await self._claim(wanted, True, find)
        value: T | Paused
        if invocation is not None:
            value = await invocation.run()
            return value
        assert record is not None
        find(record)
        if record.status in CLOSED - {"finished"}:
            raise AlreadyEnded(record.id, record.status)
        value = await self._standing(record)
        return value

    async def start(self, workflow: Workflow[Any], input: Any = None, id: str | None = None) -> str:
        """Record an execution, ring for its first invocation and return its id; a second time, ring again.

        One that has ended or is parked stays as it is, and nobody is rung: `status` tells.

        Args:
            workflow: As for `execute`.
            input: As for `execute`; here it comes before the id.
            id: As for `execute`.

        Raises:
            InvalidWorkflow, InvalidId, IdInUse: As for `execute`.
            NotSupported: On a storage of five methods.
        """
        wanted = self._record(workflow, id, input)._replace(lease=0.0, due=self._setup.clock() + GRACE)
        record, _ = await settle(self._setup.journal.claim(wanted, self._setup.clock(), True))
        assert record is not None
        self._compare(record, wanted, input)
        if record.status not in CLOSED | PARKED:
            await self._setup.ring(record)
        return record.id

    async def resume(self, id: str) -> Any:
        """Go on with an execution that is known by id alone, as a callback does.

        Args:
            id: The execution's id.  Of an unknown one (it may have finished long ago) nothing is run.

        Returns:
            The workflow's value when it ends, `Paused`, or ``None`` when there is no such execution.

        Raises:
            UnknownWorkflow: When its workflow is not among ``workflows=``.
            NotSupported: On a storage of five methods.
            Exception: As from `execute`.
        """
        record, invocation = await self._take(Record(check_id(id), ""))
        if invocation is not None:
            return await invocation.run()
        return None if record is None else await self._standing(record)

    async def status(self, id: str) -> Status | None:
        """Tell how an execution stands, or ``None`` when there is none.

        Args:
            id: The execution's id.
        """
        record = await settle(self._setup.journal.read(check_id(id)))
        if record is None:
            return None
        status = self._status(record)
        return status._replace(value=await self._value(record)) if record.status == "finished" else status

    async def history(self, id: str) -> _Steps:
        """List the recorded steps of an execution as JSON values.

        Args:
            id: The execution's id.

        Returns:
            One dict for each step: ``step``, ``asked``, ``fingerprint``, ``started``, ``ended``, ``error`` (the
            type's name when the tool raised) and ``result``.

        Raises:
            UnknownExecution: When there is none.
        """
        record, steps = await self._known(id), list[dict[str, Any]]()
        while len(steps) < record.step:
            for saved in await page_of(self._setup.journal, record, len(steps), record.step):
                steps.append(saved._asdict())
                steps[-1]["result"] = self._setup.journal.codec.loads(steps[-1].pop("data"))
        return steps

    async def signal(self, id: str, name: str, payload: Any = None) -> bool:
        """Answer the wait of an execution, now or when it comes to it, and ring.

        A name takes one signal: the first stays until the execution waits for it.  Once taken, the name is closed
        until the execution waits for it again.

        Args:
            id: The execution's id.
            name: The signal's name.
            payload: Any JSON value.

        Returns:
            Whether this signal was the first; if not, it is not kept.

        Raises:
            UnknownExecution: When there is none.
            AlreadyEnded: When it is finished or cancelled.
            InvalidName, NotEncodable: When the name, or the payload, cannot be stored.
            NotSupported: On a storage of five methods.
        """
        if not is_name(name):
            raise InvalidName(name)
        data = self._setup.encode(payload, f"the payload of signal {name!r}")
        record, kept = await settle(self._setup.journal.signal(check_id(id), name, data, self._setup.clock()))
        if record is None:
            raise UnknownExecution(id)
        if record.status in CLOSED:
            raise AlreadyEnded(id, record.status)
        if kept:
            self._setup.observer.tell("signalled", record, name)
        if record.waits == name:
            await self._setup.ring(record)
        return kept

    async def cancel(self, id: str) -> None:
        """End an execution: it never runs again, and an invocation in flight is fenced off at its next commit.

        Its record and results stay until `delete`.  A second time is no error.

        Args:
            id: The execution's id.

        Raises:
            UnknownExecution: When there is none.
            AlreadyEnded: When it is finished.
            NotSupported: On a storage of five methods.
        """
        self._needs_journal("cancel")
        while True:
            record = await self._known(id)
            if record.status == "cancelled":
                return
            if record.status in CLOSED:
                raise AlreadyEnded(id, record.status)
            cancelled = upkeep.cancelled(record, self._setup.clock())
            try:
                await settle(self._setup.journal.commit(cancelled, record.token))
            except Fenced:
                continue  # an invocation has committed meanwhile, or finished
            self._setup.observer.tell("cancelled", cancelled)
            return

    async def fork(self, id: str, at: int, new_id: str | None = None) -> str:
        """Begin another execution with the first recorded results of this one, ring for it and return its id.

        Args:
            id: The execution to begin like; it stays as it is.
            at: How many of its results to take over, from 0 to all.
            new_id: The other's id; left out, a new one.

        Raises:
            UnknownExecution: When there is none.
            IdInUse: When there is one of `new_id` already.
            ValueError: When `at` is out of range.
            NotSupported: On a storage of five methods.
        """
        self._needs_journal("fork")
        journal, source, now = self._setup.journal, await self._known(id), self._setup.clock()
        if not is_whole(at, 0, source.step):
            raise ValueError(f"execution {id!r} has {source.step} recorded steps, so at= is from 0 to that, not {at!r}")
        begun = (fresh_id() if new_id is None else check_id(new_id), new_run(), *source[2:6])
        wanted = Record(*begun, status="forking", changed=now)
        copy, created = await settle(journal.claim(wanted, now, True))
        if copy is not None and not created and copy.status == "forking":  # left by a process that died, or is fenced
            await settle(journal.remove(copy.id, copy))
            copy, created = await settle(journal.claim(wanted, now, True))
        if not created or copy is None:
            raise IdInUse(begun[0], "a history", "of its own", f"the first steps of {id!r}")
        try:
            copied = 0
            while copied < at:
                for saved in await page_of(journal, source, copied, at):
                    await settle(journal.save(copy, saved))
                    copied += 1
            forked = copy._replace(token=copy.token + 1, step=at, status="running", due=self._setup.clock() + GRACE)
            await settle(journal.commit(forked, copy.token))
        except GeneratorExit:
            raise  # nothing can be awaited any more; the next fork to this id replaces it
        except BaseException:
            with suppress(Exception):
                await settle(journal.remove(copy.id, copy))
            raise
        await self._setup.ring(forked)
        return forked.id

    async def delete(self, id: str) -> None:
        """Forget an execution and its results; an invocation in flight is fenced off, an unknown id is no error.

        Args:
            id: The execution's id.
        """
        await settle(self._setup.journal.remove(check_id(id)))

    async def sweep(self, limit: int = 100) -> _Ids:
        """Ring every execution whose time has come: its callback was lost, or its process died.

        Call it from a cron job, a loop or a scheduled function.  What has been rung 10 times without a new
        step is parked as ``stuck`` and reported once; a ring that fails does not count.

        Args:
            limit: How many executions to ring at most, at least 1.

        Returns:
            The ids that were rung: without a ``resume`` hook, resume them yourself.

        Raises:
            NotSupported: On a storage of five methods.
            StorageError: When the store is away; when it refuses one record, only if nothing else was rung.
        """
        return await upkeep.sweep(self._setup, limit)

    async def purge(self, older_than: float) -> _Ids:
        """Delete what has ended, was parked or was abandoned, and to which nothing has happened for a long time.

        What is held, or still to be due, stays, however long it sleeps; what waits for a signal without a timeout
        counts as abandoned.

        Args:
            older_than: Seconds for which nothing must have happened.

        Returns:
            The ids that were deleted.

        Raises:
            NotSupported: On a storage of five methods.
            ValueError: When `older_than` is below 0.
        """
        self._needs_journal("purge")
        if not is_number(older_than, 0):
            raise ValueError(f"older_than= is a number of seconds, not below 0, not {older_than!r}")
        return await upkeep.purge(self._setup, older_than)

    async def list(
        self, status: str | None = None, workflow: str | None = None, limit: int = 100, after: str | None = None
    ) -> _Statuses:
        """List how executions stand, in the order of their ids.

        Args:
            status: Only those of this status (see `Status`); left out, all.
            workflow: Only those of the workflow of this name; left out, all.
            limit: How many at most.
            after: The last id of the list before; left out, from the first on.

        Raises:
            ValueError: When there is no such status, `workflow` is no name, or `limit` is below 1.
            InvalidId: When `after` cannot be an id.
            NotSupported: On a storage of five methods.
        """
        if status is not None and not (isinstance(status, str) and status in STATUSES):
            raise ValueError(f"there is no status {status!r}: it is one of {', '.join(sorted(STATUSES))}")
        if workflow is not None and not (isinstance(workflow, str) and is_storable(workflow)):
            raise ValueError(f"workflow= is the name of a workflow, not {workflow!r:.100}")
        if after:
            check_id(after)
        records = await settle(self._setup.journal.find(after or "", upkeep.check_limit(limit), status, workflow))
        return [self._status(record) for record in records]

    execute_sync = blocking(execute)
    start_sync = blocking(start)
    resume_sync = blocking(resume)
    status_sync = blocking(status)
    history_sync = blocking(history)
    signal_sync = blocking(signal)
    cancel_sync = blocking(cancel)
    fork_sync = blocking(fork)
    delete_sync = blocking(delete)
    sweep_sync = blocking(sweep)
    purge_sync = blocking(purge)
    list_sync = blocking(list)  # noqa: A003 - the method above is meant

    def _record(self, workflow: Workflow[Any], id: str | None, input: Any) -> Record:
        """Return the record that a new execution begins with, held by this invocation."""
        setup = self._setup
        name, now = check(workflow), setup.clock()
        id = fresh_id() if id is None else check_id(id)
        data = setup.encode({} if input is None else input, f"the input of execution {id!r}")
        return Record(id, new_run(), name, data, setup.version, token=1, due=now, lease=now + setup.lease, changed=now)

    async def _take(self, wanted: Record) -> tuple[Record | None, Invocation | None]:
        """Take the lease of an execution that is known by id alone; the handler answers before it runs it."""
        wanted = wanted._replace(lease=self._setup.clock() + self._setup.lease)
        return await self._claim(wanted, False, self._find)

    async def _claim(
        self, wanted: Record, create: bool, find: Callable[[Record], Workflow[Any]]
    ) -> tuple[Record | None, Invocation | None]:
        """Take an execution's lease; there is an invocation, to be run, if that could be had."""
        record, taken = await settle(self._setup.journal.claim(wanted, self._setup.clock(), create))
        return record, Invocation(self._setup, record, find) if taken and record else None

    async def _standing(self, record: Record) -> Any:
        """Return what an execution that cannot be run now has come to."""
        if record.status == "finished":
            return await self._value(record)
        return None if record.status in CLOSED else Paused(record.id, record.step - 1, "busy")

    def _compare(self, record: Record, wanted: Record, input: Any) -> None:
        """Refuse an id that belongs to another workflow or has another input."""
        if record.workflow != wanted.workflow:
            raise IdInUse(record.id, "workflow", record.workflow, wanted.workflow)
        if input is not None and record.input != wanted.input:
            recorded, given = map(self._setup.journal.codec.loads, (record.input, wanted.input))
            if recorded != given and (record.first_input is None or record.first_input != fingerprint(given)):
                raise IdInUse(record.id, "input", f"{recorded!r:.80}", f"{given!r:.80}")

    def _find(self, record: Record) -> Workflow[Any]:
        """Return the workflow that an execution was started with."""
        try:
            return self._workflows[record.workflow]
        except KeyError:
            raise UnknownWorkflow(record.id, record.workflow, ", ".join(self._workflows)) from None

    def _needs_journal(self, what: str) -> None:
        """Refuse what five methods would silently not do."""
        if self._plain is not None:
            raise NotSupported(self._plain, what)

    async def _known(self, id: str) -> Record:
        """Return the record of an execution."""
        record = await settle(self._setup.journal.read(check_id(id)))
        if record is None:
            raise UnknownExecution(id)
        return record

    async def _value(self, record: Record) -> Any:
        """Return the final value of a finished execution."""
        page = await page_of(self._setup.journal, record, record.step, record.step + 1)
        return self._setup.journal.codec.loads(page.pop().data)

    def _status(self, record: Record) -> Status:
        """Return how an execution stands, apart from its value."""
        busy, due = record.lease > self._setup.clock(), record.rings_at
        standing = (record.id, record.status, record.step, busy, record.workflow, due, record.attempts, record.error)
        input = self._setup.journal.codec.loads(record.input) if record.input else None
        return Status(*standing, record.waits, record.version, input, None)
