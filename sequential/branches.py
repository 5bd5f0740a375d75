"""A workflow in progress: what it asks for, and whom an answer goes to.

A workflow is a tree of branches.  It begins as branch 0, its generator.  A list that it yields makes a child branch of
each item, in order, and branch 0 goes on when they have been answered.  So at any time some branches ask for something,
and an answer, which is an entry of the log, moves one of them.  Nothing else does: the tree is a function of the log.
There is no I/O here, and no clock; what an answer says of the time is kept as it came.

With ``errors="raise"``, an error that answers an item *decides* its list: what will be thrown at its ``yield`` is
known, and nothing new is to be begun for it.  Calls that are under way are still answered.  Then `Branches.cancel` ends
the others.
"""

from collections.abc import Generator
from typing import Any

from .codec import decode_json
from .context import executing
from .errors import Cancelled, InvalidYield, NotSupported, ToolError
from .requests import Anew, Asked, Request, Tool, Version, is_error, parse
from .workflow import Workflow, describe_returned, describe_yielded, make

CANCEL, END = "cancel", "end"
"""What the entries say that answer no request: the cancellation of the execution, the end of a decided list."""

_MISUSED = "_iterator' object has no attribute 'send'"
"""How Python ends its complaint about ``yield from`` a list of dicts."""


class Returned:
    """The workflow's end."""

    label = "return"

    def __init__(self, value: Any) -> None:
        self.value = value


class Raised:
    """The workflow's end by an exception."""

    label = "raise"

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Branch:
    """Somebody who asks for something.

    Args:
        number: Counted from 0 in the order in which branches come into being.
        moved: When it was last answered, or came into being, in seconds since the epoch; or what the entry is about
            that says so.
    """

    __slots__ = ("asked", "count", "moved", "number")

    def __init__(self, number: int, moved: float | str) -> None:
        self.number, self.moved = number, moved
        self.asked: Asked
        """What it asks for."""
        self.count = -1
        """Which of its requests that is, counted from 0."""

    @property
    def since(self) -> float:
        """When it began to ask, in seconds since the epoch."""
        if isinstance(self.moved, str):
            self.moved = float(decode_json(self.moved)["ended"])
        return self.moved

    @property
    def mark(self) -> str:
        """What tells this request from all others of the run."""
        return f"{self.number}.{self.count}"


