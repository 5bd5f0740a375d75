"""One invocation of an execution: replay, perform, commit, ring.

It begins when the lease is taken, and ends when the workflow does, when it is to wait, when the budget is spent, or
by an error.  Whatever happens to it in between, the record in the store tells the next one where to go on.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from .calls import Caller
from .codec import fingerprint
from .context import ends_at
from .errors import Diverged, Fenced, IdInUse, NotEncodable, describe
from .lease import LARGE, Lease
from .requests import Again, Gather, Return, Save, Sleep, Step, Tool, Wait
from .setup import GRACE, Paused, Setup
from .storage import FRESH, Maybe, Record, Result, as_record, new_run, page_of, settle
from .workflow import Progress, Raised, Workflow


class Invocation:
    """One invocation of an execution whose lease was taken.

    Args:
        setup: What the executor was given.
        record: The record as it was claimed.
        find: Returns the workflow of a record, or raises why it must not run.
    """

    __slots__ = ("_ahead", "_caller", "_find", "_journal", "_lease", "_progress", "_record", "_setup", "_tell")

    def __init__(self, setup: Setup, record: Record, find: Callable[[Record], Workflow[Any]]) -> None:
        self._setup, self._record, self._find = setup, record, find
        self._journal, self._tell = setup.journal, setup.observer.tell
        self._lease = Lease(self._renew, setup.lease)
        self._caller = Caller(setup, self._lease)
        self._progress = Progress(record)
        self._ahead = record.token > 1
        """Whether an earlier invocation may have saved results beyond the record's step."""

    async def run(self) -> Any:
        """Replay, then perform and commit until the budget is spent, and ring; or finish.

        Returns:
            What `FlowExecutor.resume` returns.

        Raises:
            Exception: As from `FlowExecutor.resume`.
        """
        try:
            self._tell("claimed", self._record)
            return await self._go_on(self._find(self._record))
        except GeneratorExit:
            raise  # nothing can be awaited any more; the lease will end by itself
        except BaseException as error:
            if isinstance(error, Fenced) and error.id == self._record.id:
                self._tell("fenced", self._record, error=error)
            await self.release(error)
            raise
        finally:
            self._lease.end()

    async def _go_on(self, workflow: Workflow[Any]) -> Any:
        """Do one step after the other, and one round after the other, to the end or to a pause."""
        deadline = min(self._setup.clock() + self._setup.budget, ends_at.get())
        while True:
            self._progress.begin(workflow, self._journal.codec.loads(self._record.input))
            request = await self._replay()
            while not isinstance(request, (Return, Raised)):
                done = await self._perform(request)
                if isinstance(done, Record):
                    return await self._rest(done)
                page, result = done
                if (paused := await self._commit(request, page, result, deadline)) is not None:
                    return paused
                del done, result  # the page gives it up when it is sent
                request = self._send(request, page)
            if isinstance(request, Raised):
                await self._park("failed", request.error)
            if not isinstance(request, Again):
                return await self._finish(request.value)
            if (paused := await self._restart(request.value, deadline)) is not None:
                return paused

    async def _replay(self) -> Step | Return | Raised:
        """Send the saved results into the fresh workflow, page by page, and return what it asks for then."""
        record, step, listens = self._record, 0, self._setup.observer.listens
        advance, loads = self._progress.advance, self._journal.codec.loads
        request, page = advance(), list[Result]()
        while step < record.step:
            page = page or await self._page(step)
            asked = page[-1].asked
            if asked != request.label:
                if isinstance(request, Gather):
                    saved: list[Result] = []
                    for each in request.tools[: record.step - step]:
                        page = page or await self._page(step + len(saved))
                        await self._check(each, page[-1])
                        saved.append(page.pop())
                    if len(saved) < len(request.tools):  # a fork in the midst of it, or it has become longer
                        self._record, self._ahead = record._replace(step=step), record.lease > 0
                        return request
                    step += len(saved)
                    saved.reverse()
                    request = self._send(request, saved)
                    continue
                if isinstance(request, Raised) or (isinstance(request, Return) and not asked):
                    return request
                await self._check(request, page[-1])
            elif listens:
                await self._check(request, page[-1])
            request = advance(loads(page.pop().data))
            step += 1
        self._tell("replayed", record, f"{step} steps")
        return request

    async def _page(self, step: int) -> list[Result]:
        """Read a page of results, the last one first."""
        page = await page_of(self._journal, self._record, step, self._record.step, True)
        self._progress.enter()
        page.reverse()
        return page

    async def _check(self, request: Step | Return | Raised, saved: Result) -> None:
        """Park the execution if it asks for something else than was recorded; tell if with another input."""
        # A storage of five methods does not know what was asked.
        if saved.asked and saved.asked != request.label:
            await self._park("diverged", Diverged(self._record.id, saved.step, saved.asked, request.label))
        if not (self._setup.observer.listens and isinstance(request, Tool)):
            return
        if saved.fingerprint not in {None, fingerprint(request.input)}:
            self._tell("input changed", self._record._replace(step=saved.step), request.label)

    def _send(self, request: Step, page: list[Result]) -> Step | Return | Raised:
        """Send results, the last one first, into the workflow; the page gives them up, so that each is held once."""
        self._progress.enter()
        if isinstance(request, Gather):
            return self._progress.advance([self._journal.codec.loads(page.pop().data) for _ in request.tools])
        return self._progress.advance(self._journal.codec.loads(page.pop().data))

    async def _perform(self, request: Step) -> tuple[list[Result], Result] | Record:
        """Do what is asked for.

        Returns:
            The results, the last one first, and that of them which is still to be committed; if it is not time yet,
            the record of an execution that waits.
        """
        record, now = self._record, self._setup.clock()
        # With so much of the lease gone, the first renewal during a call might come too late.
        if record.lease and record.lease - now < self._setup.lease * 2 / 3 and isinstance(request, (Tool, Gather)):
            await self._write(record := record._replace(lease=now + self._setup.lease))
        if isinstance(request, Tool):
            found = (await self._saved_ahead([request])).get(record.step) if request.once else None
            result = found or await self._caller.call(request, record)
            return [result], result
        if isinstance(request, Gather):
            steps = dict(enumerate(request.tools, record.step))
            saved = await self._saved_ahead(request.tools)
            missing = {step: tool for step, tool in steps.items() if step not in saved}
            come = await self._caller.call_together(missing, record)
            saved.update((result.step, result) for result in come)
            page = [saved[step] for step in reversed(steps)]
            return page, come[-1] if come else page[0]
        data, error = self._journal.codec.dumps(None), None
        if isinstance(request, Sleep):
            wake = self._wake(now + request.seconds, None)
            if now < wake:
                return record._replace(wake=wake, waits=None)
        elif isinstance(request, Wait):
            payload = await settle(self._journal.received(record, request.name))
            if payload is not None:
                data = payload
            elif request.timeout is None:
                return record._replace(wake=None, waits=request.name)
            else:
                wake = self._wake(now + request.timeout, request.name)
                if now < wake:
                    return record._replace(wake=wake, waits=request.name)
                data, error = self._journal.codec.dumps({"__error": "timeout"}), "timeout"
        result = Result(record.step, request.label, None, data, now, now, error)
        return [result], result

    async def _saved_ahead(self, requests: list[Tool]) -> dict[int, Result]:
        """Return what an earlier invocation has saved of the next steps without committing it, by step."""
        first, saved = self._record.step, dict[int, Result]()
        start, stop = first, first + len(requests)
        while self._ahead and start < stop:
            page = await settle(self._journal.results(self._record, start, stop))
            for result in page:
                if result.asked:
                    await self._check(requests[result.step - first], result)
                    saved[result.step] = result
            start = page[-1].step + 1 if page else stop
        return saved

    async def _commit(self, request: Step, page: list[Result], result: Result, deadline: float) -> Paused | None:
        """Write the result and the record, and pause if the time is up."""
        old, now = self._record, self._setup.clock()
        spent = "" if now < deadline else "budget" if self._setup.budget else "tool"
        reason = "save" if isinstance(request, Save) else spent
        due = now + GRACE if reason or old.due is None else old.due
        lease = 0.0 if reason else old.lease and now + self._setup.lease
        # Not by _replace, which would take as long as all the rest of this method.
        record = as_record((*old[:6], old.token + 1, old.step + len(page), "running", due, lease, *FRESH, now))
        name = request.name if isinstance(request, Wait) else None
        absent, taken = (name, None) if result.error else (None, name)
        try:
            if reason:
                return await self._pause(record, reason, result, absent=absent, taken=taken)
            await self._write(record, result, absent, taken)
        except Fenced:
            data = await settle(self._journal.received(old, absent)) if absent is not None else None
            if data is None:
                raise
            page[0] = result._replace(data=data, error=None)  # the signal came at the moment of the timeout
            return await self._commit(request, page, page[0], deadline)
        return None

    def _wake(self, wake: float, waits: str | None) -> float:
        """Return when to wake up: earlier, if the execution has been at this very request for a while."""
        known = self._record.wake if self._record.waits == waits else None
        return wake if known is None else min(known, wake)

    async def _rest(self, old: Record) -> Paused:
        """Leave the execution alone until its time comes, or its signal."""
        status, reason = ("waiting", "wait") if old.waits else ("sleeping", "sleep")
        due, waits, now = old.wake, old.waits, self._setup.clock()
        resting = Record(*old[:6], old.token + 1, old.step, status, due, wake=due, waits=waits, changed=now)
        try:
            return await self._pause(resting, reason, absent=old.waits)
        except Fenced:
            if old.waits is None or await settle(self._journal.received(old, old.waits)) is None:
                raise
        # The signal came at this very moment, when it saw the lease held and left the ringing to us.
        paused = await self._pause(resting._replace(due=resting.changed), reason)
        await self._setup.ring(self._record)
        return paused

    async def _restart(self, input: Any, deadline: float) -> Paused | None:
        """Begin the next round in place of this one, and pause if the time is up."""
        old, now = self._record, self._setup.clock()
        data = await self._encode(input, f"the next input of execution {old.id!r}")
        first = fingerprint(self._journal.codec.loads(old.input)) if old.first_input is None else old.first_input
        lease = now + self._setup.lease if now < deadline else 0.0
        begun = (old.id, new_run(), old.workflow, data, self._setup.version, first)
        record = Record(*begun, old.token + 1, due=now + GRACE, lease=lease, changed=now)
        await self._lease.hold_over(old, self._journal.restart, record, old)
        self._record, self._ahead, self._progress = record, False, Progress(record)
        self._tell("restarted", record)
        if lease:
            return None
        self._tell("paused", record, "budget")
        await self._setup.ring(record)
        return Paused(record.id, -1, "budget")

    async def _finish(self, value: Any) -> Any:
        """Delete the execution, or keep it with its value, and return the value."""
        record, now = self._record, self._setup.clock()
        if self._setup.retain:
            data = await self._encode(value, f"the final value of execution {record.id!r}")
            finished = Record(*record[:6], record.token + 1, record.step, "finished", changed=now)
            await self._write(finished, Result(record.step, "return", None, data, now, now))
            value = self._journal.codec.loads(data)  # what whoever asks later gets
        else:
            await settle(self._journal.remove(record.id, record))
        self._tell("finished", self._record)
        return value

    async def _encode(self, value: Any, whose: str) -> bytes:
        """Encode what the workflow has returned, or park the execution as failed."""
        try:
            return self._setup.encode(value, whose)
        except NotEncodable as error:
            await self._park("failed", error)

    async def _pause(self, record: Record, reason: str, result: Result | None = None, **signal: str | None) -> Paused:
        """Leave the workflow, write the record that gives the lease back, and ring."""
        failure = self._progress.close()
        if isinstance(failure, Exception):
            record = self._parked(record, "failed", failure)
        await self._write(record, result, **signal)
        if failure is not None:
            self._tell(record.status, record, error=failure)
            raise failure
        self._tell("paused", record, reason)
        if reason not in {"sleep", "wait"}:
            await self._setup.ring(record)
        return Paused(record.id, record.step - 1, reason)

    async def _park(self, status: str, error: Exception) -> NoReturn:
        """Keep the execution as it stands, out of the sweep's way, and raise `error`."""
        self._progress.close()
        await self._write(self._parked(self._record._replace(token=self._record.token + 1), status, error))
        self._tell(status, self._record, error=error)
        raise error

    async def release(self, error: BaseException) -> None:
        """Give the lease back without progress, if it is still ours and the store still there.

        Args:
            error: What has come in between.
        """
        self._progress.close()
        if (record := self._record).lease:
            # A signal that came meanwhile has left the ringing to us: look again soon.
            due = self._setup.clock() + GRACE if record.waits else record.due
            # Neither a stop nor a mistake of the caller's tells anything about the execution.
            silent = isinstance(error, IdInUse) or not isinstance(error, Exception)
            reason = record.error if silent else describe(error)
            with suppress(Exception):
                await self._write(record._replace(token=record.token + 1, due=due, lease=0.0, error=reason))
                self._tell("released", self._record, error=error)

    async def _write(
        self, record: Record, result: Result | None = None, absent: str | None = None, taken: str | None = None
    ) -> None:
        old, commit = self._record, self._journal.commit
        if result is not None and len(result.data) > LARGE:
            await self._lease.hold_over(old, commit, record, old.token, result, absent=absent, taken=taken)
        elif (written := commit(record, old.token, result, absent=absent, taken=taken)) is not None:
            await written
        self._record = record
        if result is not None and self._setup.observer.listens:
            self._tell("committed", record, result.asked)

    def _renew(self, record: Record) -> Maybe[None]:
        """Prolong the lease under the same token: after the next commit, this is refused."""
        return self._journal.commit(record._replace(lease=self._setup.clock() + self._setup.lease), record.token)

    def _parked(self, record: Record, status: str, error: Exception) -> Record:
        parked = record._replace(status=status, due=None, lease=0.0, attempts=0, changed=self._setup.clock())
        return parked._replace(error=describe(error))
