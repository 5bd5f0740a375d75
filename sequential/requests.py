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
=================================  ====================================  ======================================

Returned, ``again({"page": 2})`` begins anew with this input.  It has no plain value: what else a workflow returns is
data, whatever its keys.
"""

from functools import lru_cache
from typing import Any, Never, cast

from .checks import FAR, is_name, is_number, is_storable
from .codec import encode_json


class Request(dict[str, Any]):
    """What a helper function returns, to be yielded."""

    __slots__ = ()


class Anew(dict[str, Any]):
    """What `again` returns, to be returned by a workflow."""

    __slots__ = ()


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
    request = Request(__tool=[category, name, {} if input is None else input])
    if once:
        request["__once"] = True
    return request


def save() -> Request:
    """Pause here, whatever the budget."""
    return Request(__save=True)


def sleep(seconds: float) -> Request:
    """Pause for a time, which costs nothing meanwhile: the sweep rings when it is over.

    Args:
        seconds: How long; 0 or less is no pause.
    """
    return Request(__sleep=seconds)


def wait(name: str, timeout: float | None = None) -> Request:
    """Pause until ``FlowExecutor.signal(id, name, payload)``, and be answered with the payload.

    Args:
        name: The signal's name, of the same characters as an execution's id.
        timeout: Seconds after which the answer is ``{"__error": "timeout"}``; ``None``: never.  A signal that has come
            by the time when somebody looks is taken all the same.
    """
    return Request(__wait=[name, timeout])


def version() -> Request:
    """Ask for the executor's ``version=`` at the time this execution began; takes no step."""
    return Request(__version=True)


def again(input: Any = None) -> Never:
    """Begin anew under the same id, with an empty history; to be returned, not yielded.

    The next round is a run of its own: its idempotency keys differ, and ``version()`` is that of the executor which
    begins it.  A signal that nobody has waited for yet is kept for it.

    Args:
        input: The input of the next round, any JSON value; left out, ``{}``.
    """
    # Typed as what never comes back, so that a workflow may return it whatever else it returns.
    return cast("Never", Anew(__again={} if input is None else input))  # type: ignore[misc]


class Tool:
    """A tool call, as the executor sees it."""

    __slots__ = ("beginning", "category", "input", "label", "name", "once")

    def __init__(self, labels: tuple[str, str], category: str, name: str, input: Any, once: bool) -> None:
        self.label, self.beginning = labels
        self.category, self.name, self.input, self.once = category, name, input, once

    @property
    def needs(self) -> str:
        """What of this only a Journal can promise."""
        return "tool(..., once=True)" if self.once else ""


class Save:
    """A pause that was asked for."""

    label = "save"
    beginning = '"asked":"save",'
    needs = ""


class Sleep:
    """A pause for a time."""

    __slots__ = ("seconds",)
    label = "sleep"
    beginning = '"asked":"sleep",'
    needs = "sleep()"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Wait:
    """A pause until a signal comes."""

    __slots__ = ("label", "name", "seconds")
    needs = "wait()"

    def __init__(self, name: str, seconds: float | None) -> None:
        self.name, self.seconds = str.__str__(name), seconds
        self.label = f"wait {self.name}"

    @property
    def beginning(self) -> str:
        """How an entry that answers it says so; a name has no character that JSON writes in another way."""
        return f'"asked":"{self.label}",'


class Version:
    """A question that is answered at once."""

    needs = "version()"


Asked = Tool | Save | Sleep | Wait
"""What an entry of the log answers."""

_SAVE, _VERSION = Save(), Version()


@lru_cache  # a workflow asks for few tools, but often
def _label(category: str, name: str) -> tuple[str, str] | None:
    """Return what a tool is recorded as, plain and in an entry, or ``None`` when its name cannot be stored."""
    # Of a text that is an `Enum`, too, the text itself: it equals the plain one, and must not look like another.
    category, name = str.__str__(category), str.__str__(name)
    # A dot in both would make two tools look alike.
    label = f"tool {category}.{name}" if "." not in category else f"tool {category!r}.{name}"
    return (label, f'"asked":{encode_json(label)},') if is_storable(label) else None


def parse(value: object) -> Asked | Version | list[Tool] | None:
    """Read a yielded value.

    Returns:
        The request, a list of calls, or ``None`` when the value is not a request.
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
            return tools
    return None


def is_error(value: object) -> bool:
    """Whether an answer is an error value."""
    return isinstance(value, dict) and len(value) == 1 and "__error" in value


def _parse_tool(value: dict[Any, Any], asked: object) -> Tool | None:
    once = len(value) != 1
    if once and (len(value) != 2 or value.get("__once") is not True):  # noqa: PLR2004 - both keys, and no other
        return None
    if isinstance(asked, (list, tuple)) and len(asked) == 3:  # noqa: PLR2004 - category, name, input
        category, name, input = asked  # a match statement reads better and takes three times as long
        if isinstance(category, str) and isinstance(name, str):
            found = _label(category, name)
            if found is not None:
                return Tool(found, category, name, input, once)
    return None


def _parse_other(value: dict[Any, Any]) -> Asked | Version | None:
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