class Branches:
    """The tree of one run.

    Args:
        key: The execution's id and run, as idempotency keys begin.
        version: What ``version()`` is answered with; ``None``: five methods cannot tell, nor do what needs more.
        raises: Whether an error is thrown where it would have been the answer.
    """

    __slots__ = (
        "_answers",
        "_first",
        "_generator",
        "_key",
        "_next",
        "_raises",
        "_root",
        "_version",
        "calls",
        "decided",
        "ended",
        "rests",
    )

    def __init__(self, key: str, version: int | None, raises: bool) -> None:
        self._key, self._version, self._raises = key, version, raises
        self._generator: Generator[Any, Any, Any] | None = None
        self._next = 1
        """The number of the next branch."""
        self._first = 1
        """The number of the first item of the list."""
        self._answers: list[Any] = []
        """What the items of the list have been answered with, in its order."""
        self.decided: ToolError | None = None
        """What will be thrown into the workflow once the other items of its list have ended."""
        self.calls: dict[int, Branch] = {}
        """Who asks for a call, in the order of their numbers."""
        self.rests: dict[int, Branch] = {}
        """Who asks for something else: a sleep, a signal, a pause."""
        self.ended: Returned | Raised | None = None

    def asking(self, number: int) -> Branch | None:
        """Return a branch that asks for something."""
        return self.calls.get(number) or self.rests.get(number)

    def begin(self, workflow: Workflow[Any], input: Any, moved: float) -> None:
        """Make the generator, and see what it asks for first.

        Raises:
            InvalidWorkflow: When it is no generator.
        """
        self._root = Branch(0, moved)
        executing.set(self._key)
        self._generator = make(workflow, input)
        self._move()

    def answer(self, number: int, value: Any, moved: float | str) -> None:
        """Answer a branch that asks for something, and move on whoever can.

        Args:
            number: The branch's number.
            value: What it is answered with.
            moved: As for `Branch`.
        """
        branch = self.calls.pop(number, None) or self.rests.pop(number)
        error = None
        if self._raises and is_error(value):
            error = ToolError(str(value["__error"]), branch.asked.label.removeprefix("tool "))
        if branch is self._root:
            branch.moved = moved
            self._move(value, error)
            return
        self._root.moved = moved
        self._answers[number - self._first] = value
        if error is not None and self.decided is None:
            self.decided = error
        elif error is not None and self.decided is not None:
            self.decided.add_note(f"and then {error}")
        if self.decided is not None and self._version is None:
            self._drop()  # five methods have no entry that would end the others
        if not self.calls:
            self._go_on()

    def cancel(self, kind: str, moved: float | str) -> None:
        """Drop what is asked for, and go on: with what decided a list, or by ending the workflow.

        Args:
            kind: `END` of a decided list, or `CANCEL`.
            moved: As for `Branch`.
        """
        self._drop()
        self._root.moved = moved
        if kind == END:
            self._go_on()
        else:
            self.decided = None
            self._move(None, Cancelled())

    def _go_on(self) -> None:
        answers, error, self._answers, self.decided = self._answers, self.decided, [], None
        self._move(answers, error)

    def _move(self, value: Any = None, thrown: BaseException | None = None) -> None:
        """Let the workflow go on until it asks for something that takes an answer, or ends."""
        root, generator = self._root, self._generator
        assert generator is not None
        executing.set(self._key)
        try:
            while self.ended is None:
                yielded = generator.send(value) if thrown is None else generator.throw(thrown)
                value = thrown = None
                request = parse(yielded)
                if isinstance(request, Version):
                    value = self._version
                    if value is None:
                        raise NotSupported("this storage", request.needs)
                    continue
                root.count += 1
                if isinstance(request, list):
                    self._open(request)
                    if request:
                        return
                    value = []
                elif request is None:
                    self.ended = Raised(InvalidYield(describe_yielded(yielded, generator)))
                else:
                    self._ask(root, request)
                    return
        except StopIteration as stop:
            self.ended = self._returned(stop.value)
        except (Exception, Cancelled, BaseExceptionGroup) as raised:
            error = _plain(raised)
            if type(error) is AttributeError and str(error).endswith(_MISUSED):
                error.add_note("a list of calls is yielded as it is: write `yield [...]`, not `yield from [...]`")
            self._drop()
            self.ended = Raised(error)

    def _open(self, tools: list[Tool]) -> None:
        """Make a branch of each item of a list."""
        self._first, self._answers = self._next, [None] * len(tools)
        for tool in tools:
            branch = Branch(self._next, self._root.moved)
            branch.count = 0
            self._ask(branch, tool)
            self._next += 1

    def _ask(self, branch: Branch, request: Asked) -> None:
        if self._version is None and request.needs:
            raise NotSupported("this storage", request.needs)
        branch.asked = request
        asking = self.calls if isinstance(request, Tool) else self.rests
        asking[branch.number] = branch

    def _drop(self) -> None:
        self.calls.clear()
        self.rests.clear()

    def _returned(self, value: Any) -> Returned | Raised:
        if isinstance(value, Request):
            return Raised(InvalidYield(describe_returned(value, self._generator)))
        if isinstance(value, Anew) and self._version is None:
            return Raised(NotSupported("this storage", "again()"))
        return Returned(value)

    def close(self) -> BaseException | None:
        """Leave the workflow where it stands, and return what its ``finally`` bodies raise at that, if anything."""
        try:
            if self._generator is not None:
                self._generator.close()
        except BaseException as error:
            error.add_note(
                "raised while the workflow was left at a pause: `finally` and `with` bodies around a yield run at "
                "every pause, and must neither yield nor fail; make cleanup that is to happen once a step"
            )
            return error
        return None


def _plain(error: BaseException) -> BaseException:
    """Return what a workflow ends by: a group of nothing but cancellations, as ``except*`` makes one, is one."""
    if isinstance(error, BaseExceptionGroup):
        if error.split(Cancelled)[1] is None:
            return Cancelled()
        if error.split((Exception, Cancelled))[1] is not None:
            raise error
    return error
