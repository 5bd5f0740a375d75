"""What an argument must be: ids, names, numbers, functions."""

from typing import TypeGuard

from .errors import InvalidId

FAR = 1e12
"""Seconds (thirty thousand years): more is an error of somebody's arithmetic."""

NEVER = float("inf")
"""No bound; a process that needs no more of `math` starts sooner without it."""

_LONGEST = 200
_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@~-")


def is_name(name: object) -> bool:
    """Whether `name` is 1 to 200 characters of ``A-Z a-z 0-9 _ . : @ ~ -``, and not ``.`` or ``..``."""
    return (
        isinstance(name, str) and 0 < len(name) <= _LONGEST and _CHARACTERS.issuperset(name) and name not in {".", ".."}
    )


def is_number(value: object, least: float = -NEVER, most: float = NEVER) -> TypeGuard[float]:
    """Whether `value` is an int or a float, and from `least` to `most`."""
    return isinstance(value, (int, float)) and least <= value <= most


def is_whole(value: object, least: float = -NEVER, most: float = NEVER) -> TypeGuard[int]:
    """Whether `value` is an int, and from `least` to `most`."""
    return isinstance(value, int) and is_number(value, least, most)


def is_storable(text: str) -> bool:
    """Whether every store can keep `text`: none a lone surrogate, PostgreSQL no NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def check_id(id: object) -> str:
    """Return `id` if it can go into URLs, keys and paths.

    Raises:
        InvalidId: When it cannot.
    """
    if isinstance(id, str) and is_name(id):
        return str.__str__(id)  # an `Enum` that is a text would be shown by another one
    raise InvalidId(id)


def check_functions(**given: object) -> None:
    """Refuse what was given as a function and is none; `None` was not given.

    Args:
        given: By the names of their parameters.

    Raises:
        TypeError: When one of them cannot be called.
    """
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name}= must be a function, got {function!r:.100}")


def check_limit(limit: int) -> int:
    """Return `limit` if a page can be that long."""
    if not is_whole(limit, 1, 2**31 - 1):
        raise ValueError(f"limit= is a number of executions from 1 to {2**31 - 1:,}, not {limit!r}")
    return limit
