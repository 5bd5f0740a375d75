"""Every example runs as its first lines say, in a directory of its own, and shows what it promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RESULT = "digest-123: {'user': 'Ada', 'posts': 3, 'published': 1}"


def run(directory: Path, name: str, *options: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_example_is_tested_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "own_storage.py",
        "quickstart.py",
        "script.py",
        "test_workflow.py",  # by pytest itself, which collects it
    }


def test_quickstart(tmp_path: Path) -> None:
    for _ in range(2):
        lines = run(tmp_path, "quickstart.py")
        assert lines[0] == "digest-123: started"
        assert [re.sub(r"pid \d+", "pid", line) for line in lines[1:-2]] == [
            "  pid: replayed 0 steps, called tool api.users",
            "  pid: replayed 1 steps, called tool api.posts",
            "  pid: replayed 2 steps, called tool api.comments",
            "  pid: replayed 3 steps, called tool api.comments",
            "  pid: replayed 4 steps, called tool api.comments",
            "  pid: replayed 5 steps, saved",
            "  pid: replayed 6 steps, called tool api.publish",
            "  pid: replayed 7 steps, finished",
        ]
        assert len({line.split()[1] for line in lines[1:-2]}) == 8
        assert lines[-2:] == [RESULT, "in 8 processes, with 6 requests"]


def test_quickstart_with_a_process_killed(tmp_path: Path) -> None:
    lines = run(tmp_path, "quickstart.py", "--kill")
    assert len([line for line in lines if line.endswith("killed in the middle of a call; the sweep rings again")]) == 1
    assert lines[-2:] == [RESULT, "in 9 processes, with 7 requests"]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_quickstart_interrupted_goes_on_where_it_stopped(tmp_path: Path, blow: signal.Signals) -> None:
    command = [sys.executable, str(EXAMPLES / "quickstart.py")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    before = [process.stdout.readline() for _ in range(4)]
    assert before[-1].endswith("replayed 2 steps, called tool api.comments\n")
    process.send_signal(blow)
    rest = process.communicate()[0]
    assert process.returncode == (130 if blow == signal.SIGINT else -signal.SIGKILL)
    assert ("stopped; run it again, and it goes on from here" in rest) is (blow == signal.SIGINT)
    lines = run(tmp_path, "quickstart.py")
    assert re.fullmatch(r"digest-123: going on, [3-5] steps are done", lines[0])
    assert lines[-2] == RESULT


def test_script_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    for name, text in (("one", "a b c"), ("three", "d")):
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "two")
    command = [sys.executable, str(EXAMPLES / "script.py"), "one", "two", "three"]
    process = subprocess.Popen([*command[:1], "-u", *command[1:]], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["reading one\n", "reading two\n"]
    process.send_signal(signal.SIGKILL)  # it waits for the writer of a pipe that has none
    process.communicate()
    (tmp_path / "two").unlink()
    (tmp_path / "two").write_text("e f")
    lines = run(tmp_path, "script.py", "one", "two", "three")
    assert lines[:-1] == ["reading two", "reading three"]
    assert json.loads(lines[-1]) == {"one": 3, "two": 2, "three": 1}


def test_script_without_arguments_reads_itself(tmp_path: Path) -> None:
    lines = run(tmp_path, "script.py")
    assert json.loads(lines[-1])["script.py"] > 50


def test_own_storage(tmp_path: Path) -> None:
    assert run(tmp_path, "own_storage.py") == [
        "{'paused': 'square', 'step': 0} {'step': 1}",
        "{'paused': 'square', 'step': 1} {'step': 2}",
        "81 None",
    ]
