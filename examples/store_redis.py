"""Executions in Redis or Valkey: two processes share them, one is killed, and what has ended expires by itself.

    python examples/store_redis.py redis://127.0.0.1:6379/0

It needs the driver: ``pip install -e ".[redis]"``.

A server for trying: ``docker run --rm -p 6379:6379 valkey/valkey:9 --appendonly yes --appendfsync always``.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as NoConnection

from sequential import FlowExecutor, Paused, tool
from sequential.stores.redis import RedisStorage

WEEK = 7 * 86_400


def crawl(input: dict[str, int]) -> Generator[Any, Any, int]:
    """Fetch several pages and count their links."""
    links = 0
    for number in range(input["pages"]):
        links += yield tool("web", "links", {"page": number})
    return links


def call(category: str, name: str, input: dict[str, int]) -> int:
    """Perform the only tool there is: it takes its time, and the worker does not survive page 3."""
    print(f"page {input['page']}", flush=True)
    if input["page"] == 3 and "--doomed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return input["page"] + 1


def main(url: str) -> None:
    """Go on with the crawl until it has ended."""
    with Redis.from_url(url) as client:
        client.ping()
        # What has ended goes after a week; so does what nobody has gone on with for a week.
        storage = RedisStorage(client, prefix="crawl:", ttl=WEEK)
        flow = FlowExecutor(storage, call=call, budget=math.inf, lease=0.5, retain=True)
        outcome: Any = Paused("site-1", -1, "busy")
        while isinstance(outcome, Paused):
            time.sleep(0.05)  # while a dead worker's lease lasts, it is "busy"
            outcome = flow.execute_sync(crawl, "site-1", {"pages": 6})
        print(f"{outcome} links; the keys are", *sorted(key.decode() for key in client.scan_iter("crawl:{*")))
        print(f"the record expires in {client.ttl('crawl:{site-1}') / 86_400:.0f} days")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        if "--doomed" not in sys.argv:
            worker = subprocess.run([sys.executable, *sys.argv, "--doomed"], check=False)
            print("a worker was killed" if worker.returncode == -signal.SIGKILL else "a worker has ended")
        main(sys.argv[1])
    except NoConnection as error:
        sys.exit(f"{error}\n{__doc__}")
