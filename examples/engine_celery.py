"""Celery on Redis carries the ring: any number of workers share the executions, and one may be killed in mid-run.

In three terminals of one machine, as many workers as you like::

    pip install -e . "celery[redis]" && cd examples
    celery -A engine_celery worker
    celery -A engine_celery beat                # one of these: it has the late ones swept every minute
    python engine_celery.py FOLDER FOLDER ...   # counts the words of the files in each folder

``REDIS_URL`` says where the server is, redis://127.0.0.1:6379/0 if left out.  Executions are in ``counts.db``, or in
another store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).

A server for trying: ``docker run --rm -p 6379:6379 valkey/valkey:9 --appendonly yes --appendfsync always``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from celery import Celery  # type: ignore[import-untyped]

from sequential import FlowExecutor, stores, tool
from sequential.patterns import check

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
LEASE = float(os.environ.get("LEASE_SECONDS", "60"))  # a worker that is silent for so long is taken for dead
SWEEP = float(os.environ.get("SWEEP_SECONDS", "60"))

app = Celery("engine_celery", broker=URL)
# What a dead worker had taken and not acknowledged, Celery gives to another one an hour later (visibility_timeout,
# which must be longer than any step).  It is the sweep that goes on with it as soon as the lease has ended.
app.conf.worker_prefetch_multiplier = 1  # the fewer it had taken, the fewer have to wait for the sweep
app.conf.beat_schedule = {
    "sweep": {"task": "engine_celery.sweep", "schedule": SWEEP, "options": {"expires": max(SWEEP, 1)}}
}


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
    """Hand over to whichever worker is free."""
    app.send_task("engine_celery.resume", (id,))


storage = stores.open(os.environ.get("SEQUENTIAL_STORE", "sqlite:///counts.db"))
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[count], lease=LEASE, retain=True)


@app.task(acks_late=True)  # type: ignore[untyped-decorator]
def resume(id: str) -> None:
    """Run an invocation; if another worker has the lease, it is that one's business, and nothing is done."""
    flow.resume_sync(id)


@app.task  # type: ignore[untyped-decorator]
def sweep() -> None:
    """Ring for what is late."""
    flow.sweep_sync()


def main(folders: list[str]) -> None:
    """Start an execution for each folder, and tell what they have come to."""
    for folder in map(Path, folders):
        flow.start_sync(count, folder.name, {"paths": sorted(str(path.resolve()) for path in folder.iterdir())})
    for folder in map(Path, folders):
        while (status := flow.status_sync(folder.name)) is not None and status.status == "running":
            time.sleep(0.05)
        print(f"{folder.name}: {status and (status.error or status.value)}")


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else sys.exit(__doc__)
