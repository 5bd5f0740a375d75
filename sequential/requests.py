"""What a workflow may yield, as helper functions or as the plain values that they return.

=================================  ====================================  ======================================
helper                             plain value                           answered with
=================================  ====================================  ======================================
``tool("api", "user", {"id": 1})`` ``{"__tool": ["api", "user", ...]}``  the result, or ``{"__error": message}``
``tool(..., once=True)``           ``{"__tool": ..., "__once": True}``   likewise, or ``{"__error": "interrupted"}``
``[tool(...), tool(...)]``         the same                              the list of what each is answered with
``save()``                         ``{"__save": True}``                  ``None``
``sleep(60)``                      ``{"__sleep": 60}``                   ``None``
``wait("approval", timeout=60)``   ``{"__wait": ["approval", 60]}``      the payload, or ``{"__error": "timeout"}``
``version()``                      ``{"__version": True}``               the ``version=`` it began under
``again({"page": 2})``, returned   ``{"__again": {"page": 2}}``          nothing: it begins anew with this input
=================================  ====================================  ======================================
"""

from functools import lru_cache
from typing import Any, Never, cast

from .storage import is_name, is_number

Request = dict[str, Any]

FAR = 1e12
"""Seconds (thirty thousand years): more is an error of somebody's arithmetic."""


def tool(category: str, name: str, input: Any = None, once: bool = False) -> Request:
    """Ask for a tool call.

    Several of them in a list are performed together: each takes a step of its own and is saved as it finishes.

    Args:
        category: The first argument of the ``call`` hook.
        name: The second.
        input: The third, any JSON value; left out, ``{}``.
        once: Whether never to call it a second time: it is marked as started first, and if it is found started
            but unfinished later, the answer is ``{"__error": "interrupted"}``.
    """
    request: Request = {"__tool": [category, name, {} if input is None else input]}
    return request | {"__once": True} if once else request


def save() -> Request:
    """Pause here, whatever the budget."""
    return {"__save": True}


def sleep(seconds: float) -> Request:
    """Pause for a time, which costs nothing meanwhile: the sweep rings when it is over.

    Args:
        seconds: How long; 0 or less is no pause.
    """
    return {"__sleep": seconds}


def wait(name: str, timeout: float | None = None) -> Request:
    """Pause until ``FlowExecutor.signal(id, name, payload)``, and be answered with the payload.

    Args:
        name: The signal's name, of the same characters as an execution's id.
        timeout: Seconds after which the answer is ``{"__error": "timeout"}``; ``None``: never.
    """
    return {"__wait": [name, timeout]}


def version() -> Request:
    """Ask for the executor's ``version=`` at the time this execution began; takes no step."""
    return {"__version": True}


def again(input: Any = None) -> Never:
    """Begin anew under the same id, with an empty history; to be returned, not yielded.

    The next round is a run of its own: its idempotency keys differ, and ``version()`` is that of the executor which
    begins it.  A signal that nobody has waited for yet is kept for it.

    Args:
        input: The input of the next round, any JSON value; left out, ``{}``.
    """
    # Typed as what never comes back, so that a workflow may return it whatever else it returns.
    return cast("Never", {"__again": {} if input is None else input})  # type: ignore[misc]


class Tool:
    """A tool call, as the executor sees it."""

    __slots__ = ("category", "input", "label", "name", "once")

    def __init__(self, label: str, category: str, name: str, input: Any, once: bool) -> None:
        self.label, self.category, self.name = label, category, name
        self.input, self.once = input, once

    @property
    def needs(self) -> str:
        """What of this only a Journal can promise."""
        return "tool(..., once=True)" if self.once else ""


class Gather:
    """Tool calls to be performed together; at least one."""

    __slots__ = ("tools",)
    label = "gather"  # never recorded: each of its calls is, by itself

    def __init__(self, tools: list[Tool]) -> None:
        self.tools = tools

    @property
    def needs(self) -> str:
        """What of this only a Journal can promise."""
        return next((tool.needs for tool in self.tools if tool.once), "")


class Save:
    """A pause that was asked for."""

    label = "save"
    needs = ""


class Sleep:
    """A pause for a time."""

    __slots__ = ("seconds",)
    label = "sleep"
    needs = "sleep()"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Wait:
    """A pause until a signal comes."""

    __slots__ = ("label", "name", "timeout")
    needs = "wait()"

    def __init__(self, name: str, timeout: float | None) -> None:
        self.label, self.name, self.timeout = f"wait {name}", name, timeout


class Version:
    """A question that is answered at once."""

    needs = "version()"


class Return:
    """The workflow's end: not yielded, but replay compares it with what was recorded like any request."""

    label = "return"
    needs = ""

    def __init__(self, value: Any) -> None:
        self.value = value


class Again(Return):
    """The end of a round; its value is the next one's input."""

    needs = "again()"


Step = Tool | Gather | Save | Sleep | Wait
"""What is recorded as a step, or several."""

_SAVE, _VERSION = Save(), Version()


@lru_cache  # a workflow asks for few tools, but often
def _label(category: str, name: str) -> str | None:
    """Return what a tool is recorded as, or ``None`` when its name cannot be stored."""
    # A dot in both would make two tools look alike.
    label = f"tool {category}.{name}" if "." not in category else f"tool {category!r}.{name}"
    return label if is_storable(label) else None


def is_storable(text: str) -> bool:
    """Whether every store can keep `text`: none a lone surrogate, PostgreSQL no NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def parse(value: object) -> Step | Version | list[Any] | None:
    """Read a yielded value.

    Returns:
        The request, an empty list as it is, or ``None`` when the value is not a request.
    """
    if isinstance(value, dict):
        asked = value.get("__tool")
        if asked is not None:
            return _parse_tool(value, asked)
        if len(value) == 1:
            return _parse_other(value)
    elif isinstance(value, (list, tuple)):
        tools = [found for each in value if isinstance(each, dict) and isinstance(found := parse(each), Tool)]
        if len(tools) == len(value):
            return Gather(tools) if tools else []
    return None


def parse_return(value: object) -> Return:
    """Read a returned value."""
    if isinstance(value, dict) and len(value) == 1 and "__again" in value:
        return Again(value["__again"])
    return Return(value)


def _parse_tool(value: dict[Any, Any], asked: object) -> Tool | None:
    once = len(value) != 1
    if once and (len(value) != 2 or value.get("__once") is not True):  # noqa: PLR2004 - both keys, and no other
        return None
    if isinstance(asked, (list, tuple)) and len(asked) == 3:  # noqa: PLR2004 - category, name, input
        category, name, input = asked  # a match statement reads better and takes three times as long
        if isinstance(category, str) and isinstance(name, str):
            label = _label(category, name)
            if label is not None:
                return Tool(label, category, name, input, once)
    return None


def _parse_other(value: dict[Any, Any]) -> Step | Version | None:
    ((kind, asked),) = value.items()
    if kind == "__save" and asked is True:
        return _SAVE
    if kind == "__version" and asked is True:
        return _VERSION
    if kind == "__sleep" and is_number(asked, -FAR, FAR):
        return Sleep(float(asked))
    if kind == "__wait" and isinstance(asked, (list, tuple)) and len(asked) == 2:  # noqa: PLR2004 - name, timeout
        name, timeout = asked
        if is_name(name) and (timeout is None or is_number(timeout, -FAR, FAR)):
            return Wait(name, None if timeout is None else float(timeout))
    return None
