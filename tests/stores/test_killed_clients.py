"""Processes that run one execution on a real server, killed with SIGKILL wherever they happen to be."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sequential import FlowExecutor, stores
from sequential.storage import settle
from tests.stores.test_postgres import new_prefix
from tests.worker import workflow

STEPS = 200
LEASE = 0.2


class Place(NamedTuple):
    """Where a store is."""

    url: str
    environment: dict[str, str]


@pytest.fixture(params=["postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    server = request.getfixturevalue(f"{request.param}_server")
    return {"postgres": lambda: Place(server.database(), {})}[request.param]()


def test_sigkill_from_outside_again_and_again(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "calls.log"
    options = ["--until-done", "--budget", "1e9", "--lease", str(LEASE)]
    command = [sys.executable, "-m", "tests.worker", place.url, str(log), "one", *options]
    storage: Any = stores.open(place.url)
    randomness, kills = random.Random(7), 0
    with closing(storage):
        if hasattr(storage, "create_schema"):
            storage.create_schema()
        flow = FlowExecutor(storage, workflows=[workflow], retain=True)
        flow.start_sync(workflow, {"steps": STEPS}, "one")
        for _ in range(40):
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            grown = size(log) + randomness.randrange(200, 1500)
            while size(log) < grown and worker.poll() is None:
                pass
            worker.kill()
            worker.communicate()
            if worker.returncode == 0:
                break
            kills += 1
        assert kills > 5
        status = flow.status_sync("one")
        assert status is not None
        assert (status.status, status.value) == ("finished", {"total": sum(number**2 for number in range(STEPS))})
        history = flow.history_sync("one")
    assert [step["step"] for step in history] == list(range(status.step))
    calls = Counter(int(line.split()[0]) for line in log.read_text().splitlines())
    assert sorted(calls) == [step["step"] for step in history if step["asked"] != "save"]
    assert sum(calls.values()) - len(calls) <= kills
    assert len({tuple(line.split()[:2]) for line in log.read_text().splitlines()}) == STEPS


def size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
