"""What a workflow may yield: three requests, as helper functions or as the plain dicts that they return.

==================================  ==========================================  =======================================
helper                              plain dict                                  sent back into the workflow
==================================  ==========================================  =======================================
``tool("api", "user", {"id": 1})``  ``{"__tool": ["api", "user", {"id": 1}]}``  the result, or ``{"__error": message}``
``save()``                          ``{"__save": True}``                        ``None``
``version()``                       ``{"__version": True}``                     the ``version=`` it began under, an int
==================================  ==========================================  =======================================
"""

from functools import lru_cache
from typing import Any

Request = dict[str, Any]


def tool(category: str, name: str, input: Any = None) -> Request:
    """Ask for a tool call.

    Args:
        category: The first argument of the ``call`` hook.
        name: The second.
        input: The third, any JSON value; left out, ``{}``.
    """
    return {"__tool": [category, name, {} if input is None else input]}


def save() -> Request:
    """Pause here, whatever the budget."""
    return {"__save": True}


def version() -> Request:
    """Ask for the executor's ``version=`` at the time this execution began; takes no step."""
    return {"__version": True}


class Tool:
    """A tool call, as the executor sees it."""

    __slots__ = ("category", "input", "label", "name")

    def __init__(self, label: str, category: str, name: str, input: Any) -> None:
        self.label, self.category, self.name, self.input = label, category, name, input


class Save:
    """A pause that was asked for."""

    label = "save"


class Version:
    """A question that is answered at once."""


class Return:
    """The workflow's end: not yielded, but replay compares it with what was recorded like any request."""

    label = "return"

    def __init__(self, value: Any) -> None:
        self.value = value


_SAVE, _VERSION = Save(), Version()


@lru_cache  # a workflow asks for few tools, but often
def _label(category: str, name: str) -> str | None:
    """Return what a tool is recorded as, or ``None`` when its name cannot be stored."""
    # A dot in both would make two tools look alike.
    label = f"tool {category}.{name}" if "." not in category else f"tool {category!r}.{name}"
    return label if is_unicode(label) else None


def is_unicode(text: str) -> bool:
    """Whether `text` can be written in UTF-8: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(value: object) -> Tool | Save | Version | None:
    """Read a yielded value.

    Returns:
        The request, or ``None`` when the value is not one.
    """
    if isinstance(value, dict) and len(value) == 1:
        asked = value.get("__tool")
        if isinstance(asked, (list, tuple)) and len(asked) == 3:  # noqa: PLR2004 - category, name, input
            category, name, input = asked  # a match statement reads better and takes three times as long
            if isinstance(category, str) and isinstance(name, str):
                label = _label(category, name)
                if label is not None:
                    return Tool(label, category, name, input)
        if value.get("__save") is True:
            return _SAVE
        if value.get("__version") is True:
            return _VERSION
    return None
