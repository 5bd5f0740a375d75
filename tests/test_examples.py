"""Every example runs as its first lines say, in a directory of its own, and shows what it promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RESULT = "digest-123: {'user': 'Ada', 'posts': 3, 'published': 1}"


def run(directory: Path, name: str, *options: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def run_until(directory: Path, line: str, name: str, *options: str) -> list[str]:
    """Run an example, kill it once it has printed a certain line, and return all that it printed."""
    command, lines = [sys.executable, str(EXAMPLES / name), *options], list[str]()
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not lines or line not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.kill()
        rest = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL
    return [*map(str.rstrip, lines), *rest.splitlines()]


def name_processes(lines: list[str]) -> list[str]:
    """Call the processes A, B and so on, in the order in which they first say something."""
    pids = list(dict.fromkeys(re.findall(r"pid (\d+)", "\n".join(lines))))
    return [re.sub(r"pid (\d+)", lambda found: "ABC"[pids.index(found[1])], line).strip() for line in lines]


def test_every_example_is_tested_here() -> None:
    others = {"test_workflow.py", "versions.py"}  # the first is collected by pytest, the other has a test elsewhere
    others |= {path.name for path in EXAMPLES.glob("web_*.py")}  # in test_web_examples.py
    others |= {path.name for path in EXAMPLES.glob("engine_*.py")}  # in test_engines.py
    others |= {path.name for path in EXAMPLES.glob("cloudflare_*.py")}  # in test_edge.py
    assert {path.name for path in EXAMPLES.glob("*.py")} - others == {
        "agent.py",
        "approval.py",
        "booking_saga.py",
        "encrypted.py",
        "fan_out.py",
        "own_storage.py",
        "polling.py",
        "quickstart.py",
        "script.py",
    }


def test_quickstart(tmp_path: Path) -> None:
    for _ in range(2):
        lines = run(tmp_path, "quickstart.py")
        assert lines[0] == "digest-123: started"
        # A process may be so slow to print that the one it has rung for is the first.
        told = sorted(re.sub(r"pid \d+", "pid", line) for line in lines[1:-2])
        assert told == [
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
    assert len([line for line in lines if line.endswith("killed in the middle of a call; it is rung again")]) == 1
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
        "Paused({'paused': 'square', 'step': 0}, reason='tool') {'step': 1}",
        "Paused({'paused': 'square', 'step': 1}, reason='tool') {'step': 2}",
        "81 None",
    ]


def test_approval(tmp_path: Path) -> None:
    for _ in range(2):
        assert name_processes(run(tmp_path, "approval.py")) == [
            "A: replayed 0 steps",
            "A: called tool mail.ask",
            "A: paused tool",
            "A: replayed 1 steps",
            "A: paused wait",
            "answered: wait; nothing runs now, and this process might as well end",
            "B: Ada says yes to answered: taken",
            "B: Bob says yes to answered: too late",
            "answered: the sweep rings",
            "A: replayed 1 steps",
            "A: called tool bank.pay",
            "A: paused tool",
            "A: replayed 3 steps",
            "answered: receipt for 90, approved by Ada",
            "A: Eve says yes to early: taken",
            "A: replayed 0 steps",
            "A: called tool mail.ask",
            "A: paused tool",
            "A: replayed 1 steps",
            "A: called tool bank.pay",
            "A: paused tool",
            "A: replayed 3 steps",
            "early: receipt for 20, approved by Eve",
        ]


def test_approval_that_nobody_gives(tmp_path: Path) -> None:
    lines = run(tmp_path, "approval.py", "--timeout")
    assert [line.rpartition(": ")[2] for line in lines if "called" in line] == ["called tool mail.ask"]
    assert lines[-1] == "unanswered: not paid: timeout"


def test_approval_goes_on_after_it_was_killed_while_it_waited(tmp_path: Path) -> None:
    run_until(tmp_path, "nothing runs", "approval.py", "--timeout")
    lines = run(tmp_path, "approval.py", "--timeout")
    assert not [line for line in lines if "called" in line]
    assert lines[-1] == "unanswered: not paid: timeout"

    run_until(tmp_path, "nothing runs", "approval.py")  # its people may answer before the next process starts
    lines = run(tmp_path, "approval.py")
    assert "answered: receipt for 90, approved by Ada" in lines
    assert lines[-1] == "early: receipt for 20, approved by Eve"


def test_fan_out(tmp_path: Path) -> None:
    for _ in range(2):
        lines = name_processes(run(tmp_path, "fan_out.py"))
        asked = {process: re.findall(rf"{process}: asks for (\w+)", "\n".join(lines)) for process in "AB"}
        assert asked["A"] == ["Bern", "Lima", "Oslo", "Pune", "Rome"]
        assert len(asked["B"]) == 3
        assert lines[lines.index("A was killed") - 1] == "A: has saved 2 of what it asked for"
        assert lines[-5:] == [
            f"{city}: 12 degrees, asked by {'B' if city in asked['B'] else 'A'}" for city in asked["A"]
        ]


def test_booking_saga(tmp_path: Path) -> None:
    for _ in range(2):
        lines = name_processes(run(tmp_path, "booking_saga.py"))
        keys = [line.rpartition(":")[2] for line in lines if ", key" in line]
        assert [line.partition(", key")[0] for line in lines] == [
            "A: books the flight",
            "A: books the hotel",
            "A: books the car",
            "A: books the car",
            "A: cancels the hotel to Oslo",
            "A was killed",
            "B: cancels the hotel to Oslo",
            "B: cancels the flight to Oslo",
            "trip-1: nothing is booked: travel.book failed: there is no car",
            "B: books the flight",
            "B: books the hotel",
            "B: books the car",
            "B: cancels the car to Rome",
            "B: cancels the hotel to Rome",
            "B: cancels the flight to Rome",
            "trip-2: cancelled",
        ]
        # 3 is the sleep before the second attempt, and then the wait.
        assert "".join(keys) == "0124556012456"


def test_polling(tmp_path: Path) -> None:
    lines = run(tmp_path, "polling.py")
    assert lines[:-1:2] == [f"round {round}: render is at {20 * round} percent" for round in range(1, 6)]
    assert set(lines[1:-1:2]) == {"  paused: sleep, history: ['tool jobs.look']"}
    assert lines[-1] == "watch-render: done after 5 rounds"


def test_polling_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    def rounds(lines: list[str]) -> list[int]:
        return [int(found[1]) for line in lines if (found := re.match(r"round (\d)", line))]

    before = rounds(run_until(tmp_path, "round 2", "polling.py"))
    lines = run(tmp_path, "polling.py")
    after = rounds(lines)
    assert after[0] in {before[-1], before[-1] + 1}
    assert sorted({*before, *after}) == [1, 2, 3, 4, 5]
    assert lines[-1] == "watch-render: done after 5 rounds"


def test_agent(tmp_path: Path) -> None:
    for _ in range(2):
        assert name_processes(run(tmp_path, "agent.py")) == [
            "A: asks the model, 1 messages",
            'A: find_person {"name": "Ada"}',
            'A: find_weather {"city": "Oslo"}',
            "A: asks the model, 4 messages",
            'A: send_email {"to": "ada@example.org", "text": "It is raining in Oslo."}',
            "A was killed",
            "B: asks the model, 6 messages",
            'agent-1: What I heard last: {"__error": "interrupted"}',
        ]


def test_agent_with_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str | None, dict[str, Any]]]()
    calls = [
        {"id": str(number), "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate([("find_person", "{}"), ("fly", "{}"), ("find_weather", "{")])
    ]
    answers: list[Any] = [
        None,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "assistant", "content": "Good bye."},
    ]

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers["Authorization"], body))
            answer = answers[len(asked) - 1]
            self.send_response(503 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": answer}]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MODEL_URL", f"http://127.0.0.1:{server.server_port}/chat")
        monkeypatch.setenv("MODEL_NAME", "small")
        monkeypatch.setenv("MODEL_KEY", "a key")
        try:
            lines = run(tmp_path, "agent.py")
        finally:
            server.shutdown()
    assert lines[-1] == "agent-1: Good bye."
    assert {(key, body["model"]) for key, body in asked} == {("Bearer a key", "small")}
    names = [offered["function"]["name"] for offered in asked[0][1]["tools"]]
    assert names == ["find_person", "find_weather", "send_email"]
    messages = [body["messages"] for _, body in asked]
    assert messages[0] == messages[1] == messages[2][:1]
    assert messages[2][1] == answers[1]
    assert [message["tool_call_id"] for message in messages[2][2:]] == ["0", "1", "2"]
    person, flown, broken = [json.loads(message["content"]) for message in messages[2][2:]]
    assert (person, flown, list(broken)) == ("Ada is in Oslo", {"__error": "'fly'"}, ["__error"])


def test_encrypted(tmp_path: Path) -> None:
    for _ in range(2):
        lines = run(tmp_path, "encrypted.py")
        assert lines[:2] == ["Dear colleague, Ada is in the best of health"] * 2
        assert re.fullmatch(r"\d+ bytes are stored, and no patient is to be found in them", lines[2])
