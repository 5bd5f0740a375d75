"""Values that nobody but this program can read: compressed, then encrypted, in any store.

It needs ``pip install cryptography``.

The key is made at the first run and kept in a file beside the store; in earnest it comes from where your secrets are.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, MultiFernet

from sequential import FlowExecutor, tool
from sequential.codecs import Compressed, Encrypted
from sequential.stores.sqlite import SQLiteStorage


def diagnose(input: dict[str, str]) -> Generator[Any, Any, str]:
    """Fetch a letter, and sum it up."""
    letter = yield tool("post", "fetch", {"patient": input["patient"]})
    return str((yield tool("model", "sum_up", {"text": letter})))


def call(category: str, name: str, input: dict[str, str]) -> str:
    """Perform a tool."""
    if name == "fetch":
        return f"Dear colleague, {input['patient']} is in the best of health. " * 100
    return input["text"].partition(".")[0]


def main() -> None:
    """Run a workflow, change the key, and read what the old one has encrypted."""
    keys = Path("keys")
    if not keys.exists():
        keys.write_bytes(Fernet.generate_key())
    old, new = Fernet(keys.read_bytes()), Fernet(Fernet.generate_key())
    for box in (old, MultiFernet([new, old])):  # the first key encrypts, each of them decrypts
        storage = SQLiteStorage("encrypted.db", codec=Encrypted(box, Compressed()))
        flow = FlowExecutor(storage, call=call, retain=True, budget=math.inf)
        print(flow.execute_sync(diagnose, "letter-1", {"patient": "Ada"}))
        storage.close()
    with sqlite3.connect("encrypted.db") as connection:
        stored = b"".join(data for (data,) in connection.execute("SELECT data FROM sequential_entries"))
    connection.close()
    print(
        f"{len(stored)} bytes are stored, and {'Ada is' if b'Ada' in stored else 'no patient is'} to be found in them"
    )


if __name__ == "__main__":
    main()
