"""The same resume on engines that exist: with workers in processes of their own, one killed; and on queues of clouds."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import boto3
import httpx
import jwt
import pytest
import qstash
from google.auth.credentials import AnonymousCredentials
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksRestTransport
from redis import Redis

from examples import engine_queues
from sequential import FlowExecutor, Status, current, tool, wait
from sequential.errors import StorageError
from sequential.http import lambda_handler, wsgi_app
from sequential.stores.memory import MemoryStorage
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock
from tests.conftest import OwnServer, required
from tests.servers import queues
from tests.servers.dynamodb import DynamoServer
from tests.servers.processes import until
from tests.servers.script import EXAMPLES, Script
from tests.servers.valkey import ValkeyServer

CELERY = ["-m", "celery", "-A", "engine_celery"]
FASTER = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
LEASE = 1.0
PATIENCE = 20.0
"""Seconds; the sweep rings for what the engine has lost after half a minute, which is not to pass for the engine's work."""


def count(input: dict[str, list[str]]) -> Generator[Any, Any, None]:
    """Stand in for the workflow of this name in the examples, which their workers run."""
    yield


class Library(ExitStack):
    """Folders whose words an example's workers count, while one of them is killed.

    Args:
        directory: Where the folders go.
        example: The example's name.
        broker: The URL of what carries its rings.
    """

    def __init__(self, directory: Path, example: str, broker: str) -> None:
        super().__init__()
        self.example, file = str(EXAMPLES / f"{example}.py"), directory / "counts.db"
        self.settings = {"LEASE_SECONDS": str(LEASE), "SWEEP_SECONDS": "0.2", "REDIS_URL": broker}
        self.settings["SEQUENTIAL_STORE"] = f"sqlite:///{file}"
        self.counts = {f"folder-{number}": [number + file for file in range(4)] for number in range(8)}
        self.folders = {name: directory / name for name in self.counts}
        for name, counts in self.counts.items():
            self.folders[name].mkdir()
            for number, words in enumerate(counts):
                (self.folders[name] / str(number)).write_text("word " * words)
        self.pipe = self.folders["folder-2"] / "1"
        self.pipe.unlink()
        os.mkfifo(self.pipe)  # whoever reads it is stuck, for nobody writes to it
        self.storage = self.enter_context(closing(SQLiteStorage(file)))
        self.flow = FlowExecutor(self.storage, retain=True)

    def run(self, *flags: str, says: str = "") -> Script:
        """Start a program that is ended with the test."""
        return self.enter_context(Script(*flags, says=says, settings=self.settings))

    def start(self) -> Script:
        """Have the example start an execution for each folder but the last, whose only ring was lost a minute ago."""
        *names, lost = self.folders
        long_ago = FlowExecutor(self.storage, clock=lambda: time.time() - 60)
        long_ago.start_sync(count, lost, {"paths": [str(self.folders[lost] / str(file)) for file in range(4)]})
        return self.run(self.example, *(str(self.folders[name]) for name in names))

    def kill_one_in_mid_run(self, *workers: Script) -> None:
        """Kill the worker that is stuck, in the middle of a step."""

        def stuck() -> list[Script]:
            return [worker for worker in workers if f"reads {self.pipe}\n" in worker.said()]

        until(stuck, "a worker reads the pipe", PATIENCE)
        (victim,) = stuck()
        victim.kill()
        self.pipe.unlink()
        self.pipe.write_text("word " * self.counts["folder-2"][1])
        assert self.flow.status_sync("folder-2")[:3] == ("folder-2", "running", 1)  # type: ignore[index]

    def check(self, started: Script, *workers: Script) -> None:
        """All ended right, with each step recorded once; both workers took part."""
        *names, lost = self.counts
        ends = [f"{name}: {sum(self.counts[name])}" for name in names]
        until(lambda: len(started.said().splitlines()) >= len(ends), f"{ends}", PATIENCE)
        assert started.said().splitlines() == ends
        until(lambda: self.flow.status_sync(lost).status == "finished", lost, PATIENCE)  # type: ignore[union-attr]
        for name, counts in self.counts.items():
            assert [(step["step"], step["result"]) for step in self.flow.history_sync(name)] == [*enumerate(counts)]
        readers = [worker for worker in workers if f"reads {self.pipe}\n" in worker.said()]
        assert len(readers) == 2
        for worker in workers:  # one that had no time for a second may have been taken for dead
            assert worker.said().count("Traceback ") == worker.said().count("sequential.errors.Fenced: ")


