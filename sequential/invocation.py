"""One invocation of an execution: claim, replay, perform, commit, ring.

It begins when the lease is taken, and ends when the workflow does, when nothing is left but to wait, when the budget
is spent, or by an error.  Whatever happens to it in between, the record and the log in the store tell the next one
where to go on.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NoReturn

from . import hooks
from . import record as records
from .blocking import CannotWait, is_async, running_loop, settle
from .branches import CANCEL, END, Branch, Branches, Raised
from .calls import INTERRUPTED, Call, Unstorable
from .codec import decode_json, encode_json
from .context import Current, ends_at
from .errors import Cancelled, Damaged, Diverged, Fenced, IdInUse, NotEncodable, SequentialError, describe, notes_of
from .journal import Log
from .lease import Lease
from .owner import describe_process, is_dead
from .record import GRACE, INPUT, LAST, Answers, Changed, Entry, Hold, Record, Signal, Since, State
from .requests import Anew, Save, Sleep, Tool, Wait
from .setup import Paused, Reason, Setup
from .workflow import Workflow

_BRANCH = '{"branch":'
"""How an entry begins that answers another branch than 0."""

ABOUT_INPUT = '{"asked":"input"}'
ABOUT_VALUE = '{"asked":"return"}'


def new_record(setup: Setup, id: str, workflow: str, input: Any) -> Record:
    """Return the record with which an execution begins, held by nobody.

    Args:
        setup: What the executor was given.
        id: The execution's id.
        workflow: The workflow's name.
        input: Its input.
    """
    now = setup.clock()
    state = State(errors=setup.errors, version=setup.version, started=now, input=setup.fingerprint(input))
    return Record(id, records.nonce(), "", 0, workflow, "running", now + GRACE, now, records.state_text(state))


async def claim(
    setup: Setup,
    id: str,
    find: Callable[[Record], Workflow[Any]],
    *,
    create: tuple[Record, bytes] | None = None,
    run: str | None = None,
    step: int = 0,
    take_parked: bool = False,
) -> tuple[Record | None, Invocation | None]:
    """Take the lease of an execution, or create it with its lease taken.

    Args:
        setup: What the executor was given.
        id: The execution's id.
        find: Returns the workflow of a record, or raises why it must not run.
        create: The record, and the encoded input, to create it with if there is none.
        run: The run that a callback rang for.
        step: The step that it rang for.
        take_parked: Whether to take up what is parked.

    Returns:
        The record as it stands (``None``: there is none), and the invocation to be run, if the lease could be had.
    """
    now, hold = setup.clock(), Hold(id, "", records.nonce(), describe_process(), setup.lease)
    known, page = await settle(setup.journal.read(id, (INPUT, 0), LAST))

    def change(stored: Record | None, _: Since) -> Changed:
        if create is not None and records.is_new(stored, create[0], setup.lease):
            new, data = create
            state = records.state_of(new)._replace(holder=hold.holder, owner=hold.owner, **hold.until(now))
            return new._replace(state=records.state_text(state)), [Entry(new.run, INPUT, 0, ABOUT_INPUT, data)]
        if stored is None:
            return None
        taken = records.claimed(stored, hold._replace(run=stored.run), now, is_dead, run, step, take_parked)
        if taken is not None:
            find(stored)
        return taken and (taken, ())

    try:
        # A power cut may undo the taking of a lease, at no harm, but not an execution once begun.
        record = await setup.journal.update(id, known, change, flush=known is None)
    except BaseException as error:
        if not isinstance(error, (Exception, GeneratorExit)):  # a stop, and the lease may be taken
            with suppress(Exception):
                known, _ = await settle(setup.journal.read(id))
                await setup.journal.update(id, known, _giving_back(hold, now, None))
        raise
    if record is None or not records.is_holder(record, hold := hold._replace(run=record.run)):
        return record, None
    if known is None or known.run != record.run:
        page = []
    return record, Invocation(setup, record, hold, find(record), page, create and create[1])


class Invocation:
    """One invocation of an execution whose lease was taken.

    Args:
        setup: What the executor was given.
        record: The record as it was claimed.
        hold: How it was claimed.
        workflow: The execution's workflow.
        page: The input and the first entries of the log, where they were read with the record.
        input: The encoded input, where the caller has brought it.
    """

    def __init__(  # noqa: PLR0917 - what `claim` has found
        self, setup: Setup, record: Record, hold: Hold, workflow: Workflow[Any], page: list[Entry], input: bytes | None
    ) -> None:
        self._setup, self._hold, self._workflow = setup, hold, workflow
        self._journal, self._tell = setup.journal, setup.observer.tell
        self._page, self._input = page, input
        self.record, self._state = record, records.state_of(record)
        """The record as this invocation knows it, and its state."""
        seconds = 0.0 if setup.is_five else setup.lease
        self._lease = Lease(self._renew, seconds, not is_async(setup.journal.write))
        self._left = frozenset(self._state.once)
        """The ``once`` calls that an earlier invocation has begun, and that nobody knows the end of."""
        self._performed = False
        """Whether calls were performed."""
        self._spent: Reason = "tool"
        """Why it ends when its time is up."""
        self._deadline = 0.0
        """When that is, in seconds since the epoch."""
        self._tree = Branches("", None, False)

    async def run(self, budget: float) -> Any:
        """Replay, then perform and commit until the budget is spent, and ring; or finish.

        Args:
            budget: Seconds for which to go on with the next step.

        Returns:
            What `FlowExecutor.resume` returns.

        Raises:
            Exception: As from `FlowExecutor.resume`.
        """
        try:
            self._tell("claimed", self.record)
            self._spent = "budget" if budget else "tool"
            self._deadline = min(self._setup.clock() + budget, ends_at.get())
            return await self._go_on()
        except GeneratorExit:
            raise  # nothing can be awaited any more; the lease will end by itself
        except BaseException as error:
            if isinstance(error, Fenced) and error.id == self.record.id:
                self._tell("fenced", self.record, error=error)
            await self.release(error)
            raise
        finally:
            self._lease.end()

    async def _go_on(self) -> Any:
        """Answer what costs nothing, then perform what is asked for, and so on to the end or to a pause."""
        await self._replay()
        while True:
            tree, done = self._tree, None
            if isinstance(tree.ended, Raised):
                return await self._fail(tree.ended.error)
            if tree.ended is not None:
                if not isinstance(tree.ended.value, Anew):
                    return await self._finish(tree.ended.value)
                done = await self._begin_anew(tree.ended.value["__again"])
            elif self._state.cancel == "asked":
                await self._end(CANCEL, is_cancel=True)
            elif tree.decided is not None:
                await self._end(END)
            elif not ((self._left or tree.rests) and await self._answer_free()):
                if tree.calls and not (self._performed and self._is_spent()):
                    done = await self._perform(list(tree.calls.values()))
                else:
                    done = await self._leave(self._spent if tree.calls else None)
            if done is not None:
                return done

    def _is_spent(self) -> bool:
        return self._setup.clock() >= self._deadline

    # Replay.

    async def _replay(self) -> None:
        """Begin a fresh workflow, and send the log into it."""
        setup, record, state = self._setup, self.record, self._state
        log, self._page = Log(self._journal, record, self._page, record.step), []
        errors, version = (setup.errors, None) if setup.is_five else (state.errors, state.version)
        self._tree = tree = Branches(f"{record.id}:{record.run}", version, errors == "raise")
        box = [self._input] if setup.is_five and self._input is not None else (await log.take(INPUT))[1]
        tree.begin(self._workflow, self._loaded(box, INPUT), state.started)
        try:
            for place in range(record.step):
                about, box = await log.take(place)
                if isinstance(tree.ended, Raised) or (tree.ended and not about):
                    return
                self._answer_recorded(place, about, box)
        except Diverged as error:
            await self._park("diverged", error)
        self._tell("replayed", record, f"{record.step} steps")

    def _answer_recorded(self, place: int, about: str, box: list[bytes]) -> None:
        """Give an entry of the log to the branch that asked, if that asks for the same now.

        Raises:
            Diverged: When it does not.
        """
        tree, number = self._tree, 0
        if not about:  # five methods do not know what was asked, nor by whom
            number = next(iter(tree.calls or tree.rests))
        elif about.startswith(_BRANCH):
            digits = about[len(_BRANCH) :].partition(",")[0]
            number = int(digits) if digits.isdecimal() else -1
        branch = tree.asking(number)
        if about and (branch is None or not about.startswith(self._beginning(branch))):
            for kind, fits in ((CANCEL, not tree.ended), (END, tree.decided is not None)):
                if fits and about.startswith(f'{{"asked":"{kind}",'):
                    return tree.cancel(kind, about)
            self._explain(place, about, branch)
        return tree.answer(number, self._loaded(box, place), about)

    def _explain(self, place: int, about: str, branch: Branch | None) -> None:
        """Say in what an entry differs from what is asked for now."""
        asking = branch or next(iter((self._tree.calls or self._tree.rests).values()), None)
        asked = _told(asking.asked.label, asking.number) if asking else getattr(self._tree.ended, "label", "")
        if branch is not None and about.startswith(_head(branch)):
            if not self._setup.strict:
                return self._tell("input changed", self.record._replace(step=place), branch.asked.label)
            asked += " with another input"
        try:
            recorded = decode_json(about)
            label = _told(str(recorded["asked"]), recorded.get("branch", 0))
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(self.record.id, place) from error
        raise Diverged(self.record.id, place, label, asked)

    def _beginning(self, branch: Branch) -> str:
        """Return how the entry begins that answers a branch: who asked, for what, and with which input."""
        asked = branch.asked
        if not isinstance(asked, Tool):
            return _head(branch)
        told = self._setup.fingerprint(asked.input)
        return f'{_head(branch)}"fingerprint":{"null" if told is None else told},'

    # What costs nothing.

    async def _answer_free(self) -> bool:
        """Answer one of those whose answer costs nothing, if there is one."""
        for branch in self._tree.calls.values() if self._left else ():
            if branch.mark in self._left:
                await self._answer(branch, {"__error": INTERRUPTED}, f'"error":"{INTERRUPTED}",', once=branch.mark)
                return True
        for signal in self._state.signals:
            for branch in self._tree.rests.values():
                if isinstance(branch.asked, Wait) and branch.asked.name == signal.name:
                    _, box = await self._payload(signal)
                    rest = f'"signal":"{signal.nonce}",'
                    entries = [self._entry(0, self._beginning(branch), rest, branch.since, box.pop())]
                    await self._append(branch, entries, signal=signal.nonce)
                    return True
        over = [(at, branch) for at, branch in self._timers() if at <= self._setup.clock()]
        if not over:
            return False
        _, branch = min(over, key=lambda timer: timer[0])
        if isinstance(branch.asked, Wait):
            await self._answer(branch, {"__error": "timeout"}, '"error":"timeout",', is_timeout=True)
        else:
            await self._answer(branch, None, "")
        return True

    async def _payload(self, signal: Signal) -> tuple[str, list[bytes]]:
        return await Log(self._journal, self.record, [], signal.place + 1).take(signal.place)

    async def _answer(self, branch: Branch, value: Any, rest: str, **what: Any) -> None:
        data = self._journal.codec.dumps(value)
        await self._append(branch, [self._entry(0, self._beginning(branch), rest, branch.since, data)], **what)

    async def _end(self, kind: str, **what: Any) -> None:
        """Append the entry that ends a decided list, or the whole workflow."""
        data = self._journal.codec.dumps(None)
        entry = self._entry(0, f'{{"asked":"{kind}",', "", self._setup.clock(), data)
        await self._write(records.answered, self._answers((), 1, **what), entries=[entry])
        self._tell("committed", self.record, kind)
        self._tree.cancel(kind, entry.about)

    # Calls.

    async def _perform(self, branches: list[Branch]) -> Paused | None:
        """Perform calls, at the same time if the hook is ``async``, and commit each as it ends.

        Returns:
            Why this invocation ends with the last of them, if its time is up.
        """
        setup, tree, self._performed = self._setup, self._tree, True
        hook = hooks.find_call(branches[0].asked.label) if setup.call is None else setup.call
        loop = running_loop() if len(branches) > 1 else None
        calls, tasks, done = list[Call](), dict[Any, Call](), None
        try:
            await self._mark(branches)
            for branch in branches:
                if (
                    tree.decided is not None
                    or tree.asking(branch.number) is not branch
                    or self._state.cancel == "asked"
                ):
                    break
                calls.append(call := Call(branch, self._beginning(branch), self._current(branch), setup))
                self._lease.hold(hook)
                try:
                    call.begin(hook)
                finally:
                    self._lease.let_go()
                if loop is not None and (call.outcome is not None or (tasks and setup.is_five)):
                    tasks[loop.create_task(call.finish(call.outcome))] = call
                    continue
                if call.outcome is not None:
                    await call.finish(self._lease.hold_during(call.outcome))
                done = await self._commit(call, branch is branches[-1] and not tasks)
            if tasks:
                done = await self._commit_as_they_end(tasks)
            await self._unmark(branches[len(calls) :], [])
        except BaseException as error:
            await self._abandon(calls, tasks, error)
            if not isinstance(error, GeneratorExit):
                with suppress(Exception):
                    await self._unmark(branches, calls)
            if isinstance(error, Unstorable):
                await self._park("failed", error.error)
            raise
        return done

    async def _mark(self, branches: list[Branch]) -> None:
        """Note which ``once`` calls are about to begin, and which closed names are waited for again."""
        once = [branch.mark for branch in _once(branches)]
        if once or (self._tree.rests and not set(self._waits()).isdisjoint(self._state.closed)):
            await self._write(records.marked, once, self._waits())

    async def _commit_as_they_end(self, tasks: dict[Any, Call]) -> Paused | None:
        """Commit what tasks of the running loop come to; an error of ours is raised when all have ended."""
        bell, ended, done, failure = sys.modules["asyncio"].Event(), deque[Any](), None, None

        def ring(task: Any) -> None:
            ended.append(task)
            bell.set()

        waiting = iter(tasks)
        for task in islice(waiting, 1) if self._setup.is_five else waiting:  # five methods have but one order for them
            task.add_done_callback(ring)
        for left in reversed(range(len(tasks))):
            while not ended:
                bell.clear()
                await self._lease.hold_during(bell.wait())
            call = tasks[task := ended.popleft()]
            for following in islice(waiting, 1):
                following.add_done_callback(ring)
            try:
                await task
            except (SequentialError, Unstorable) as error:
                failure = failure or error
                continue
            is_kept = failure is None or not self._setup.is_five
            if is_kept and self._tree.asking(call.branch.number) is call.branch:
                done = await self._commit(call, left == 0 and failure is None)
        if failure is not None:
            raise failure
        return done

    async def _abandon(self, calls: list[Call], tasks: Collection[Any], error: BaseException) -> None:
        """Cancel what runs, and call off what has not begun to."""
        for task in tasks:
            task.cancel()
        if tasks and not isinstance(error, (GeneratorExit, CannotWait)):
            await sys.modules["asyncio"].gather(*tasks, return_exceptions=True)
        for call in calls:
            call.call_off()

    async def _unmark(self, branches: list[Branch], calls: list[Call]) -> None:
        """Take back the marks of ``once`` calls of which nothing was started."""
        begun = [call.branch for call in calls if call.is_begun]
        marks = [branch.mark for branch in _once(branches) if branch not in begun]
        if marks:
            await self._write(records.unmarked, marks)

    async def _renew(self) -> None:
        """Prolong the lease."""
        await self._write(records.renewed, flush=False)

    # What is written.

    async def _commit(self, call: Call, is_last: bool) -> Paused | None:
        """Append what a call has come to, and pause if it is the last one and the time is up."""
        branch, rest = call.branch, ""
        if call.error is not None:
            rest = f'"error":{encode_json(type(call.error).__name__)},'
        if self._setup.observer.listens or call.error is not None:
            self._tell("called", self.record, call.request.label, call.error)
            call.error = None  # it holds the tool's frames, and by way of them this call
        entries, call.data = [self._entry(0, call.beginning, rest, call.started, call.data)], b""
        once = branch.mark if call.request.once else ""
        if is_last and self._is_spent():
            return await self._leave(self._spent, [branch], entries, once=once)
        await self._append(branch, entries, once=once)
        return None

    async def _append(self, branch: Branch, entries: list[Entry], **what: Any) -> None:
        """Append an answer to the log, and move on who asked; the entry, alone in a list, is given up."""
        before = self.record
        await self._write(records.answered, self._answers([branch], 1, **what), entries=entries)
        if self.record.step == before.step:
            return  # a signal has come in place of the timeout
        if self._setup.observer.listens:
            self._tell("committed", self.record, branch.asked.label)
        about, box = entries[0].about, [entries.pop().data]
        self._tree.answer(branch.number, self._loaded(box, before.step), about)

    def _answers(self, branches: Collection[Branch], count: int, **what: Any) -> Answers:
        """Return what is appended to the log: answers to branches, or what ends them all."""
        step, rests = self.record.step + count, self._tree.rests
        if not rests:
            return Answers(step, **what)
        ended = [branch.asked.name for branch in branches or rests.values() if isinstance(branch.asked, Wait)]
        return Answers(step, self._waits(branches) if branches else (), ended, **what)

    async def _leave(
        self, reason: Reason | None, branches: Sequence[Branch] = (), entries: Sequence[Entry] = (), **what: Any
    ) -> Paused | None:
        """Leave the workflow, append the last answers, give the lease back and ring.

        Args:
            reason: Why; ``None``: nothing is left to be performed.
            branches: Who is answered.
            entries: The answers.
            what: As for `Answers`.

        Returns:
            What `run` returns, or ``None`` if somebody has left a mark that is to be looked at first.
        """
        before, now, entries = self.record, self._setup.clock(), list(entries)
        status, waits = "running", list[str]()
        due: float | None = now + GRACE
        if reason is None:
            reason, data = "save", self._journal.codec.dumps(None)
            branches = [branch for branch in self._tree.rests.values() if isinstance(branch.asked, Save)]
            entries = [self._entry(i, _head(branch), "", now, data) for i, branch in enumerate(branches)]
            if not branches:
                waits, wakes = self._waits(), [at for at, _ in self._timers()]
                status, reason = ("waiting", "wait") if waits else ("sleeping", "sleep")
                due = min(wakes, default=None)
        answers = self._answers(branches, len(entries), **what) if entries else None
        failure = self._tree.close()
        if isinstance(failure, Exception):
            ends = self._setup.kept_until(now)
            await self._write(records.parked, "failed", describe(failure), answers, ends, entries=entries)
        else:
            await self._write(records.paused, status, due, waits, answers, entries=entries)
        if records.is_holder(self.record, self._hold):
            await self._replay()
            return None
        if self._state.holder != self._hold.holder:  # the answer was lost, and another has claimed it since
            return Paused(before.id, self.record.step - 1, "busy")
        for step, branch in enumerate(branches, before.step + 1):
            self._tell("committed", self.record._replace(step=step), branch.asked.label)
        if failure is not None:
            self._tell(self.record.status, self.record, error=failure)
            raise failure
        self._tell("paused", self.record, reason)
        if reason not in {"sleep", "wait"}:
            await self._setup.ring(self.record)
        return Paused(before.id, self.record.step - 1, reason)

    async def _begin_anew(self, input: Any) -> Paused | None:
        """Begin the next run in place of this one, and pause if the time is up."""
        setup, before, run = self._setup, self.record, records.nonce()
        data = await self._encode(input, f"the next input of execution {before.id!r}")
        while self.record.run == before.run:  # another signal may come meanwhile
            signals, entries = self._state.signals, [Entry(run, INPUT, 0, ABOUT_INPUT, data)]
            for signal in signals:
                about, box = await self._payload(signal)
                entries.append(Entry(run, signal.place, 0, about, box.pop()))
            await self._write(records.begun_anew, run, signals, setup.version, entries=entries)
        self._hold, self._left, self._performed = self._hold._replace(run=run), frozenset(), False
        self._tell("restarted", self.record)
        await self._replay()
        return await self._leave("budget") if self._is_spent() else None

    async def _finish(self, value: Any) -> Any:
        """Delete the execution, or keep it with its value, and return the value."""
        hold, before = self._hold, self.record
        if self._setup.retain is False:

            def change(stored: Record | None, since: Since) -> Changed:
                return (None, ()) if records.is_to_be_removed(stored, since, hold) else None

            await self._journal.update(before.id, before, change)
        else:
            data = await self._encode(value, f"the final value of execution {before.id!r}")
            entry = Entry(before.run, before.step, 0, ABOUT_VALUE, data)
            await self._conclude("finished", entries=[entry])
            value = self._journal.codec.loads(data)  # what whoever asks later gets
        self._tell("finished", self.record)
        return value

    async def _fail(self, error: BaseException) -> None:
        """Park the execution, or end it as cancelled."""
        if not isinstance(error, Cancelled):
            await self._park("failed", error)
        await self._conclude("cancelled", notes_of(error))
        self._tell("cancelled", self.record, error=error)

    async def _conclude(self, status: str, error: str = "", entries: Sequence[Entry] = ()) -> None:
        """End the execution, and keep its record."""
        due = self._setup.kept_until(self._setup.clock())
        await self._write(records.finished, status, due, error, entries=entries)

    async def _encode(self, value: Any, whose: str) -> bytes:
        """Encode what the workflow has returned, or park the execution as failed."""
        try:
            return self._setup.encode(value, whose)
        except NotEncodable as error:
            await self._park("failed", error)

    async def _park(self, status: str, error: BaseException) -> NoReturn:
        """Keep the execution as it stands, out of the sweep's way, and raise `error`."""
        self._tree.close()
        due = self._setup.kept_until(self._setup.clock())
        await self._write(records.parked, status, describe(error), None, due)
        self._tell(self.record.status, self.record, error=error)
        raise error

    async def release(self, error: BaseException) -> None:
        """Give the lease back without progress, if it is still ours and the store still there.

        Args:
            error: What has come in between.
        """
        self._tree.close()
        # Neither a stop nor a mistake of the caller's tells anything about the execution.
        reason = None if isinstance(error, IdInUse) or not isinstance(error, Exception) else describe(error)
        if records.is_holder(self.record, self._hold):
            with suppress(Exception):
                change = _giving_back(self._hold, self._setup.clock(), reason)
                self.record = await self._journal.update(self.record.id, self.record, change) or self.record
                self._tell("released", self.record, error=error)

    async def _write(
        self, change: Callable[..., Record | None], *values: Any, entries: Sequence[Entry] = (), flush: bool = True
    ) -> None:
        """Apply a change of the holder's to the record, which is written with `entries`."""
        hold, now = self._hold, self._setup.clock()

        def changed(stored: Record | None, since: Since) -> Changed:
            new = change(stored, since, hold, now, *values)
            return new and (new, entries)

        record = await self._journal.update(hold.id, self.record, changed, flush=flush)
        self.record = record or self.record._replace(state=records.state_text(State()))  # it is gone
        self._state = records.state_of(self.record)

    def _loaded(self, box: list[bytes], place: int) -> Any:
        """Decode a value, which is given up at that."""
        try:
            return self._journal.codec.loads(box.pop())
        except Exception as error:
            raise Damaged(self.record.id, place) from error

    # What the tree asks for.

    def _current(self, branch: Branch) -> Current:
        """Return what a tool may know about a call."""
        id, run, step = self.record.id, self.record.run, self.record.step
        return Current(id, run, step, f"{id}:{run}:{branch.mark if branch.number else branch.count}")

    def _entry(self, index: int, beginning: str, rest: str, started: float, data: bytes) -> Entry:
        """Return an entry of the log, one of several to be appended."""
        about = f'{beginning}{rest}"started":{started!r},"ended":{self._setup.clock()!r}}}'
        return Entry(self.record.run, self.record.step + index, 0, about, data)

    def _waits(self, but: Collection[Branch] = ()) -> list[str]:
        """Return the names of the signals that are waited for, apart from some branches."""
        resting = self._tree.rests.values()
        return [branch.asked.name for branch in resting if isinstance(branch.asked, Wait) and branch not in but]

    def _timers(self) -> list[tuple[float, Branch]]:
        """Return when sleeps and timeouts are over."""
        return [
            (branch.since + branch.asked.seconds, branch)
            for branch in self._tree.rests.values()
            if isinstance(branch.asked, (Sleep, Wait)) and branch.asked.seconds is not None
        ]


def _giving_back(hold: Hold, now: float, error: str | None) -> Callable[[Record | None, Since], Changed]:
    """Return the change that gives a lease back, in whichever run: who was stopped does not know what was written."""

    def change(stored: Record | None, since: Since) -> Changed:
        new = records.released(stored, since, hold._replace(run=stored.run) if stored else hold, now, error)
        return new and (new, ())

    return change


def _once(branches: Collection[Branch]) -> list[Branch]:
    """Return those that ask for a call with ``once=True``."""
    return [branch for branch in branches if isinstance(branch.asked, Tool) and branch.asked.once]


def _told(label: str, number: int) -> str:
    """Return what a branch asks for, as people are told."""
    return f"{label} (branch {number})" if number else label


def _head(branch: Branch) -> str:
    """Return how an entry begins that answers a branch, apart from the input."""
    beginning = branch.asked.beginning
    return f"{_BRANCH}{branch.number},{beginning}" if branch.number else f"{{{beginning}"
