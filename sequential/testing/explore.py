"""Try every order in which the processes around one execution can take turns, and every place to fail.

The core is coroutines over a Journal, so a test can be the scheduler: each operation of the Journal, each call of a
tool and each ring is a place where another may go on, where a process may die, where an answer may be lost, or where a
lease may end.  After each schedule the survivors finish in peace, and what came of it is checked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from ..blocking import complete, settle
from ..context import current
from ..errors import SequentialError, StorageError
from ..executor import FlowExecutor
from ..hooks import Call
from ..journal import Journal
from ..record import ENDED, LAST, PARKED, Entry, Record, state_of
from ..stores.memory import MemoryStorage
from ..workflow import Workflow
from .around import JournalAround
from .fakes import FakeClock

ID = "explored"
"""The execution that all tasks are about."""

Task = str | tuple[str, str, Any] | Callable[[FlowExecutor, str], Coroutine[Any, Any, Any]]
"""``"invoke"``, ``"sweep"`` (and resume what it rings), ``"cancel"``, ``("signal", name, payload)``, or a function."""

_LEASE = 60.0
_ROUNDS = 60
"""Invocations after which an execution that nobody disturbs must have ended."""

_FAULTS = 0.1
"""How likely a fault is at each turn of a random schedule."""

_NONCE = re.compile(r"[0-9a-f]{16}|-\d{5,}")
"""What is drawn at random: two states that differ in nothing else are one."""


class Explored(NamedTuple):
    """What was tried."""

    schedules: int
    states: int
    """Different states of store and tasks, at which the next turn was chosen."""
    ends: int
    """Different states after which the survivors finished."""
    seconds: float


def explore(
    workflow: Workflow[Any],
    input: Any = None,
    *,
    call: Call,
    tasks: Sequence[Task] = ("invoke", "invoke"),
    signals: dict[str, Any] | None = None,
    allowed: Sequence[Any] = (),
    preemptions: int = 2,
    faults: int = 1,
    extra: int = 0,
    seed: int = 0,
    storage: Callable[[], Journal] = MemoryStorage,
    **options: Any,
) -> Explored:
    """Run tasks over one execution in every order, and check that nothing is lost, doubled, wrong or stuck.

    All schedules are tried in which a task is interrupted by another at most `preemptions` times and at most `faults`
    faults happen, where equal states are looked at once; then `extra` random ones without these bounds.

    Args:
        workflow: The workflow; it must be deterministic.
        input: Its input.
        call: Performs its tools, a plain function that answers the same input alike.
        tasks: What happens at the same time, see `Task`.
        signals: The payloads of what it waits for when all tasks have ended, other ones than the tasks send.
        allowed: Values that it may come to beside the one of an undisturbed run: where a signal races with a timeout.
        preemptions: How often a task may be interrupted by another.
        faults: How many deaths, lost answers and leases that end.
        extra: How many random schedules to try beyond that.
        seed: For these.
        storage: Makes an empty Journal, plain.
        options: What else `FlowExecutor` takes.

    Returns:
        How much was tried.

    Raises:
        AssertionError: When a promise is broken; the text says which, and by which schedule.
    """
    began, chance = perf_counter(), random.Random(seed)  # noqa: S311 - a schedule is no secret

    def make() -> _World:
        return _World(workflow, input, call, signals or {}, storage(), options)

    reference = make()
    reference.finish()
    expected = [reference.outcome(), *(("finished", value) for value in allowed)]
    if any(task == "cancel" or callable(task) for task in tasks):
        expected.append(("cancelled", None))
    seen: dict[str, list[tuple[int, int]]] = {}
    ends: set[str] = set()
    schedules, todo = 0, [_Schedule((), preemptions, faults)]
    while todo or extra > 0:
        if todo:
            schedule = todo.pop()
        else:
            schedule, extra = _Schedule((), 10**9, 3, chance), extra - 1
        schedules += 1
        world = make()
        try:
            todo += world.run(tasks, schedule, seen)
            if world.is_over and (end := world.state(-1)) not in ends:
                ends.add(end)
                world.check_log()
                world.finish()
                world.check(expected, tasks)
        except AssertionError as error:
            error.add_note(f"after this schedule: {', '.join(world.told)}")
            raise
        finally:
            world.leave()
    return Explored(schedules, len(seen), len(ends), perf_counter() - began)


class _Turn(NamedTuple):
    """Who goes on, and what goes wrong."""

    task: int
    fault: str
    preempts: bool


class _Schedule(NamedTuple):
    """Which turns to take first, and what may follow."""

    turns: tuple[_Turn, ...]
    preemptions: int
    faults: int
    chance: random.Random | None = None


class _Point:
    """Where a task waits for its turn, to do something."""

    __slots__ = ("do", "what")

    def __init__(self, what: str, do: Callable[[], Any]) -> None:
        self.what, self.do = what, do

    def __await__(self) -> Generator[_Point, Any, Any]:
        return (yield self)


class _Running:
    """A task under way."""

    def __init__(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        self.name, self.work = name, work
        self.seen: list[str] = []
        self.point: _Point | None = _Point("begin", lambda: None)
        self.value: Any = None

    def step(self, fault: str) -> None:
        """Take a turn: do what it waits to do, and let it go on to its next point."""
        assert self.point is not None
        is_new, what, do, self.point = not self.seen, self.point.what, self.point.do, None
        if fault == "dies":
            return
        done = do()
        self.seen.append(fault or _brief(what, done))
        try:
            if fault:
                self.point = self.work.throw(StorageError("the answer was lost"))
            else:
                self.point = self.work.send(None if is_new else done)
        except StopIteration as stop:
            self.value = stop.value
        except Exception as error:
            self.value = error


def _brief(what: str, done: Any) -> str:
    """Tell one outcome of an operation from another."""
    if what == "read":
        record, page = done
        return f"{record and record.stamp} {len(page)}"
    return ",".join(record.stamp for record in done) if what == "due" else repr(done)


class _Watched(JournalAround):
    """A Journal whose every operation is a point, and which sees to it that nobody writes what is not his."""

    def __init__(self, inner: Journal, world: _World) -> None:
        super().__init__(inner)
        self._world = world

    async def around(self, what: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        def do() -> Any:
            done = method(*arguments, **options)
            if what == "write" and done:
                self._world.written(*arguments)
            return done

        return await _Point(what, do)


class _World:
    """One execution, and everything that happens to it in one schedule."""

    def __init__(  # noqa: PLR0917 - what `explore` was given
        self,
        workflow: Workflow[Any],
        input: Any,
        call: Call,
        signals: dict[str, Any],
        storage: Journal,
        options: dict[str, Any],
    ) -> None:
        self._workflow, self._input, self._call, self._signals = workflow, input, call, signals
        self._clock, self._storage = FakeClock(), storage
        options = {"workflows": [workflow], "retain": True, "lease": _LEASE, "clock": self._time, **options}
        self._flow = FlowExecutor(_Watched(storage, self), call=self._perform, resume=self._ring, **options)
        self._calm = FlowExecutor(storage, call=self._perform_now, **options)
        self._tasks: list[_Running] = []
        self._turn: _Running | None = None
        self._holders: dict[str, _Running | None] = {}
        self._log: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._inputs: dict[str, Any] = {}
        self._once: dict[str, int] = {}
        self.told: list[str] = []

    def _time(self) -> float:
        """Return the time as the clock of the task has it that takes its turn: no two agree."""
        return self._clock.now + (0.001 * self._tasks.index(self._turn) if self._turn in self._tasks else 0.0)

    # Tools, rings and what is written.

    async def _perform(self, category: str, name: str, input: Any) -> Any:
        key = current().key
        return await _Point(f"tool {category}.{name}", lambda: self._called(key, category, name, input))

    def _perform_now(self, category: str, name: str, input: Any) -> Any:
        return self._called(current().key, category, name, input)

    def _called(self, key: str, category: str, name: str, input: Any) -> Any:
        assert self._inputs.setdefault(key, (category, name, input)) == (category, name, input), (
            f"key {key} goes with two inputs"
        )
        record, _ = complete(settle(self._storage.read(ID)))
        assert record is not None
        mark = key.removeprefix(f"{record.id}:{record.run}:")
        if (mark if "." in mark else f"0.{mark}") in state_of(record).once:
            self._once[key] = self._once.get(key, 0) + 1
            assert self._once[key] == 1, f"the once call of key {key} was made twice"
        return self._call(category, name, input)

    async def _ring(self, id: str) -> None:
        def do() -> None:
            record, _ = complete(settle(self._storage.read(id)))
            if record is not None and state_of(record).lease:
                holder = self._holders.get(state_of(record).holder)
                assert holder is not self._turn, "the next invocation was rung before the lease was given back"

        await _Point("ring", do)

    def written(self, old: Record | None, new: Record | None, entries: Sequence[Entry] = ()) -> None:
        """Look at what was written: whether it was the writer's to write."""
        before, after = (None if record is None else state_of(record) for record in (old, new))
        self._log.update((entry[:3], entry[3:]) for entry in entries)
        if after is None or (before is not None and before.holder == after.holder):
            is_moved = new is None or (old is not None and (new.step != old.step or new.run != old.run))
            if before is not None and is_moved and before.lease:
                assert self._holders.get(before.holder) is self._turn, "who wrote holds the execution no longer"
        elif after.lease:
            is_free = before is None or not before.lease or self._time() >= before.over
            assert is_free, "a lease was taken that somebody holds"
            self._holders[after.holder] = self._turn
        if old is not None and new is not None and new.run == old.run:
            assert new.step >= old.step, "a step that was recorded is gone"
        for signal in set(before.signals if before else ()) - set(after.signals if after else ()):
            is_taken = any(f'"signal":"{signal.nonce}"' in entry.about for entry in entries)
            assert is_taken or new is None or new.status in ENDED, "a signal that was accepted is gone"

    # Turns.

    @property
    def is_over(self) -> bool:
        """Whether all tasks have ended, or died."""
        return not any(task.point for task in self._tasks)

    def run(
        self, tasks: Sequence[Task], schedule: _Schedule, seen: dict[str, list[tuple[int, int]]]
    ) -> list[_Schedule]:
        """Take the turns of a schedule, then the simplest ones, and return what else could have followed."""
        left, last, more, taken = [schedule.preemptions, schedule.faults], -1, list[_Schedule](), list[_Turn]()
        self._tasks = [_Running(_name(task), self._start(task)) for task in tasks]
        while not self.is_over:
            choices = list(self._choices(last, *left))
            if len(taken) < len(schedule.turns):
                chosen = schedule.turns[len(taken)]
            elif schedule.chance is not None:
                calm = [choice for choice in choices if not choice.fault]
                chosen = schedule.chance.choice(choices if schedule.chance.random() < _FAULTS else calm)
            else:
                known = seen.setdefault(self.state(last), [])
                if any(preemptions >= left[0] and faults >= left[1] for preemptions, faults in known):
                    return more
                known.append((left[0], left[1]))
                chosen, *others = choices
                more += [schedule._replace(turns=(*taken, other)) for other in others]
            left = [left[0] - chosen.preempts, left[1] - bool(chosen.fault)]
            taken.append(chosen)
            if chosen.fault == "late":
                self.told.append("the lease ends")
                self._clock.advance(1.5 * _LEASE)
                continue
            last, self._turn = chosen.task, self._tasks[chosen.task]
            assert self._turn.point is not None
            self.told.append(f"{self._turn.name} {self._turn.point.what} {chosen.fault}".rstrip())
            self._turn.step(chosen.fault)
        return more

    def _choices(self, last: int, preemptions: int, faults: int) -> Iterator[_Turn]:
        """Return who may take the next turn, the simplest first."""
        ready = [index for index, task in enumerate(self._tasks) if task.point]
        if last in ready:
            ready.remove(last)
            ready = [last, *(ready if preemptions else [])]
        preempts = [last >= 0 and self._tasks[last].point is not None and index != last for index in ready]
        for fault in ("", "dies", "lost") if faults else ("",):
            for index, is_preempted in zip(ready, preempts, strict=True):
                point = self._tasks[index].point
                assert point is not None
                if fault != "lost" or point.what == "write":
                    yield _Turn(index, fault, is_preempted)
        if faults:
            yield _Turn(last, "late", False)

    def _start(self, task: Task) -> Coroutine[Any, Any, Any]:
        flow = self._flow
        if task == "invoke":
            return flow.execute(self._workflow, ID, self._input)
        if task == "cancel":
            return flow.cancel(ID)
        if task == "sweep":
            return self._sweep()
        if isinstance(task, tuple):
            return flow.signal(ID, *task[1:])
        if callable(task):
            return task(flow, ID)
        known = "'invoke', 'cancel', 'sweep', ('signal', name, payload) or a function"
        raise ValueError(f"tasks= has {task!r}, which is none: use {known}")

    async def _sweep(self) -> None:
        for id in await self._flow.sweep():
            await self._flow.resume(id)

    def state(self, last: int) -> str:
        """Tell this state of store and tasks from others that differ in more than what was drawn at random."""
        stored = complete(settle(self._storage.read(ID, (-(2**31), 0), LAST)))
        tasks = [(task.seen, task.point and task.point.what) for task in self._tasks]
        names: dict[str, str] = {}
        return _NONCE.sub(
            lambda found: names.setdefault(found[0], f"#{len(names)}"), f"{stored}{self._clock.now}{tasks}{last}"
        )

    # What came of it.

    def check_log(self) -> None:
        """Fail if the log is not what was written."""
        record, page = complete(settle(self._storage.read(ID, (0, 0), LAST)))
        step = record.step if record else 0
        for entry in page:
            is_counted = entry.place < step
            assert not is_counted or self._log[entry[:3]] == entry[3:], f"step {entry.place} was written over"
        self._turn = None

    def finish(self) -> None:
        """Let undisturbed invocations and sweeps end what is left."""
        flow = self._calm
        for _ in range(_ROUNDS):
            try:
                status = flow.status_sync(ID)
                if status is None:
                    flow.execute_sync(self._workflow, ID, self._input)
                    continue
                if status.status in ENDED | PARKED:
                    return
                for name in status.waits:
                    if name in self._signals:
                        flow.signal_sync(ID, name, self._signals[name])
                self._clock.now = max(self._clock.now + 2 * _LEASE, status.due or 0.0)
                for id in flow.sweep_sync():
                    flow.resume_sync(id)
            except Exception as error:
                if not isinstance(error, SequentialError):
                    continue  # the workflow's own: the execution is parked
                raise AssertionError(f"it could not go on: {error}") from error
        raise AssertionError(f"it did not end within {_ROUNDS} undisturbed invocations")

    def outcome(self) -> tuple[str, Any]:
        """Return how the execution stands, and its value."""
        status = self._calm.status_sync(ID)
        assert status is not None
        return status.status, status.value

    def check(self, expected: Sequence[tuple[str, Any]], tasks: Sequence[Task]) -> None:
        """Fail if a promise was broken."""
        found = self.outcome()
        assert found in expected, f"it came to {found!r}, and an undisturbed run to {expected[0]!r}"
        try:
            history = self._calm.history_sync(ID)
        except SequentialError as error:
            raise AssertionError(f"its history cannot be read: {error}") from error
        taken = [(step["asked"], repr(step["result"])) for step in history if "signal" in step]
        sent = [(f"wait {task[1]}", repr(task[2])) for task in tasks if isinstance(task, tuple)]
        for signal in sent:
            assert taken.count(signal) <= sent.count(signal), "a signal was taken twice"

    def leave(self) -> None:
        """Forget the tasks that have died."""
        for task in self._tasks:
            task.work.close()


def _name(task: Task) -> str:
    return task if isinstance(task, str) else task[0] if isinstance(task, tuple) else getattr(task, "__name__", "task")
