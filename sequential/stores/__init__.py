"""The built-in stores: each a `sequential.storage.Journal`, each in a module of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import StorageError
from ..storage import Journal

__all__ = ["open"]

_SCHEMES = {
    "memory": ("memory", "MemoryStorage"),
    "sqlite": ("sqlite", "SQLiteStorage"),
    "postgresql": ("postgres", "PostgresStorage"),
    "postgres": ("postgres", "PostgresStorage"),
    "redis": ("redis", "RedisStorage"),
    "rediss": ("redis", "RedisStorage"),
    "s3": ("objects", "ObjectStorage"),
    "gs": ("objects", "ObjectStorage"),
    "az": ("objects", "ObjectStorage"),
    "file": ("objects", "ObjectStorage"),
    "firestore": ("firestore", "FirestoreStorage"),
    "dynamodb": ("dynamodb", "DynamoDBStorage"),
}


def open(url: str, **options: Any) -> Journal:
    """Return the storage at a URL, over a plain client of its own.

    ``memory://``, ``sqlite:///flows.db`` (``sqlite:////var/flows.db`` is an absolute path),
    ``postgresql://user:password@host/database``, ``redis://host:6379/0``, ``s3://bucket/prefix``,
    ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///folder``, ``firestore://project/database``,
    ``dynamodb://region/table``.

    Args:
        url: Where the storage is.
        options: What the storage's class takes beside its client (``codec=``, ``ttl=`` ...).

    Raises:
        NotInstalled: When the store's driver is missing; the text says how to install it.
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