def test_celery(tmp_path: Path, own_server: OwnServer) -> None:
    url = own_server(ValkeyServer()).url
    with Library(tmp_path, "engine_celery", url) as library, Redis.from_url(url) as redis:
        options = ["--concurrency", "1", "--loglevel", "INFO", *FASTER]
        workers = [
            library.run(*CELERY, "worker", "--hostname", f"{name}@here", *options, says="ready.") for name in "ab"
        ]
        library.run(*CELERY, "beat")
        started = library.start()
        library.kill_one_in_mid_run(*workers)
        library.check(started, *workers)

        def unacknowledged() -> list[str]:
            headers = [json.loads(message)[0]["headers"] for message in redis.hvals("unacked")]
            return [each["argsrepr"] for each in headers if each["task"] == "engine_celery.resume"]

        # Celery still waits for the dead worker: it was the sweep that went on.
        until(lambda: unacknowledged() == ["('folder-2',)"], "all but the dead worker have acknowledged")


def test_redis_stream(tmp_path: Path, own_server: OwnServer) -> None:
    url = own_server(ValkeyServer()).url
    with Library(tmp_path, "engine_redis_stream", url) as library, Redis.from_url(url) as redis:
        started = library.start()
        until(lambda: redis.xlen("rings") == 7, "all are started")
        redis.xgroup_create("rings", "workers", id="0")
        # A worker has taken a ring and died before it did anything: a sweep would help in half a minute only.
        redis.xreadgroup("workers", "dead", {"rings": ">"}, count=1)
        workers = [library.run(library.example, "work", says="waits for rings") for _ in range(2)]
        library.run("-m", "sequential", "sweep", "engine_redis_stream:flow", "--every", "0.2")
        library.kill_one_in_mid_run(*workers)
        library.check(started, *workers)
        until(lambda: redis.xlen("rings") == 0, "no ring is left")
        assert redis.xpending("rings", "workers")["pending"] == 0


def order(input: Any) -> Generator[Any, Any, list[Any]]:
    """Wait for a yes between two calls."""
    reserved = yield tool("shop", "reserve")
    answer = yield wait("approval")
    return [reserved, answer, (yield tool("shop", "charge"))]


def stocktaking(input: dict[str, int]) -> Generator[Any, Any, int]:
    """Make many calls."""
    for number in range(input["shelves"]):
        yield tool("shop", "look", number)
    return input["shelves"]


class Shop:
    """Executions in memory, and what their tools were called for.

    Args:
        ring: The hook.
    """

    def __init__(self, ring: Callable[[str], None]) -> None:
        self.clock, self.asked, self.away = FakeClock(time.time()), list[str](), set[str]()
        workflows = [order, stocktaking]
        self.flow = FlowExecutor(
            MemoryStorage(), call=self.call, resume=ring, workflows=workflows, clock=self.clock, retain=True
        )

    def call(self, category: str, name: str, input: Any) -> str:
        self.asked.append(f"{current().id} {name}")
        if current().id in self.away:
            self.away.remove(current().id)
            raise StorageError("as it may be, once")
        return f"{name} is done"

    def status(self, id: str) -> Status:
        status = self.flow.status_sync(id)
        assert status is not None
        return status

    def run(self, lose: Callable[[], int], deliver: Callable[[], Any]) -> None:
        """Run an order whose first ring is lost; what the sweep and the signal ring for was rung for before."""
        self.flow.start_sync(order, "order-1")
        assert lose() == 1
        self.clock.advance(31)
        assert self.flow.sweep_sync() == ["order-1"]
        deliver()
        assert self.status("order-1")[1:3] == ("waiting", 1)
        assert self.flow.signal_sync("order-1", "approval", "yes")
        deliver()
        assert self.status("order-1").value == ["reserve is done", "yes", "charge is done"]
        assert self.asked == ["order-1 reserve", "order-1 charge"]


