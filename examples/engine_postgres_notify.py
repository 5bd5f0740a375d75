"""PostgreSQL carries the ring by LISTEN and NOTIFY, and keeps the executions too; a worker may be killed in mid-run.

In two terminals, the worker first (what is rung while nobody listens waits for a sweep), on as many machines as you
like::

    pip install -e ".[postgres]" && cd examples
    python engine_postgres_notify.py work
    python engine_postgres_notify.py FOLDER FOLDER ...  # counts the words of the files in each folder

``DATABASE_URL`` says where the server is, postgresql://postgres@127.0.0.1/postgres if left out.

A server for trying: ``docker run --rm -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:18``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from sequential import FlowExecutor, tool
from sequential.patterns import check
from sequential.stores.postgres import PostgresStorage

URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres")
LEASE = float(os.environ.get("LEASE_SECONDS", "120"))  # a worker that is silent for so long is taken for dead
SWEEP = float(os.environ.get("SWEEP_SECONDS", "60"))

log = logging.getLogger(__name__)
pool = ConnectionPool(URL, kwargs={"autocommit": True}, min_size=1, open=False)
storage = PostgresStorage(pool)


def count(input: dict[str, list[str]]) -> Generator[Any, Any, int]:
    """Count the words of several files, each in an invocation of its own."""
    words = 0
    for path in input["paths"]:
        words += check((yield tool("files", "words", {"path": path})))
    return words


def call(category: str, name: str, input: dict[str, str]) -> int:
    """Perform the only tool there is."""
    print(f"pid {os.getpid()} reads {input['path']}", flush=True)
    return len(Path(input["path"]).read_text().split())


def ring(id: str) -> None:
    """Tell all workers: one of them gets the lease."""
    with pool.connection() as connection:
        connection.execute("SELECT pg_notify('rings', %s)", [id])


flow = FlowExecutor(storage, call=call, resume=ring, workflows=[count], lease=LEASE, retain=True)


def work() -> None:
    """Run an invocation for each ring, until stopped; what another worker has the lease of, is left to that one."""
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("LISTEN rings")
        print(f"pid {os.getpid()} waits for rings", flush=True)
        while True:
            flow.sweep_sync()  # a ring that nobody listened to is lost: so when it begins, and now and then
            for notice in connection.notifies(timeout=SWEEP):
                try:
                    flow.resume_sync(notice.payload)
                except Exception:
                    log.exception("the execution keeps its state; unless it is parked, the next sweep rings again")


def main(folders: list[str]) -> None:
    """Start an execution for each folder, and tell what they have come to."""
    for folder in map(Path, folders):
        flow.start_sync(count, {"paths": sorted(str(path.resolve()) for path in folder.iterdir())}, folder.name)
    for folder in map(Path, folders):
        while (status := flow.status_sync(folder.name)) is not None and status.status == "running":
            time.sleep(0.05)
        print(f"{folder.name}: {status and (status.error or status.value)}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    with pool:
        storage.create_schema()  # once, at deployment; or in a migration of yours, from storage.schema
        work() if sys.argv[1:] == ["work"] else main(sys.argv[1:])
