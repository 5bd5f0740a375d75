"""The handler as a Lambda function: what AWS sends it, and AWS's own client that runs it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from sequential import EventLoopNeeded, FlowExecutor, StorageError, current, tool
from sequential.http import Request, lambda_handler
from sequential.http.callback import Callback
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock
from tests.conftest import required
from tests.http.support import SECRET, World, callback_for, request_for, three
from tests.servers.lambda_runtime import (
    Context,
    FunctionFailed,
    LambdaFunction,
    function_url,
    load_balancer,
    rest_api,
    scheduled,
)
from tests.servers.processes import until
from tests.support import AsyncJournal

SECONDS = 1.7
"""How long an invocation may take: one second is the margin, the rest is for some steps."""


FORMATS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "function URL": function_url,
    "function URL, base 64": lambda request: function_url(request, binary=True),
    "HTTP API with a stage": lambda request: function_url(request, stage="prod"),
    "REST API": rest_api,
    "REST API, base 64": lambda request: rest_api(request, binary=True),
    "REST API, no several values": lambda request: {**rest_api(request), "multiValueHeaders": None},
    "load balancer": load_balancer,
    "load balancer, base 64": lambda request: load_balancer(request, binary=True),
    "load balancer, several values": lambda request: load_balancer(request, several=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_request_in_each_format(name: str) -> None:
    world = World()
    handle, record = lambda_handler(world.flow, SECRET), world.start()
    good = request_for(callback_for(record))
    for request, status, reason, said in (
        (good._replace(headers={}), 401, "Unauthorized", {"error": "the header webhook-id is missing"}),
        (good._replace(body=good.body + b" "), 401, "Unauthorized", None),
        (good._replace(method="GET", body=b""), 405, "Method Not Allowed", {"error": "a callback is a POST"}),
        (good._replace(path="/flows/resumed/exec-1"), 404, "Not Found", None),
        (good, 200, "OK", {"status": "paused", "id": "exec-1", "reason": "tool"}),
        (good, 200, "OK", {"status": "stale", "id": "exec-1"}),
    ):
        answer = json.loads(json.dumps(handle(FORMATS[name](request), Context())))
        assert (answer.pop("statusCode"), answer.pop("isBase64Encoded")) == (status, False)
        body = answer.pop("body")
        assert said in (None, json.loads(body))
        headers = {"content-type": "application/json", "cache-control": "no-store", "content-length": str(len(body))}
        if status == 405:
            headers["allow"] = "POST"
        if name == "load balancer, several values":
            assert answer.pop("multiValueHeaders") == {each: [value] for each, value in headers.items()}
        else:
            assert answer.pop("headers") == headers
        assert answer == ({"statusDescription": f"{status} {reason}"} if "balancer" in name else {})
        assert world.called == ([0] if status == 200 else [])


def test_a_path_is_decoded_once() -> None:
    world = World()
    handle, record = lambda_handler(world.flow, SECRET), world.start("a:b")
    event = load_balancer(request_for(callback_for(record), path="/flows/resume/a%3Ab"))
    assert handle(event, Context())["statusCode"] == 200
    assert world.called == [0]


def test_an_asynchronous_invocation() -> None:
    world = World()
    handle, record = lambda_handler(world.flow, SECRET), world.start()
    first = {"resume": callback_for(record)._asdict()}
    assert handle(first, Context()) == {"status": 200}
    assert world.called == [0]
    assert handle(first, Context()) == {"status": 200}  # it came a second time
    assert world.called == [0]
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    assert handle({"resume": {"id": "exec-1"}}, Context()) == {"status": 200}
    assert world.called == [0, 1, 2]
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    assert world.flow.execute_sync(three, "exec-1") == [0, 1, 4]
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    assert handle({"resume": "exec-2"}, Context()) == {"status": 404}
    assert world.called == [0, 1, 2]


def test_an_asynchronous_invocation_that_finds_another_at_work_is_not_tried_again() -> None:
    world = World()
    handle = lambda_handler(world.flow, SECRET)
    world.start()
    world.during = lambda: answers.append(handle({"resume": "exec-1"}, Context()))
    answers = list[Any]()
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    assert answers == [{"status": 409}]
    assert world.called == [0]


def test_an_asynchronous_invocation_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True

    def fragile(input: Any) -> Generator[Any, Any, Any]:
        value = yield tool("api", "square", 3)
        if broken:
            raise KeyError("secret")
        return value

    world = World(workflows=[fragile])
    handle = lambda_handler(world.flow, SECRET)
    world.flow.start_sync(fragile, "exec-1")
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    with pytest.raises(RuntimeError, match="has failed and keeps its state") as raised:
        handle({"resume": "exec-1"}, Context())
    assert "secret" not in str(raised.value)
    broken = False
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}  # AWS tries again, and it is parked
    assert world.record().status == "failed"
    assert world.flow.ring_sync("exec-1")

    def away(*arguments: Any) -> Any:
        raise StorageError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "read", away)
        with pytest.raises(RuntimeError, match="nothing is lost"):
            handle({"resume": "exec-1"}, Context())
    assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
    assert world.flow.execute_sync(fragile, "exec-1") == 9
    assert world.called == [3]


@pytest.mark.parametrize("source", ["aws.events", "aws.scheduler"])
def test_a_schedule_sweeps(source: str) -> None:
    clock = FakeClock()
    world = World(clock=clock)
    handle = lambda_handler(world.flow, SECRET)
    world.start()
    assert handle(scheduled(source), Context()) == {"swept": []}
    clock.advance(31)
    assert handle(scheduled(source), Context()) == {"swept": ["exec-1"]}
    assert world.rung == ["exec-1", "exec-1"]
    assert world.called == []


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"Records": [{"eventSource": "aws:sqs", "body": "{}"}]}, 'HTTP requests, schedules and {"resume": id}, not'),
        ({}, 'HTTP requests, schedules and {"resume": id}, not {}'),
        ({"detail-type": "EC2 Instance State-change Notification"}, "State-change"),
        ({"resume": 5}, "a JSON object for execution '5'"),
        ({"resume": None}, "a JSON object for execution"),
        ({"resume": ["exec-1"]}, "cannot be an execution id"),
        ({"resume": {"id": "exec-1", "step": "1"}}, "not whole numbers"),
        ({"resume": "../exec-1"}, "cannot be an execution id"),
        ({"resume": {}}, "'' cannot be an execution id"),
        ("exec-1", "not 'exec-1'"),
        (None, "not None"),
        ([], "not []"),
    ],
)
def test_an_event_that_is_none_of_these(event: Any, said: str) -> None:
    world = World()
    world.start()
    asked = world.storage.asked
    with pytest.raises(ValueError, match=r"\w") as raised:
        lambda_handler(world.flow, SECRET)(event, Context())
    assert said in str(raised.value)
    assert (world.storage.asked, world.called) == (asked, [])


def many(input: int) -> Generator[Any, Any, Any]:
    """So many calls."""
    total = 0
    for number in range(input):
        total += yield tool("api", "square", number)
    return total


@pytest.mark.parametrize("by", ["event", "request"])
def test_an_invocation_ends_a_margin_before_its_time_does(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    clock = FakeClock(time.time())
    monkeypatch.setattr("sequential.http.aws_lambda.time", clock)
    monkeypatch.setattr("sequential.context.time", clock)
    world = World(workflows=[many], budget=math.inf, clock=clock)
    world.during = lambda: clock.advance(7)
    world.flow.start_sync(many, "exec-1", 20)
    handle, done = lambda_handler(world.flow, SECRET), list[int]()
    while world.record().status != "finished":
        context = Context(60, clock)
        callback = callback_for(world.record())
        if by == "event":
            assert handle({"resume": callback._asdict()}, context) == {"status": 200}
        else:
            request = request_for(callback, at=time.time())
            assert handle(function_url(request), context)["statusCode"] == 200
        done.append(len(world.called) - sum(done))
        assert context.get_remaining_time_in_millis() >= 3000  # the margin is 10 seconds, of which a step takes 7
    assert done == [8, 8, 4]
    assert world.rung == ["exec-1"] * 3
    assert world.called == list(range(20))
    assert world.flow.execute_sync(many, "exec-1") == 2470


def test_an_invocation_with_hardly_any_time_does_one_step() -> None:
    world = World(budget=math.inf)
    handle = lambda_handler(world.flow, SECRET)
    world.start()
    assert handle({"resume": "exec-1"}, Context(0.5)) == {"status": 200}
    assert world.called == [0]


def test_hooks_and_a_store_that_are_async() -> None:
    async def call(category: str, name: str, input: int) -> int:
        await asyncio.sleep(0)
        return input + 1

    clock, rung = FakeClock(), list[str]()

    async def ring(id: str) -> None:
        await asyncio.sleep(0)
        rung.append(id)

    storage = AsyncJournal(MemoryStorage())
    flow = FlowExecutor(storage, call=call, resume=ring, workflows=[three], retain=True, clock=clock)
    with asyncio.Runner() as runner:
        runner.run(flow.start(three, id="exec-1"))
        handle = lambda_handler(flow, SECRET, run=runner.run)
        request = request_for(Callback("exec-1"))
        assert handle(function_url(request), Context())["statusCode"] == 200
        assert handle({"resume": "exec-1"}, Context()) == {"status": 200}
        clock.advance(31)
        assert handle(scheduled("aws.events"), Context()) == {"swept": ["exec-1"]}
        assert [handle({"resume": "exec-1"}, Context()) for _ in range(2)] == [{"status": 200}] * 2
        assert runner.run(flow.execute(three, "exec-1")) == [1, 2, 3]
        assert rung == ["exec-1"] * 5
        with pytest.raises(EventLoopNeeded):
            lambda_handler(flow, SECRET)({"resume": "exec-1"}, Context())


FILE = "flows.db"


def sleepy(input: int) -> Generator[Any, Any, Any]:
    """So many calls that take their time."""
    total = 0
    for number in range(input):
        total += yield tool("clock", "tick", number)
    return total


def fatal(input: Any) -> Generator[Any, Any, Any]:
    """Its second call is the end of the process that makes it."""
    first = yield tool("api", "square", 2)
    second = yield tool("api", "hang", 3)
    return first + second + (yield tool("api", "square", 4))


def failing(input: Any) -> Generator[Any, Any, Any]:
    """It has a mistake."""
    yield tool("api", "square", 2)
    raise KeyError("a mistake")


def call(category: str, name: str, input: int) -> int:
    step, calls = current(), Path("calls")
    again = calls.exists() and step.key in calls.read_text()
    with calls.open("a") as log:
        log.write(f"{step.key} {os.getpid()}\n")
    if name == "tick":
        time.sleep(0.1)
    if name == "hang" and not again:
        time.sleep(3600)
    return input * input


@cache
def function() -> Callable[[dict[str, Any], Any], Any]:
    import boto3

    key = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
    client = boto3.client("lambda", endpoint_url=f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}", **key)

    def ring(id: str) -> None:
        step = current()
        said = {"resume": {"id": id, "run": step.run, "step": step.step}}
        client.invoke(FunctionName="flows", InvocationType="Event", Payload=json.dumps(said))

    storage = SQLiteStorage(FILE)
    flow = FlowExecutor(storage, call=call, resume=ring, workflows=WORKFLOWS, retain=True, budget=math.inf)
    return lambda_handler(flow, SECRET)


WORKFLOWS = [sleepy, fatal, failing]


def handler(event: dict[str, Any], context: Any) -> Any:
    """What awslambdaric runs."""
    return function()(event, context)


class Deployed(LambdaFunction):
    """The function above, and its store seen from outside."""

    flow: FlowExecutor

    def prepare(self) -> None:
        super().prepare()
        storage = SQLiteStorage(self.directory / FILE)
        self.resources.callback(storage.close)
        self.flow = FlowExecutor(storage, workflows=WORKFLOWS, retain=True)

    def stands(self, id: str) -> str | None:
        status = self.flow.status_sync(id)
        return status and status.status

    def calls(self, id: str) -> list[tuple[str, int]]:
        """The keys and the processes of an execution's tool calls."""
        log = self.directory / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(key, int(pid)) for key, pid in map(str.split, lines) if key.startswith(f"{id}:")]


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with required(Deployed(f"{__name__}.handler", SECONDS)) as server:
        yield server