AWS = {"region_name": "eu-west-1", "aws_access_key_id": "sequential", "aws_secret_access_key": "only-on-loopback"}


@pytest.fixture
def event_queue() -> Iterator[tuple[queues.LambdaModel, Shop]]:
    """A model of Lambda, and a shop that rings through it."""
    with (
        queues.LambdaModel() as model,
        closing(boto3.client("lambda", endpoint_url=f"http://{model.address}", **AWS)) as client,
    ):
        yield model, Shop(engine_queues.lambda_event(client, "flows"))


def test_lambda_event(event_queue: tuple[queues.LambdaModel, Shop]) -> None:
    model, shop = event_queue
    handler = lambda_handler(shop.flow, insecure=True)
    shop.run(model.lose, lambda: model.deliver(handler))


def test_lambda_event_of_a_chain_that_lambda_takes_for_a_loop(event_queue: tuple[queues.LambdaModel, Shop]) -> None:
    model, shop = event_queue
    handler = lambda_handler(shop.flow, insecure=True)
    shop.flow.start_sync(stocktaking, "all", {"shelves": 40})
    chains = [len(model.deliver(handler))]
    while shop.status("all").status == "running":
        shop.clock.advance(31)
        assert model.invoke(handler, {"detail-type": "Scheduled Event", "source": "aws.events"}) == {"swept": ["all"]}
        chains.append(len(model.deliver(handler)))
    assert chains == [16, 16, 9]
    assert len(shop.asked) == 40


class Poller:
    """A queue of SQS, and what Lambda does with it: receive, invoke, and delete what has not failed.

    Args:
        client: A client of SQS.
        name: The queue's name.
    """

    def __init__(self, client: Any, name: str) -> None:
        fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        self.client, self.sent = client, set[str]()
        self.url: str = client.create_queue(QueueName=name, Attributes=fifo)["QueueUrl"]

    def receive(self) -> list[Any]:
        asked = {"QueueUrl": self.url, "MaxNumberOfMessages": 10, "AttributeNames": ["All"]}
        return [message for message in self.client.receive_message(**asked).get("Messages", []) if self.is_new(message)]

    def is_new(self, message: Any) -> bool:
        """Whether SQS would have taken it: for five minutes it drops what has an earlier id, and moto is not so strict."""
        id = message["Attributes"].get("MessageDeduplicationId")
        if id in self.sent and message["Attributes"]["ApproximateReceiveCount"] == "1":
            self.client.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
            return False
        self.sent |= {id} - {None}
        return True

    def lose(self) -> int:
        messages = self.receive()
        for message in messages:
            self.client.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)

    def deliver(self, handler: Any) -> list[list[str]]:
        """Deliver until the queue is empty, and return the bodies of what failed of each batch."""
        failures = list[list[str]]()
        while messages := self.receive():
            records = [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "messageAttributes": {},
                    "md5OfBody": message["MD5OfBody"],
                    "eventSource": "aws:sqs",
                    "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:queue",
                    "awsRegion": "eu-west-1",
                }
                for message in messages
            ]
            answer = handler({"Records": records}, queues.Context())
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            failures.append([message["Body"] for message in messages if message["MessageId"] in failed])
            for message in messages:
                which = {"QueueUrl": self.url, "ReceiptHandle": message["ReceiptHandle"]}
                if message["MessageId"] in failed:
                    self.client.change_message_visibility(**which, VisibilityTimeout=0)  # rather than wait for it
                else:
                    self.client.delete_message(**which)
        return failures


@pytest.fixture(scope="module")
def moto() -> Iterator[DynamoServer]:
    with required(DynamoServer()) as server:
        yield server


@pytest.fixture(params=["", ".fifo"])
def poller(request: pytest.FixtureRequest, moto: DynamoServer) -> Iterator[Poller]:
    """A queue on moto, which simulates SQS as well as DynamoDB."""
    with closing(boto3.client("sqs", **moto.options)) as client:
        queue = Poller(client, f"{uuid4().hex}{request.param}")
        yield queue
        client.delete_queue(QueueUrl=queue.url)


def test_sqs(poller: Poller) -> None:
    shop = Shop(engine_queues.sqs(poller.client, poller.url))
    shop.run(poller.lose, lambda: poller.deliver(engine_queues.sqs_handler(shop.flow)))


