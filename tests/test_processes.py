"""Real processes on one SQLite file, killed with SIGKILL wherever a process can die."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sequential import FlowExecutor
from sequential.stores.sqlite import SQLiteStorage
from tests.worker import workflow


class World:
    """A SQLite file, a log of tool calls, and an execution that was started."""

    def __init__(self, directory: Path, steps: int) -> None:
        self.path, self.log = directory / "flows.db", directory / "calls.log"
        self.steps = steps
        self.storage = SQLiteStorage(self.path)
        self.flow = FlowExecutor(self.storage, workflows=[workflow], retain=True)
        self.flow.start_sync(workflow, "one", {"steps": steps})

    def worker(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.worker", f"sqlite:///{self.path}", str(self.log), "one", *options]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *options: str) -> tuple[int, list[Any]]:
        worker = self.worker(*options)
        output = worker.communicate()[0]
        return worker.returncode, [json.loads(line) for line in output.splitlines()]

    def calls(self) -> dict[int, int]:
        """How often each step's tool was called."""
        return dict(Counter(int(line.split()[0]) for line in self.log.read_text().splitlines()))

    def check(self) -> None:
        """The value is right, and every step is recorded exactly once, called at least once, under one key."""
        expected = {"total": sum(number**2 for number in range(self.steps))}
        status = self.flow.status_sync("one")
        assert status is not None
        assert (status.status, status.value) == ("finished", expected)
        history = self.flow.history_sync("one")
        assert [step["step"] for step in history] == list(range(status.step))
        tools = [step["step"] for step in history if step["asked"] != "save"]
        assert len(tools) == self.steps
        assert sorted(self.calls()) == tools
        keys = {tuple(line.split()[:2]) for line in self.log.read_text().splitlines()}
        assert len(keys) == self.steps
        self.storage.close()


@pytest.mark.parametrize("budget", ["0", "1e9"])
def test_sigkill_at_every_point(tmp_path: Path, budget: str) -> None:
    point, died = 0, True
    while died:
        directory = tmp_path / str(point)
        directory.mkdir()
        world = World(directory, 2)
        code, _ = world.run("--die", str(point), "--budget", budget, "--until-done")
        died = code == -signal.SIGKILL
        assert died or code == 0
        if died:
            # No lease is waited for: it belonged to a process that is dead.
            assert world.run("--until-done", "--budget", budget)[0] == 0
        world.check()
        assert max(world.calls().values()) <= 2
        point += 1
    assert point > 10


def test_sigkill_from_outside_again_and_again(tmp_path: Path) -> None:
    world, randomness = World(tmp_path, 600), random.Random(5)
    world.log.touch()
    for _ in range(12):
        grown = world.log.stat().st_size + randomness.randrange(1000)  # up to thirty calls
        worker = world.worker("--until-done", "--budget", "1e9")
        while world.log.stat().st_size < grown and worker.poll() is None:
            pass
        worker.kill()
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
    assert world.run("--until-done", "--budget", "1e9")[0] == 0
    world.check()


@pytest.mark.parametrize("budget", ["0", "1e9"])
def test_processes_that_resume_one_execution_at_once_call_each_tool_once(tmp_path: Path, budget: str) -> None:
    world = World(tmp_path, 12)
    workers = [world.worker("--until-done", "--wait", "--budget", budget) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate()[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1] == '{"total": 506}'
    world.check()
    assert set(world.calls().values()) == {1}