def test_aws_runs_an_execution_in_invocations_that_end_in_time(deployed: Deployed) -> None:
    id, before = deployed.flow.start_sync(sleepy, input=16), len(deployed.answers)
    deployed.send({"resume": id})
    until(lambda: deployed.stands(id) == "finished" and deployed.is_idle(), "the execution is finished")
    assert deployed.flow.execute_sync(sleepy, id) == sum(number**2 for number in range(16))
    assert [step["result"] for step in deployed.flow.history_sync(id)] == [number**2 for number in range(16)]
    assert len(deployed.calls(id)) == 16
    answers, spare = deployed.answers[before:], deployed.spare[before:]
    assert len(answers) > 2
    assert answers == [{"status": 200}] * len(answers)
    assert median(spare) > 0  # without a margin all but the last are late; and once, this machine may have stalled


def test_aws_kills_the_function_in_mid_step_and_sends_the_event_again(deployed: Deployed) -> None:
    id, before = deployed.flow.start_sync(fatal), len(deployed.answers)
    deployed.send({"resume": id})
    until(lambda: len(deployed.calls(id)) == 2, "the second call is made")
    deployed.kill()
    assert [type(answer) for answer in deployed.answers[before:]] == [FunctionFailed]
    deployed.restart()
    until(lambda: deployed.stands(id) == "finished" and deployed.is_idle(), "the execution is finished")
    assert deployed.flow.execute_sync(fatal, id) == 4 + 9 + 16
    (first, old), (second, killed), (again, new), (last, newest) = deployed.calls(id)
    assert (old, new) == (killed, newest)
    assert old != new
    assert second == again
    assert [key.rpartition(":")[2] for key in (first, second, last)] == ["0", "1", "2"]


def test_aws_tries_again_what_fails_and_finds_it_parked(deployed: Deployed) -> None:
    id, before = deployed.flow.start_sync(failing), len(deployed.answers)
    assert deployed.send({"resume": id}).outcome.result(20) == {"status": 200}
    failure, answer = deployed.answers[before:]
    assert (failure.args[0], answer) == ("RuntimeError", {"status": 200})
    assert len(deployed.calls(id)) == 1
    assert deployed.stands(id) == "failed"


def test_aws_hands_over_requests_and_schedules(deployed: Deployed) -> None:
    id = deployed.flow.start_sync(sleepy, input=1)
    request = request_for(Callback(id))
    assert deployed.invoke(rest_api(request._replace(body=b"{}")))["statusCode"] == 401
    assert deployed.invoke(rest_api(request))["statusCode"] == 200
    assert deployed.flow.execute_sync(sleepy, id) == 0
    assert deployed.invoke(scheduled("aws.scheduler")) == {"swept": []}
    with pytest.raises(FunctionFailed, match=r"ValueError.*this function takes HTTP requests"):
        deployed.invoke({"Records": []})
