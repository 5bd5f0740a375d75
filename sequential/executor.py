"""The executor: begin executions and go on with them, tell how they stand, ring, signal, end and sweep them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from . import hooks
from . import record as records
from .blocking import blocking, pause, settle
from .checks import FAR, NEVER, check_functions, check_id, check_limit, is_name, is_number, is_storable, is_whole
from .codec import decode_json, fingerprint_by
from .errors import AlreadyEnded, Damaged, IdInUse, InvalidName, StorageError, UnknownExecution, UnknownWorkflow
from .five import FiveMethods, Storage, journal_for
from .invocation import ABOUT_INPUT, Invocation, claim, new_record
from .journal import Log
from .observe import Event, Observer
from .owner import is_dead
from .record import ENDED, INPUT, LAST, PARKED, RESTING, STATUSES, Changed, Entry, Record, Signal, Since
from .setup import Paused, Setup, Status
from .workflow import Workflow, check, name_all

if TYPE_CHECKING:
    from .upkeep import Swept

T = TypeVar("T")

# The class below has a method `list`.
_Statuses: TypeAlias = list[Status]
_Steps: TypeAlias = list[dict[str, Any]]
_Entries: TypeAlias = list[Entry]

_POLL = 1.0
"""Seconds after which `run` looks again whether a signal has come, or another invocation has ended."""


class FlowExecutor:
    """Runs workflows one tool call at a time over a store.

    It holds no mutable state: one instance serves any number of threads and tasks.  Every ``async`` method
    has a twin with ``_sync`` at the end of its name, which needs no event loop.

    Args:
        storage: A built-in store, or any object with the five methods of `sequential.five.Storage`.
        call: Performs a tool, ``call(category, name, input) -> result``, plain or ``async``; left out, the
            process-wide hook of `sequential.install` is used.
        resume: Hands an execution over to the next invocation, ``resume(id)``, and returns quickly; likewise.
        workflows: The generator functions that `resume` finds by their names.
        budget: Seconds during which an invocation goes on with the next step; 0 is one tool call, or one list of
            them, per invocation, ``math.inf`` runs to the end.
        lease: Seconds after which a silent invocation is taken for dead.  It is renewed while a call runs, and must be
            longer than the store takes to write the largest value.
        retain: Whether a finished execution is kept with its value instead of being deleted; a number keeps it for so
            many seconds.
        version: Recorded at the start of each execution and answered to ``version()``.
        errors: What becomes of a tool's error: ``"value"`` answers ``{"__error": message}``, ``"raise"`` raises
            `ToolError` at the ``yield``.  Recorded at the start of each execution, too.
        strict: Whether an execution is parked when its workflow asks a tool with another input than was recorded; if
            not, that is an event, and the recorded result is used.
        observe: Called with an `Event` for each thing that happens.
        clock: Returns the time in seconds since the epoch.

    Raises:
        InvalidWorkflow: When one of `workflows` is not a generator function.
        NotSupported: When `retain` is asked of a storage of five methods.
        TypeError: When `storage` lacks a method, or a hook cannot be called.
        ValueError: When `lease`, `budget`, `retain`, `version` or `errors` is out of range.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        call: hooks.Call | None = None,
        resume: hooks.Resume | None = None,
        workflows: Iterable[Workflow[Any]] = (),
        budget: float = 0.0,
        lease: float = 60.0,
        retain: bool | float = False,
        version: int = 0,
        errors: Literal["value", "raise"] = "value",
        strict: bool = True,
        observe: Callable[[Event], object] | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        if not (is_number(lease) and lease > 0 and is_number(budget, 0)):
            raise ValueError(
                f"lease= is a number of seconds above 0, and budget= one not below 0, each an int or a float: got "
                f"{lease=} and {budget=}"
            )
        if not is_number(retain, 0, FAR):
            raise ValueError(f"retain= is True, False or a number of seconds, not {retain!r:.100}")
        if errors not in ("value", "raise"):
            raise ValueError(f"errors= is 'value' or 'raise', not {errors!r:.100}")
        check_functions(call=call, resume=resume, observe=observe, clock=clock)
        if not is_whole(version, -(2**63), 2**63 - 1):
            raise ValueError(f"version must be an int of at most 64 bits, got {version!r:.100}")
        journal = journal_for(storage)
        # Of a subclass of float or int (numpy's, an Enum's) a store might write what nobody can read again.
        self.setup = Setup(
            journal=journal,
            call=call,
            resume=resume,
            workflows=name_all(workflows),
            budget=float(budget),
            lease=min(float(lease), FAR),
            retain=retain if isinstance(retain, bool) else float(retain),
            version=int(version),
            errors=errors,
            strict=strict,
            observer=Observer(observe),
            clock=clock if clock is time else lambda: float(clock()),
            fingerprint=fingerprint_by(journal.codec),
            is_five=isinstance(journal, FiveMethods),
        )
        """For the other parts of this package."""
        if retain is not False:
            self.setup.needs_journal("retain=")

    async def execute(self, workflow: Workflow[T], id: str | None = None, input: Any = None) -> T | Paused:
        """Begin an execution, or go on with it: perform the next tool call and pause.

        Args:
            workflow: A generator function of the input, or of no argument.
            id: The execution's id; left out, a new one.
            input: Any JSON value; left out, what the execution was started with, or ``{}``.

        Returns:
            The workflow's value when it ends, or else `Paused`.

        Raises:
            AlreadyEnded: When it was cancelled.
            InvalidWorkflow, InvalidId, NotEncodable: Before anything is read or written.
            IdInUse: When the id belongs to another workflow or has another input.
            Diverged: When the workflow asks for something else than it did before; the execution is parked.
            Fenced: When another invocation took the execution over meanwhile.
            Exception: What the workflow itself raises; the execution is parked as failed, and this method goes on with
                it.
        """
        value, _ = await self._execute(workflow, id, input, self.setup.budget)
        return value

    async def _execute(
        self, workflow: Workflow[T], id: str | None, input: Any, budget: float, begins: bool = True
    ) -> tuple[T | Paused, Record]:
        """Do what `execute` does, and return the record, too; `begins`: whether to create one that is not there."""
        new, data = self._new(workflow, id, input)

        def find(record: Record) -> Workflow[T]:
            self._compare(record, new, input)
            return workflow

        create = (new, data) if begins else None
        record, invocation = await claim(self.setup, new.id, find, create=create, take_parked=True)
        if record is None:
            raise UnknownExecution(new.id)
        value: T | Paused
        if invocation is not None:
            value = await invocation.run(budget)
            record = invocation.record
        else:
            find(record)
            value = await self._standing(record)
        if record.status == "cancelled":
            raise AlreadyEnded(record.id, record.status)
        return value, record

    async def run(self, workflow: Workflow[T], id: str | None = None, input: Any = None) -> T:
        """Begin an execution, or go on with it, to its end: in a script, asleep through timers.

        What waits for a signal, or is held by another invocation, is looked at every second.

        Args:
            workflow: As for `execute`.
            id: As for `execute`.
            input: As for `execute`.

        Returns:
            The workflow's value.

        Raises:
            UnknownExecution: When another invocation has ended it meanwhile, and did not keep its value.
            Exception: As from `execute`.
        """
        id, begins = records.fresh_id() if id is None else check_id(id), True
        while True:
            value, record = await self._execute(workflow, id, input, NEVER, begins)
            if not isinstance(value, Paused):
                return value
            # What another ends meanwhile must not begin anew; five methods know no other way to go on.
            begins = self.setup.is_five or record.status == "making"
            if value.reason == "busy":
                await pause(_POLL)
            while value.reason in {"sleep", "wait"} and (left := await self._rests(id)) > 0:
                await pause(min(left, _POLL))

    async def _rests(self, id: str) -> float:
        """Return for how many seconds there is nothing to do for an execution, unless a signal comes."""
        record, _ = await settle(self.setup.journal.read(id))
        if record is None or record.status not in RESTING | {"cancelling"}:
            return 0.0
        return NEVER if record.due is None else record.due - self.setup.clock()

    async def start(self, workflow: Workflow[Any], id: str | None = None, input: Any = None) -> str:
        """Record an execution, ring for its first invocation and return its id; a second time, ring again.

        One that has ended or is parked stays as it is, and nobody is rung: `status` tells.

        Args:
            workflow: As for `execute`.
            id: As for `execute`.
            input: As for `execute`.

        Raises:
            InvalidWorkflow, InvalidId, IdInUse, NotEncodable: As for `execute`.
            NotSupported: On a storage of five methods.
        """
        setup = self.setup
        setup.needs_journal("start")
        new, data = self._new(workflow, id, input)

        def change(record: Record | None, _: Since) -> Changed:
            return (
                (new, [Entry(new.run, INPUT, 0, ABOUT_INPUT, data)])
                if records.is_new(record, new, setup.lease)
                else None
            )

        known, _ = await settle(setup.journal.read(new.id))
        record = await setup.journal.update(new.id, known, change)
        assert record is not None
        self._compare(record, new, input)
        if record.status == "making":
            raise StorageError(f"execution {record.id!r} is just being begun by another process: start it again")
        if record.status not in ENDED | PARKED:
            await setup.ring(record)
        return record.id

    async def resume(self, id: str, *, parked: bool = False) -> Any:
        """Go on with an execution that is known by id alone, as a callback does.

        Args:
            id: The execution's id.  Of an unknown one (it may have finished long ago) nothing is run.
            parked: Whether to take up one that is parked, as `ring` does.

        Returns:
            The workflow's value when it ends, `Paused`, or ``None`` when there is no such execution, or it was
            cancelled.

        Raises:
            UnknownWorkflow: When its workflow is not among ``workflows=``.
            NotSupported: On a storage of five methods.
            Exception: As from `execute`.
        """
        record, invocation = await self.take(check_id(id), parked=parked)
        if invocation is not None:
            return await invocation.run(self.setup.budget)
        if record is None or record.status in {"cancelled", "making"}:
            return None
        return await self._standing(record)

    async def ring(self, id: str) -> bool:
        """Hand an execution over to the next invocation: make it due, take it up if it is parked, and ring.

        Args:
            id: The execution's id.

        Returns:
            Whether it was rung; not if it has ended, or the hook has failed.  Without a ``resume`` hook it is but due:
            resume it yourself.

        Raises:
            UnknownExecution: When there is none.
            NotSupported: On a storage of five methods.
        """
        self.setup.needs_journal("ring")
        now = self.setup.clock()
        known, _ = await settle(self.setup.journal.read(check_id(id)))
        record = await self._change(known, id, lambda record: records.rung(record, id, now, is_dead))
        return record.status not in ENDED and await self.setup.ring(record)

    async def status(self, id: str) -> Status | None:
        """Tell how an execution stands, or ``None`` when there is none.

        Args:
            id: The execution's id.
        """
        setup = self.setup
        record, page = await settle(setup.journal.read(check_id(id), (INPUT, 0), 0))
        if record is None:
            return None
        status = setup.status(record)
        if setup.is_five or record.status == "making":
            return status
        status = status._replace(input=await self._load(record, page, INPUT))
        if record.status == "finished":
            status = status._replace(value=await self._load(record, [], record.step))
        return status

    async def history(self, id: str) -> _Steps:
        """List the recorded steps of an execution as JSON values, in the order in which they were answered.

        Args:
            id: The execution's id.

        Returns:
            One dict for each step: ``step``, ``branch``, ``asked``, ``fingerprint``, ``started``, ``ended``, ``error``
            (the type's name when the tool raised) and ``result``.

        Raises:
            UnknownExecution: When there is none.
        """
        record, page = await settle(self.setup.journal.read(check_id(id), (0, 0), LAST))
        if record is None:
            raise UnknownExecution(id)
        records.state_of(record)  # what is damaged is refused
        log, steps = Log(self.setup.journal, record, page, record.step), list[dict[str, Any]]()
        for step in range(record.step):
            about, box = await log.take(step)
            told = {"branch": 0, "asked": "", "fingerprint": None, "started": None, "ended": None, "error": None}
            try:
                told.update(decode_json(about or "{}"))
            except (ValueError, TypeError) as error:
                raise Damaged(id, step) from error
            steps.append({"step": step, **told, "result": self.setup.journal.codec.loads(box.pop())})
        return steps

    async def signal(self, id: str, name: str, payload: Any = None, *, queue: bool = False) -> bool:
        """Answer a wait of an execution, now or when it comes to it, and ring.

        A name takes one signal: the first stays until the execution waits for it.  When that wait has ended, the name
        is closed until the execution waits for it again.

        Args:
            id: The execution's id.
            name: The signal's name.
            payload: Any JSON value.
            queue: Whether to keep this one behind those of its name that are there, and if the name is closed, too.

        Returns:
            Whether this signal is kept.

        Raises:
            UnknownExecution: When there is none.
            AlreadyEnded: When it is finished or cancelled.
            InvalidName, NotEncodable: When the name, or the payload, cannot be stored.
            NotSupported: On a storage of five methods.
            StorageError: When the answer of the store was lost, and nobody can tell whether it was kept.
        """
        setup = self.setup
        setup.needs_journal("signal")
        if not is_name(name):
            raise InvalidName(name)
        data = setup.encode(payload, f"the payload of signal {name!r}")
        name = str.__str__(name)
        known, nonce, now = await self._known(id), records.nonce(), setup.clock()
        kept = False

        def change(record: Record | None, since: Since) -> Changed:
            nonlocal kept
            sent = Signal(name, records.free_place(record), nonce)
            kept, new = records.signalled(record, since, known, sent, now, queue)
            return new and (new, [Entry(new.run, sent.place, 0, '{"asked":"signal"}', data)])

        record = await setup.journal.update(id, known, change)
        if kept and record is not None:
            setup.observer.tell("signalled", record, name)
            if name in records.state_of(record).waits and not records.state_of(record).lease:
                await setup.ring(record)
        return kept

    async def cancel(self, id: str, *, force: bool = False) -> bool:
        """Ask an execution to end: `Cancelled` is raised at its ``yield``, where it may undo what it did.

        What is parked ends at once.  The record and the results stay until `delete`, or as ``retain=`` has it.

        Args:
            id: The execution's id.
            force: Whether to end it at once, without running anything; an invocation in flight is fenced off.

        Returns:
            ``True``: it was asked for, or has been before.

        Raises:
            UnknownExecution: When there is none.
            AlreadyEnded: When it is finished.
            NotSupported: On a storage of five methods.
        """
        setup = self.setup
        setup.needs_journal("cancel")
        now, due = setup.clock(), setup.kept_until(setup.clock())
        before, _ = await settle(setup.journal.read(check_id(id)))
        if force and before is not None and before.status == "making":
            await self.delete(id)
            return True
        record = await self._change(before, id, lambda record: records.cancelled(record, id, now, force, due))
        if record.status == "cancelled" and before is not None and before.status != "cancelled":
            setup.observer.tell("cancelled", record)
        is_asked = record.status == "cancelling" and before is not None and before.status != "cancelling"
        if is_asked and not records.state_of(record).lease:
            await setup.ring(record)
        return True

    async def fork(self, id: str, at: int, new_id: str | None = None) -> str:
        """Begin another execution with the first recorded answers of this one, ring for it and return its id.

        Args:
            id: The execution to begin like; it stays as it is.
            at: How many of its answers to take over, from 0 to all.
            new_id: The other's id; left out, a new one.

        Raises:
            UnknownExecution: When there is none.
            IdInUse: When there is one of `new_id` already.
            ValueError: When `at` is out of range.
            NotSupported: On a storage of five methods.
        """
        from . import upkeep  # noqa: PLC0415 - an invocation starts sooner without

        self.setup.needs_journal("fork")
        source = await self._known(id)
        if not is_whole(at, 0, source.step):
            raise ValueError(f"execution {id!r} has {source.step} recorded steps, so at= is from 0 to that, not {at!r}")
        forked = await upkeep.fork(self.setup, source, at, records.fresh_id() if new_id is None else check_id(new_id))
        await self.setup.ring(forked)
        return forked.id

    async def delete(self, id: str) -> None:
        """Forget an execution and its results; an invocation in flight is fenced off, an unknown id is no error.

        Args:
            id: The execution's id.
        """
        await settle(self.setup.journal.delete(check_id(id)))

    async def sweep(self, limit: int = 100) -> Swept:
        """Ring every execution whose time has come: its callback was lost, or its process died.

        Call it from a cron job, a loop or a scheduled function.  What has been rung (or, without a ``resume`` hook,
        returned to be resumed) 10 times without a new step is parked as ``stuck`` and reported once; a ring that fails
        does not count.

        Args:
            limit: How many executions to look at at most, at least 1.

        Returns:
            The ids that were rung, a list: without a ``resume`` hook, resume them yourself.  Its ``failed`` are those
            that could not be.

        Raises:
            NotSupported: On a storage of five methods.
            StorageError: When the store is away; when it refuses one record, only if nothing else was rung.
        """
        from . import upkeep  # noqa: PLC0415 - an invocation starts sooner without

        self.setup.needs_journal("sweep")
        return await upkeep.sweep(self.setup, check_limit(limit))

    async def purge(self, older_than: float, *, waiting: bool = False) -> list[str]:
        """Delete what has ended or was parked, and to which nothing has happened for a long time.

        Args:
            older_than: Seconds for which nothing must have happened.
            waiting: Whether to delete what waits for a signal without a timeout, too.

        Returns:
            The ids that were deleted.

        Raises:
            NotSupported: On a storage of five methods.
            ValueError: When `older_than` is below 0.
        """
        from . import upkeep  # noqa: PLC0415 - an invocation starts sooner without

        self.setup.needs_journal("purge")
        if not is_number(older_than, 0):
            raise ValueError(f"older_than= is a number of seconds, not below 0, not {older_than!r}")
        return await upkeep.purge(self.setup, older_than, waiting)

    async def list(
        self, status: str | None = None, workflow: str | None = None, limit: int = 100, after: str | None = None
    ) -> _Statuses:
        """List how executions stand, in the order of their ids, without inputs and values.

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
        from . import upkeep  # noqa: PLC0415 - an invocation starts sooner without

        self.setup.needs_journal("list")
        if status is not None and not (isinstance(status, str) and status in STATUSES):
            raise ValueError(f"there is no status {status!r}: it is one of {', '.join(sorted(STATUSES))}")
        if workflow is not None and not (isinstance(workflow, str) and is_storable(workflow)):
            raise ValueError(f"workflow= is the name of a workflow, not {workflow!r:.100}")
        if after:
            check_id(after)
        return await upkeep.statuses(self.setup, after or "", check_limit(limit), status, workflow)

    execute_sync = blocking(execute)
    run_sync = blocking(run)
    start_sync = blocking(start)
    resume_sync = blocking(resume)
    ring_sync = blocking(ring)
    status_sync = blocking(status)
    history_sync = blocking(history)
    signal_sync = blocking(signal)
    cancel_sync = blocking(cancel)
    fork_sync = blocking(fork)
    delete_sync = blocking(delete)
    sweep_sync = blocking(sweep)
    purge_sync = blocking(purge)
    list_sync = blocking(list)  # noqa: A003 - the method above is meant

    async def take(
        self, id: str, run: str | None = None, step: int = 0, *, parked: bool = False
    ) -> tuple[Record | None, Invocation | None]:
        """Take the lease of an execution that is known by id alone; for the other parts of this package.

        Args:
            id: The execution's id.
            run: The run that a callback rang for; ``None``: whichever there is.
            step: The step that it rang for.
            parked: Whether to take up one that is parked.

        Returns:
            The record as it stands (``None``: there is none), and the invocation to be run, if the lease could be had.
        """
        self.setup.needs_journal("resume by id alone")
        return await claim(self.setup, id, self._find, run=run, step=step, take_parked=parked)

    def _new(self, workflow: Workflow[Any], id: str | None, input: Any) -> tuple[Record, bytes]:
        """Return what a new execution begins with: its record, and its input."""
        name, input = check(workflow), {} if input is None else input
        id = records.fresh_id() if id is None else check_id(id)
        data = self.setup.encode(input, f"the input of execution {id!r}")
        return new_record(self.setup, id, name, input), data

    async def _standing(self, record: Record) -> Any:
        """Return what an execution that cannot be run now has come to."""
        if record.status == "finished":
            return await self._load(record, [], record.step)
        return Paused(record.id, record.step - 1, "parked" if record.status in PARKED else "busy")

    def _compare(self, record: Record, new: Record, input: Any) -> None:
        """Refuse an id that belongs to another workflow or has another input; five methods know neither."""
        if self.setup.is_five:
            return
        if record.workflow != new.workflow:
            raise IdInUse(record.id, "workflow")
        recorded, given = records.state_of(record).input, records.state_of(new).input
        if input is not None and None not in {recorded, given} and recorded != given:
            raise IdInUse(record.id, "input")

    def _find(self, record: Record) -> Workflow[Any]:
        """Return the workflow that an execution was started with."""
        try:
            return self.setup.workflows[record.workflow]
        except KeyError:
            raise UnknownWorkflow(record.id, record.workflow, ", ".join(self.setup.workflows)) from None

    async def _known(self, id: str) -> Record:
        """Return the record of an execution."""
        record, _ = await settle(self.setup.journal.read(check_id(id)))
        if record is None or record.status == "making":
            raise UnknownExecution(id)
        records.state_of(record)  # what is damaged is refused
        return record

    async def _change(self, known: Record | None, id: str, change: Callable[[Record | None], Record | None]) -> Record:
        """Apply a change of the record alone, and return the record as it stands then."""

        def changed(record: Record | None, _: Since) -> Changed:
            new = change(record)
            return new and (new, ())

        record = await self.setup.journal.update(id, known, changed)
        assert record is not None
        return record

    async def _load(self, record: Record, page: _Entries, place: int) -> Any:
        """Return the value at a place of the log."""
        log = Log(self.setup.journal, record, page, place + 1)
        return self.setup.journal.codec.loads((await log.take(place))[1].pop())
