"""Names that every store, URL, key and path can carry, and fresh ones."""

from os import urandom

from .errors import InvalidId

_LONGEST = 200
_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@~-")


def is_name(name: object) -> bool:
    """Whether `name` is 1 to 200 characters of ``A-Z a-z 0-9 _ . : @ ~ -``, and not ``.`` or ``..``."""
    return (
        isinstance(name, str) and 0 < len(name) <= _LONGEST and _CHARACTERS.issuperset(name) and name not in {".", ".."}
    )


def check_id(id: object) -> str:
    """Return `id` if it can go into URLs, keys and paths.

    Raises:
        InvalidId: When it cannot.
    """
    if isinstance(id, str) and is_name(id):
        return id
    raise InvalidId(id)


def new_id() -> str:
    """Return a fresh execution id."""
    from nanoid import generate  # noqa: PLC0415 - needed only by those who bring no id of their own

    return str(generate(size=21))


def new_run() -> str:
    """Return a fresh nonce for `Record.run`."""
    return urandom(8).hex()
