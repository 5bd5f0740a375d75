"""Processes that run one execution on a real server, killed with SIGKILL wherever they happen to be."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sequential import FlowExecutor, stores
from tests.worker import workflow

STEPS = 200
LEASE = 0.2


class Place(NamedTuple):
    """Where a store is."""

    url: str
    settings: dict[str, str]


PLACES: dict[str, Callable[[Any], Place]] = {
    "postgres": lambda server: Place(server.database(), {}),
    "valkey": lambda server: Place(server.url, {}),
    "seaweed": lambda server: Place(f"s3://{server.options['bucket']}/killed-clients/", server.settings),
    "dynamodb": lambda server: Place(f"dynamodb://us-east-1/killed-clients?endpoint={server.url}", server.settings),
    "firestore": lambda server: Place("firestore://killed-clients", {"FIRESTORE_EMULATOR_HOST": server.url}),
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = PLACES[request.param](request.getfixturevalue(f"{request.param}_server"))
    for name, value in found.settings.items():
        monkeypatch.setenv(name, value)
    return found


def test_sigkill_from_outside_again_and_again(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "calls.log"
    options = ["--until-done", "--budget", "1e9", "--lease", str(LEASE)]
    command = [sys.executable, "-m", "tests.worker", place.url, str(log), "one", *options]
    storage: Any = stores.open(place.url)
    randomness, kills = random.Random(7), 0
    with closing(storage):
        if hasattr(storage, "create_schema"):
            storage.create_schema()
        flow = FlowExecutor(storage, workflows=[workflow], retain=True)
        flow.delete_sync("one")
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
        flow.delete_sync("one")
    assert [step["step"] for step in history] == list(range(status.step))
    calls = Counter(int(line.split()[0]) for line in log.read_text().splitlines())
    assert sorted(calls) == [step["step"] for step in history if step["asked"] != "save"]
    assert sum(calls.values()) - len(calls) <= kills
    assert len({tuple(line.split()[:2]) for line in log.read_text().splitlines()}) == STEPS


def size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
