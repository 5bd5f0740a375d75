"""A Redis stream carries the ring: its consumer group gives each to one worker, and one may be killed in mid-run.

In three terminals of one machine, as many workers as you like::

    pip install -e . redis && cd examples
    python engine_redis_stream.py work
    python -m sequential sweep engine_redis_stream:flow --every 60
    python engine_redis_stream.py FOLDER FOLDER ...     # counts the words of the files in each folder

``REDIS_URL`` says where the server is, redis://127.0.0.1:6379/0 if left out.  Executions are in ``counts.db``, or in
another store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).

A server for trying: ``docker run --rm -p 6379:6379 valkey/valkey:9 --appendonly yes --appendfsync always``.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from sequential import FlowExecutor, stores, tool
from sequential.patterns import check

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
LEASE = float(os.environ.get("LEASE_SECONDS", "60"))  # a worker that is silent for so long is taken for dead
STREAM, GROUP = "rings", "workers"

log = logging.getLogger(__name__)
redis: Any = Redis.from_url(URL)


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
    redis.xadd(STREAM, {"id": id})


storage = stores.open(os.environ.get("SEQUENTIAL_STORE", "sqlite:///counts.db"))
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[count], lease=LEASE, retain=True)


def work() -> None:
    """Run an invocation for each ring, until stopped; what another worker has the lease of, is left to that one."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    with suppress(ResponseError):  # it is there
        redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    print(f"{name} waits for rings", flush=True)
    while True:
        # First what a worker has taken and, for as long as a lease lasts, not acknowledged: it may be dead.
        rings = redis.xautoclaim(STREAM, GROUP, name, min_idle_time=int(1000 * LEASE), count=1)[1]
        if not rings:
            found = redis.xreadgroup(GROUP, name, {STREAM: ">"}, count=1, block=1000)
            rings = found[0][1] if found else []
        for key, said in rings:
            try:
                flow.resume_sync(said[b"id"].decode())
            except Exception:
                log.exception("the execution keeps its state; unless it is parked, the sweep rings again")
            redis.pipeline().xack(STREAM, GROUP, key).xdel(STREAM, key).execute()


def main(folders: list[str]) -> None:
    """Start an execution for each folder, and tell what they have come to."""
    for folder in map(Path, folders):
        flow.start_sync(count, folder.name, {"paths": sorted(str(path.resolve()) for path in folder.iterdir())})
    for folder in map(Path, folders):
        while (status := flow.status_sync(folder.name)) is not None and status.status == "running":
            time.sleep(0.05)
        print(f"{folder.name}: {status and (status.error or status.value)}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    work() if sys.argv[1:] == ["work"] else main(sys.argv[1:])
