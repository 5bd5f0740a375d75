"""Generators for use with ``yield from`` in a workflow: typed calls, retries, compensations.

They are made of what any workflow may yield (`sequential.requests`), so each pause, answer and compensation is a
recorded step, and all of them go on where they were after a crash.  They do the same whether a tool's error is a value
(``FlowExecutor(..., errors="value")``) or raised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from .calls import INTERRUPTED
from .checks import FAR, is_number
from .codec import fingerprint
from .context import executing
from .errors import Cancelled, ToolError, message_of
from .requests import Tool, Version, is_error, parse, sleep, tool

P = ParamSpec("P")
T = TypeVar("T")

_Request = dict[str, Any]
_Step = _Request | Generator[Any, Any, Any]
_Tried = Generator[_Request, Any, tuple[Any, ToolError | None]]
_RetryOn = Callable[[str], bool] | Iterable[str] | None

__all__ = ["call", "check", "retry", "saga"]


def check(result: T) -> T:
    """Return the result of a tool, unless it is an error value.

    It is a plain function: ``check((yield tool(...)))``, and ``[check(each) for each in (yield [tool(...), ...])]``.

    Args:
        result: What a tool call was answered with.

    Raises:
        ToolError: When it is ``{"__error": message}``.

    Example:
        >>> from sequential import FlowExecutor, tool
        >>> from sequential.stores.memory import MemoryStorage
        >>> def workflow(input):
        ...     user = check((yield tool("api", "user", input)))
        ...     return user["name"]
        >>> flow = FlowExecutor(MemoryStorage(), call=lambda category, name, input: {"name": "Ada"}, budget=60)
        >>> flow.execute_sync(workflow, input={"id": 1})
        'Ada'
    """
    error = _error_in(result, None)
    if error is not None:
        raise error
    return result


@overload
def call(fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Generator[_Request, Any, T]: ...


@overload
def call(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Generator[_Request, Any, T]: ...


def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Generator[_Request, Any, Any]:
    """Ask for the tool that a function is registered as; type checkers know its arguments and its result.

    A call that must never be made twice is ``check((yield tool(..., once=True)))``: here, ``once=`` would be an
    argument of the function.

    Args:
        fn: A function, plain or ``async``, that was registered with ``Tools.add``.
        args: None: arguments are given by name, as they are recorded.
        kwargs: Its arguments, any JSON values.

    Returns:
        By ``yield from``, the result.

    Raises:
        ToolError: When the tool fails.
        TypeError: When `fn` is not registered, or an argument is given by position.

    Example:
        >>> from sequential import FlowExecutor
        >>> from sequential.stores.memory import MemoryStorage
        >>> from sequential.tools import Tools
        >>> tools = Tools()
        >>> @tools.add("api")
        ... async def fetch_user(id: int) -> str:
        ...     return f"user {id}"
        >>> def workflow(input):
        ...     user = yield from call(fetch_user, id=input["id"])
        ...     return user.title()
        >>> FlowExecutor(MemoryStorage(), call=tools, budget=60).execute_sync(workflow, input={"id": 1})
        'User 1'
    """
    name = getattr(fn, "__qualname__", f"a {type(fn).__name__}")
    try:
        registered: tuple[str, str] = fn.__sequential_tool__  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(
            f"{name} is not registered as a tool: put `@tools.add(category)` before it, where tools is a "
            f"sequential.tools.Tools, or ask by name with check((yield tool(category, name, input)))"
        ) from None
    if args:
        raise TypeError(f"call({name}, ...) got a {type(args[0]).__name__} by position: give its arguments by name")
    request = tool(*registered, kwargs)
    answer = yield request
    error = _error_in(answer, ".".join(registered))
    if error is not None:
        raise error
    return answer


def retry(
    request: _Request,
    *,
    attempts: int = 3,
    delay: float = 1.0,
    factor: float = 2.0,
    max_delay: float = 3600.0,
    jitter: float = 0.1,
    retry_on: _RetryOn = None,
) -> Generator[_Request, Any, Any]:
    """Ask for a tool call again and again until it succeeds, asleep in between.

    The jitter is a checksum of the execution's key, the request, the attempt and the error, and so the same at every
    replay, but another for each execution.

    Args:
        request: What ``tool(...)`` returns.
        attempts: How often to ask at most, at least 1.
        delay: Seconds to sleep after the first failure; 0 is no sleep, which any storage can.
        factor: How much longer to sleep after each further one, at least 1.
        max_delay: Seconds to sleep at most, jitter apart.
        jitter: By which fraction a sleep may be longer or shorter, 0 to 1.
        retry_on: Which errors to retry: a function of the error's message, which depends on nothing else; or texts,
            one of which must occur in it.  Left out, all but the ``"interrupted"`` of ``once=True``, for nobody knows
            whether that call was made.

    Returns:
        By ``yield from``, the last answer, the tool's result or ``{"__error": message}``; `check` tells them apart.

    Raises:
        ToolError: With ``errors="raise"``, the last one.
        TypeError, ValueError: When an argument is not as above.

    Example:
        >>> from sequential import FlowExecutor, tool
        >>> from sequential.stores.memory import MemoryStorage
        >>> def workflow(input):
        ...     return check((yield from retry(tool("api", "rate"), attempts=5, delay=0, retry_on=["busy"])))
        >>> answers = iter([{"__error": "busy"}, {"__error": "very busy"}, 1.07])
        >>> flow = FlowExecutor(MemoryStorage(), call=lambda category, name, input: next(answers), budget=60)
        >>> flow.execute_sync(workflow)
        1.07
    """
    repeat = _repeating(attempts, delay, factor, max_delay, jitter, retry_on)
    if not isinstance(parse(request), Tool):
        raise TypeError(
            f"retry() got a {type(request).__name__}: give it what tool(...) returns (a generator runs only once: use "
            f"retry within it)"
        )
    answer, error = yield from repeat(lambda: request, request)
    return answer if error is None else _error_value(answer, error)


class saga:  # noqa: N801 - in a workflow it reads like the functions around it
    """Steps that are undone, in reverse order, when a later one fails or is cancelled.

    Make one at the beginning of the workflow, for it belongs to one execution.  A step that fails is not undone
    itself, whatever it has done: let its tool succeed entirely or not at all.  Nor is one that is cancelled: it was
    not begun, unless its process died meanwhile.

    What fails or is cancelled between its steps undoes nothing by itself.  Take all of them within a step, a generator
    of the same saga, ``yield from trip.do(booking(trip, input))``; or catch it,
    ``except (Exception, Cancelled): yield from trip.undo(); raise``, with `sequential.Cancelled`.  Never undo in a
    bare ``except``, in ``finally`` or in a ``with``, which run at every pause.

    Args:
        attempts: How often to try each compensation; this and the others as for `retry`.
        delay: Seconds.
        factor: At least 1.
        max_delay: Seconds.
        jitter: From 0 to 1.
        retry_on: Which errors to try again after.

    Raises:
        TypeError, ValueError: As from `retry`.

    Example:
        >>> from sequential import FlowExecutor, tool
        >>> from sequential.stores.memory import MemoryStorage
        >>> def booking(input):
        ...     trip = saga()
        ...     flight = yield from trip.do(
        ...         tool("flight", "book", {"to": input["to"]}),
        ...         undo=lambda flight: tool("flight", "cancel", {"id": flight["id"]}),
        ...     )
        ...     hotel = yield from trip.do(
        ...         retry(tool("hotel", "book", {"in": input["to"]}), delay=0),
        ...         undo=lambda hotel: tool("hotel", "cancel", {"id": hotel["id"]}),
        ...     )
        ...     if flight["price"] + hotel["price"] > input["limit"]:
        ...         yield from trip.undo()
        ...         return "too expensive"
        ...     return [flight["id"], hotel["id"]]
        >>> def call(category, name, input):
        ...     print(category, name, input)
        ...     return {"id": len(category), "price": 300}
        >>> flow = FlowExecutor(MemoryStorage(), call=call, budget=60)
        >>> flow.execute_sync(booking, input={"to": "Oslo", "limit": 500})
        flight book {'to': 'Oslo'}
        hotel book {'in': 'Oslo'}
        hotel cancel {'id': 5}
        flight cancel {'id': 6}
        'too expensive'
    """

    __slots__ = ("_done", "_repeat")

    def __init__(
        self,
        *,
        attempts: int = 10,
        delay: float = 1.0,
        factor: float = 2.0,
        max_delay: float = 3600.0,
        jitter: float = 0.1,
        retry_on: _RetryOn = None,
    ) -> None:
        self._repeat = _repeating(attempts, delay, factor, max_delay, jitter, retry_on)
        self._done: list[tuple[Callable[[], _Step], Any]] = []
        """What makes each compensation, and the result of the step that it undoes."""

    @overload
    def do(
        self, step: Generator[Any, Any, T], undo: Callable[[T], _Step] | None = None
    ) -> Generator[_Request, Any, T]: ...

    @overload
    def do(self, step: _Request, undo: Callable[[Any], _Step] | None = None) -> Generator[_Request, Any, Any]: ...

    def do(self, step: _Step, undo: Callable[[Any], _Step] | None = None) -> Generator[_Request, Any, Any]:
        """Take a step; if it fails or is cancelled, undo those before it.

        Args:
            step: What ``tool(...)`` or ``wait(...)`` returns, or a generator.
            undo: Given the step's result, returns the compensation: what ``tool(...)`` returns, or a generator.  It
                is called when the step is done, so that its mistakes show at once, and for each attempt of a generator.

        Returns:
            By ``yield from``, the step's result.

        Raises:
            ToolError: When the step was answered with an error; what could not be undone is in ``not_undone``.
            Cancelled: When the execution is cancelled, once all is undone; what could not be is in its notes.
            Exception: When the step is a generator, what it raised; a `ToolError` if something could not be undone.
            TypeError: When `step`, `undo` or what it returns is not as above; nothing is undone, for the execution
                can go on with a mended workflow.
        """
        _name_of(step, "do()")
        if undo is not None and not callable(undo):
            raise TypeError(f"do(..., undo=) got a {type(undo).__name__}: give a function, `lambda result: tool(...)`")
        try:
            result, error = yield from _attempt(lambda: step)
            if error is not None:
                raise error
        except (Exception, Cancelled) as failure:
            yield from self._undo(failure)
            raise
        if undo is not None:
            compensation = undo(result)
            _name_of(compensation, "undo= of do()")
            make = (lambda: compensation) if isinstance(compensation, dict) else partial(undo, result)
            self._done.append((make, result))
        return result

    def undo(self) -> Generator[_Request, Any, None]:
        """Undo the steps so far, the last one first; a second time does nothing.

        Raises:
            ToolError: When a compensation failed for good; the others were run all the same.
            Cancelled: When the execution is cancelled meanwhile, likewise.
        """
        yield from self._undo(None)

    def _undo(self, failure: BaseException | None) -> Generator[_Request, Any, None]:
        """Run the compensations, and raise what tells which of them failed, or that it was cancelled meanwhile."""
        cancelled = failure if isinstance(failure, Cancelled) else None
        not_undone: list[ToolError] = []
        while self._done:
            make, result = self._done[-1]
            try:
                _, error = yield from self._repeat(make, result)
            except Cancelled as raised:  # in place of a call, which is still to be made
                cancelled = raised
                continue
            except Exception as raised:
                error = _as_tool_error(raised)
            self._done.pop()
            if error is not None:
                not_undone.append(error)
        if cancelled is not None:
            for each in not_undone:
                cancelled.add_note(f"not undone: {each}")
            raise cancelled
        if not_undone:
            told = _as_tool_error(failure) if failure else ToolError("not everything could be undone")
            raise ToolError(told.message, told.tool, (*told.not_undone, *not_undone)) from failure


def _repeating(  # noqa: PLR0917 - the options of `retry`, in their order
    attempts: int, delay: float, factor: float, max_delay: float, jitter: float, retry_on: _RetryOn
) -> Callable[[Callable[[], _Step], Any], _Tried]:
    """Return what does what a function makes until that succeeds, asleep in between, and returns as `_attempt` does."""
    if not (
        all(is_number(number, 1) for number in (attempts, factor))
        and all(is_number(seconds, 0) for seconds in (delay, max_delay))
        and is_number(jitter, 0, 1)
    ):
        raise ValueError(
            f"attempts= and factor= must be at least 1, delay= and max_delay= at least 0 seconds, and jitter= from "
            f"0 to 1, got {attempts=}, {factor=}, {delay=}, {max_delay=}, {jitter=}"
        )
    longest, wants = min(max_delay, FAR / 2), _predicate(retry_on)

    def repeat(make: Callable[[], _Step], seed: Any) -> _Tried:
        attempt, pause = 1, min(delay, longest)
        while True:
            answer, error = yield from _attempt(make)
            if error is None or attempt >= attempts or not wants(error.message):
                return answer, error
            # None: an input that only a user's codec knows.
            checksum = fingerprint([executing.get(), seed, attempt, error.message]) or 0
            if pause > 0:
                yield sleep(pause * (1 + jitter * (checksum / 2**31 - 1)))
            attempt, pause = attempt + 1, min(pause * factor, longest)

    return repeat


class _ErrorValue(dict[str, Any]):
    """An error value like any other, which `check` can tell the tool of."""

    __slots__ = ("tool",)
    tool: str | None


def _error_value(answer: Any, error: ToolError) -> _ErrorValue:
    """Return the error value that an error was made of, or raise the error if it was raised."""
    if answer is None:
        raise error
    value = _ErrorValue(answer)
    value.tool = error.tool
    return value


def _predicate(retry_on: _RetryOn) -> Callable[[str], bool]:
    """Return whether to try again after an error, as a function of its message."""
    if retry_on is None:
        return lambda message: message != INTERRUPTED
    if callable(retry_on) and not isinstance(retry_on, type):
        return retry_on
    texts: Any = [retry_on] if isinstance(retry_on, str) or not isinstance(retry_on, Iterable) else list(retry_on)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"retry_on= got {retry_on!r:.100}: give a function of the error's message, or a list of texts")
    return lambda message: any(text in message for text in texts)


def _attempt(make: Callable[[], _Step]) -> _Tried:
    """Do what `make` makes, and return its answer, ``None`` for an error that was raised, and the error, if any."""
    try:
        step = make()
        if isinstance(step, dict):
            answer, name = (yield step), _name_of(step, "")
        else:
            answer, name = (yield from step), None
    except ToolError as error:
        return None, error
    return answer, _error_in(answer, name)


def _error_in(answer: Any, name: str | None) -> ToolError | None:
    """Return the error that an answer is, if it is one."""
    if not is_error(answer):
        return None
    return ToolError(str(answer["__error"]), answer.tool if isinstance(answer, _ErrorValue) else name)


def _as_tool_error(error: BaseException) -> ToolError:
    """Return an error of a generator as one that shows and pickles like the others."""
    return error if isinstance(error, ToolError) else ToolError(f"{type(error).__name__}: {message_of(error)}")


def _name_of(step: object, where: str) -> str | None:
    """Return what a request asks for, ``None`` for a generator, or refuse what is neither."""
    if isinstance(step, Generator):
        return None
    request = parse(step)
    if request is None or isinstance(request, (Version, list)):
        raise TypeError(f"{where} got a {type(step).__name__}: give what tool(...) returns, or a generator")
    return request.label.removeprefix("tool ")
