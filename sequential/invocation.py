"""One invocation of an execution: replay, perform, commit, ring.

It begins when the lease is taken, and ends when the workflow does, when its budget is spent, or by an error.
Whatever happens to it in between, the record in the store tells the next one where to go on.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from . import hooks
from .codec import fingerprint
from .context import being_called
from .errors import Diverged, Fenced, NotEncodable, SequentialError, message_of
from .lease import Lease
from .observe import Observer
from .requests import Return, Save, Tool
from .storage import Journal, Maybe, Record, Result, settle
from .workflow import Progress, Raised, Workflow

GRACE = 30.0
"""Seconds after a pause by which the callback should have come: above any cold start, below human patience."""


class Paused(dict[str, Any]):
    """What ``execute`` and ``resume`` return when the workflow has not ended: ``{"paused": id, "step": n}``.

    Args:
        id: The execution's id.
        step: The index of the last step performed; -1 before the first.
        reason: Why it paused: ``"tool"``, ``"save"``, ``"budget"``, or ``"busy"`` when another invocation
            holds the lease and nothing was run.
    """

    __slots__ = ("reason",)

    def __init__(self, id: str, step: int, reason: str) -> None:
        super().__init__(paused=id, step=step)
        self.reason = reason


class Setup(NamedTuple):
    """What an executor was given."""

    journal: Journal
    call: hooks.Call | None
    resume: hooks.Resume | None
    budget: float
    lease: float
    retain: bool
    version: int
    observer: Observer
    clock: Callable[[], float]

    def encode(self, value: Any, whose: str) -> bytes:
        """Return `value` as bytes; `whose` it is, is said when the codec refuses it."""
        try:
            return self.journal.codec.dumps(value)
        except Exception as error:
            raise NotEncodable(whose, message_of(error)) from error

    async def ring(self, record: Record) -> None:
        """Ring for the next invocation; should that fail, the sweep rings again."""
        ring = hooks.find_resume() if self.resume is None else self.resume
        if ring is None:
            return
        try:
            await settle(ring(record.id))
        except Exception as error:
            self.observer.tell("ring failed", record, "the sweep will ring again", error)
        else:
            self.observer.tell("rang", record)


class Invocation:
    """One invocation of an execution whose lease was taken.

    Args:
        setup: What the executor was given.
        record: The record as it was claimed.
    """

    __slots__ = ("_codec", "_journal", "_lease", "_progress", "_record", "_setup", "_tell")

    def __init__(self, setup: Setup, record: Record) -> None:
        self._setup, self._record = setup, record
        self._journal, self._codec, self._tell = setup.journal, setup.journal.codec, setup.observer.tell
        self._lease = Lease(self._renew, setup.lease)
        self._progress = Progress(record.version)

    async def run(self, find: Callable[[Record], Workflow[Any]]) -> Any:
        """Replay, then perform and commit until the budget is spent, and ring; or finish.

        Args:
            find: Returns the workflow of a record, or raises why it must not run.
        """
        try:
            self._tell("claimed", self._record)
            deadline = self._setup.clock() + self._setup.budget
            self._progress.begin(find(self._record), self._codec.loads(self._record.input))
            request = await self._replay()
            while isinstance(request, (Tool, Save)):
                page = [await self._perform(request)]
                reason = "save" if isinstance(request, Save) else self._time_is_up(deadline)
                await self._commit(page[0], reason)
                if reason:
                    await self._setup.ring(self._record)
                    return Paused(self._record.id, self._record.step - 1, reason)
                request = self._send(page)
            if isinstance(request, Raised):
                await self._park("failed", request.error)
            return await self._finish(request.value)
        except GeneratorExit:
            raise  # nothing can be awaited any more; the lease will end by itself
        except BaseException as error:
            if isinstance(error, Fenced) and error.id == self._record.id:
                self._tell("fenced", self._record, error=error)
            await self._release()
            raise
        finally:
            self._lease.end()

    async def _replay(self) -> Tool | Save | Return | Raised:
        """Send the saved results into the fresh workflow, page by page, and return what it asks for then."""
        record, step, listens = self._record, 0, self._setup.observer.listens
        advance, loads = self._progress.advance, self._codec.loads
        request = advance()
        while step < record.step:
            page = await settle(self._journal.results(record, step, record.step, True))
            page.reverse()
            while page:
                asked = page[-1].asked
                if asked != request.label:
                    if isinstance(request, Raised) or (isinstance(request, Return) and not asked):
                        return request
                    if asked:  # a storage of five methods does not know what was
                        await self._park("diverged", Diverged(record.id, step, asked, request.label))
                if listens:
                    self._compare(request, step, page[-1].fingerprint)
                request = advance(loads(page.pop().data))
                step += 1
        self._tell("replayed", record, f"{step} steps")
        return request

    def _compare(self, request: Tool | Save | Return | Raised, step: int, checksum: int | None) -> None:
        """Tell when a tool is asked for with another input than the one its result was recorded for."""
        if checksum is not None and isinstance(request, Tool) and fingerprint(request.input) != checksum:
            self._tell("input changed", self._record._replace(step=step), request.label)

    def _send(self, page: list[Result]) -> Tool | Save | Return | Raised:
        """Send the last result of `page` into the workflow; the page gives it up, so that it is held only once."""
        return self._progress.advance(self._codec.loads(page.pop().data))

    async def _perform(self, request: Tool | Save) -> Result:
        """Call the tool and return its result, or its error as a value."""
        record, clock = self._record, self._setup.clock
        started = clock()
        if isinstance(request, Save):
            return Result(record.step, request.label, None, self._codec.dumps(None), started, started)
        if record.lease and record.lease - started < self._setup.lease * 2 / 3:
            # Replay, or the workflow itself, took so long that the first renewal might come too late.
            record = record._replace(lease=started + self._setup.lease)
            await self._write(record)
        call = hooks.find_call(request.label) if self._setup.call is None else self._setup.call
        checksum, error = fingerprint(request.input), None
        token = being_called.set(record)
        self._lease.hold(record, call)
        try:
            box = [call(request.category, request.name, _copied(request.input))]
            if hasattr(box[0], "__await__"):
                box = [await self._lease.hold_during(box.pop(), record)]
        except SequentialError:
            raise
        except Exception as raised:
            box, error = [{"__error": message_of(raised)}], type(raised).__name__
        finally:
            self._lease.let_go()
            being_called.reset(token)
        self._tell("called", record, request.label)
        try:
            data = self._codec.dumps(box.pop())
        except Exception as refused:
            whose = f"the result of {request.label} (step {record.step} of execution {record.id!r})"
            raise NotEncodable(whose, message_of(refused)) from refused
        return Result(record.step, request.label, checksum, data, started, clock(), error)

    def _time_is_up(self, deadline: float) -> str:
        """Return why to pause after a tool call, or nothing."""
        if self._setup.clock() < deadline:
            return ""
        return "budget" if self._setup.budget else "tool"

    async def _commit(self, result: Result, reason: str) -> None:
        """Write the result and the record; at a pause, leave the workflow first and give the lease back."""
        old, now = self._record, self._setup.clock()
        due, lease = (now + GRACE, 0.0) if reason else (old.due, old.lease and now + self._setup.lease)
        # Spelled out, because _replace would take as long as all the rest of this method.
        record = Record(
            old.id, old.run, old.token + 1, old.step + 1, "running", old.workflow, old.input, old.version, due, lease
        )
        failure = self._progress.close() if reason else None
        if isinstance(failure, Exception):
            record = _parked(record, "failed", failure)
        written = self._journal.commit(record, old.token, result)
        if written is not None:
            await written
        self._record = record
        self._tell("committed", record, result.asked)
        if failure is not None:
            self._tell(record.status, record, error=failure)
            raise failure
        if reason:
            self._tell("paused", record, reason)

    async def _finish(self, value: Any) -> Any:
        """Delete the execution, or keep it with its value, and return the value."""
        record, now = self._record, self._setup.clock()
        if self._setup.retain:
            try:
                data = self._setup.encode(value, f"the final value of execution {record.id!r}")
            except NotEncodable as error:
                await self._park("failed", error)
            finished = record._replace(token=record.token + 1, status="finished", due=None, lease=0.0, error=None)
            await self._write(finished, Result(record.step, "return", None, data, now, now))
            value = self._codec.loads(data)  # what whoever asks later gets
        else:
            await settle(self._journal.remove(record.id, record))
        self._tell("finished", record)
        return value

    async def _park(self, status: str, error: Exception) -> NoReturn:
        """Keep the execution as it stands, out of the sweep's way, and raise `error`."""
        self._progress.close()
        await self._write(_parked(self._record._replace(token=self._record.token + 1), status, error))
        self._tell(status, self._record, error=error)
        raise error

    async def _release(self) -> None:
        """Give the lease back without progress, if it is still ours and the store still there."""
        self._progress.close()
        if self._record.lease:
            with suppress(Exception):
                await self._write(self._record._replace(token=self._record.token + 1, lease=0.0))

    async def _write(self, record: Record, result: Result | None = None) -> None:
        await settle(self._journal.commit(record, self._record.token, result))
        self._record = record

    def _renew(self, record: Record) -> Maybe[None]:
        """Prolong the lease under the same token: after the next commit, this is refused."""
        return self._journal.commit(record._replace(lease=self._setup.clock() + self._setup.lease), record.token)


def _copied(input: Any) -> Any:
    """Return an input that a tool may change: the workflow keeps its own, as it will on replay."""
    if isinstance(input, dict):
        return {key: _copied(value) for key, value in input.items()}
    if isinstance(input, list):
        return [_copied(value) for value in input]
    return input


def _parked(record: Record, status: str, error: Exception) -> Record:
    reason = f"{type(error).__name__}: {message_of(error)}"
    return record._replace(status=status, due=None, lease=0.0, attempts=0, error=reason)
