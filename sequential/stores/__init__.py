"""The built-in stores: each a `sequential.journal.Journal`, each in a module of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import StorageError
from ..journal import Journal

__all__ = ["open"]

_SCHEMES = {"memory": ("memory", "MemoryStorage"), "sqlite": ("sqlite", "SQLiteStorage")}


def open(url: str, **options: Any) -> Journal:
    """Return the storage at a URL.

    ``memory://``, ``sqlite:///flows.db`` (``sqlite:////var/flows.db`` is an absolute path).

    Args:
        url: Where the storage is.
        options: What the storage's class takes beside its path (``codec=``, ``timeout=`` ...).

    Raises:
        StorageError: When the URL's scheme is none of these.
    """
    scheme, separator, place = str(url).partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _SCHEMES:
        begins = f"{scheme}://" if separator else str(url)  # what follows may be a password
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise StorageError(f"there is no store for {begins!r}: a URL begins with {known}")
    module, name = _SCHEMES[scheme]
    kind = getattr(import_module(f".{module}", __name__), name)
    storage: Journal = kind.from_url(f"{scheme}://{place}", **options)
    return storage