def test_sqs_of_a_batch_of_which_one_fails(poller: Poller) -> None:
    shop = Shop(engine_queues.sqs(poller.client, poller.url))
    handler = engine_queues.sqs_handler(shop.flow)
    for id in ("one", "two", "three"):
        shop.flow.start_sync(stocktaking, id, {"shelves": 1})
    shop.away.add("two")
    failures = poller.deliver(handler)
    assert [body for failed in failures for body in failed] == ["two"]
    assert [shop.status(id).value for id in ("one", "two", "three")] == [1, 1, 1]
    assert sorted(shop.asked) == ["one look", "three look", "two look", "two look"]


def test_sqs_handler_sweeps_when_it_is_scheduled() -> None:
    rung = list[str]()
    shop = Shop(rung.append)
    shop.flow.start_sync(order, "order-1")
    shop.clock.advance(31)
    handler = engine_queues.sqs_handler(shop.flow)
    assert handler({"detail-type": "Scheduled Event", "source": "aws.events"}, queues.Context()) == ["order-1"]
    assert rung == ["order-1", "order-1"]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Site:
    """A WSGI server of an application that is known after the server's address."""

    def __enter__(self) -> Self:
        self._server = WSGIServer(("127.0.0.1", 0), Quiet)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/flows"
        return self

    def serve(self, app: Any) -> None:
        self._server.set_app(app)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def lets_in(app: Any, audience: str) -> Any:
    """Check what Cloud Run checks before a request comes to a service that requires authentication."""

    def checked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            claims = jwt.decode(token, queues.GOOGLES_KEY, algorithms=["HS256"], audience=audience)
            assert (kind, claims["email"]) == ("Bearer", queues.ACCOUNT)
        except jwt.InvalidTokenError:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return checked


def test_cloud_tasks() -> None:
    with queues.TasksModel() as model, Site() as site:
        credentials: Any = AnonymousCredentials()  # type: ignore[no-untyped-call]
        transport = CloudTasksRestTransport(host=model.address, credentials=credentials, url_scheme="http")
        with tasks_v2.CloudTasksClient(transport=transport) as client:
            queue = client.queue_path("project", "europe-west1", "rings")
            shop = Shop(engine_queues.cloud_tasks(client, queue, site.url, queues.ACCOUNT))
            site.serve(lets_in(wsgi_app(shop.flow, insecure=True), site.url))
            shop.run(model.lose, lambda: model.deliver() or pytest.fail("nothing came"))

            shop.flow.start_sync(order, "order-2")
            (delivery,) = model.taken
            assert httpx.post(delivery.url, content=delivery.body).status_code == 403
            assert shop.asked == ["order-1 reserve", "order-1 charge"]
            assert model.deliver() == [202, 202]
            model.taken.append(delivery)
            assert model.deliver() == [200]  # stale: it was delivered before


def test_qstash() -> None:
    with queues.QStashModel() as model, Site() as site:
        client = qstash.QStash(queues.QSTASH_TOKEN, base_url=f"http://{model.address}")
        with client.http._client:
            shop = Shop(engine_queues.qstash(client, site.url))
            site.serve(engine_queues.qstash_app(shop.flow, qstash.Receiver(*queues.QSTASH_KEYS), site.url))
            shop.run(model.lose, model.deliver)

            for id in ("order-2", "order-3"):
                shop.flow.start_sync(order, id)
            one, other = model.taken
            signed = {**one.headers, **model.proof(one)}
            assert httpx.post(one.url, headers=one.headers, content=one.body).status_code == 401
            assert httpx.post(one.url, headers=signed, content=one.body[:-1] + b" }").status_code == 401
            assert httpx.post(other.url, headers=signed, content=one.body).status_code == 401
            forged = {**one.headers, **model.proof(one, "a key of somebody else, and quite as long")}
            assert httpx.post(one.url, headers=forged, content=one.body).status_code == 401
            assert shop.asked == ["order-1 reserve", "order-1 charge"]
            rotated = {**one.headers, **model.proof(one, queues.QSTASH_KEYS[1])}
            assert httpx.post(one.url, headers=rotated, content=one.body).status_code == 202
            assert shop.asked[2:] == ["order-2 reserve"]
