"""`HttpResume` and what can become of a ring, against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from sequential import CallbackFailed, Event, InvalidId
from sequential.http import Handler, HttpResume, Request, Response
from sequential.http.signing import Signer
from tests.http.support import SECRET, World
from tests.servers.processes import free_port

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Answer = Callable[[socket.socket, bytes], object]


class Peer:
    """A server that reads one request from each connection, keeps it, and does what a test wants.

    Args:
        answer: Called with the connection and the request; then the connection is closed.
        wrap: Makes TLS of a connection.
    """

    def __init__(self, answer: Answer, wrap: Callable[[socket.socket], socket.socket] = lambda bare: bare) -> None:
        self.requests: list[bytes] = []
        self._answer, self._wrap = answer, wrap
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                bare, _ = self._socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._wrap(bare) as connection:
                connection.settimeout(10)
                request = b""
                while b"}" not in request:  # the end of the body
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    request += piece
                self.requests.append(request)
                self._answer(connection, request)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    with contextlib.ExitStack() as stack:

        def start(answer: Answer | bytes, **options: Any) -> Peer:
            send: Answer = (lambda connection, _: connection.sendall(answer)) if isinstance(answer, bytes) else answer
            return stack.enter_context(contextlib.closing(Peer(send, **options)))

        yield start


def ring_async(ring: HttpResume, id: str) -> Any:
    async def run() -> Any:
        return await ring(id)  # type: ignore[misc]

    return asyncio.run(run())


RINGS: list[Callable[[HttpResume, str], Any]] = [lambda ring, id: ring(id), ring_async]


@pytest.mark.parametrize("ring", RINGS, ids=["plain", "async"])
def test_a_ring_is_a_signed_post(peer: Callable[..., Peer], ring: Callable[[HttpResume, str], Any]) -> None:
    there = peer(OK)
    hook = HttpResume(f"{there.url}/flows/?key=1", SECRET, headers={"X-Extra": "yes"})
    assert ring(hook, "a:b@c~d") == 200
    head, _, body = there.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert first == "POST /flows/resume/a:b@c~d?key=1 HTTP/1.1"
    assert headers["host"] == there.url.removeprefix("http://")
    assert (headers["x-extra"], headers["content-type"]) == ("yes", "application/json")
    assert Signer(SECRET).check(headers, int(headers["webhook-timestamp"]), body) == "a:b@c~d:0"
    assert json.loads(body) == {"id": "a:b@c~d", "run": None, "step": 0, "hop": 1}


def test_a_tool_that_rings_another_execution_rings_for_whichever_step_is_next(peer: Callable[..., Peer]) -> None:
    there = peer(OK)
    hook = HttpResume(there.url, SECRET)
    world = World()
    world.during = lambda: hook("exec-2")
    world.start()
    world.flow.resume_sync("exec-1")
    (request,) = there.requests
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == {"id": "exec-2", "run": None, "step": 0, "hop": 1}


def test_an_ipv6_address_without_a_port_is_rung_at_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    for url in ("http://[::1]/flows", "https://[2001:db8::5]/flows", "https://[2001:db8::5]:8443"):
        with pytest.raises(CallbackFailed):
            HttpResume(url, SECRET)("exec-1")
    assert tried[::2] == [("::1", 80), ("2001:db8::5", 443), ("2001:db8::5", 8443)]


@pytest.mark.parametrize("pause", ["asynchronous", "blocking"])
def test_within_a_flow_it_says_which_step_it_rings_for(peer: Callable[..., Peer], pause: str) -> None:
    there = peer(OK)
    world = World(resume=HttpResume(there.url, SECRET))
    record = world.start()
    if pause == "blocking":
        world.flow.resume_sync("exec-1")
    else:
        asyncio.run(world.flow.resume("exec-1"))
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in there.requests]
    assert bodies == [{"id": "exec-1", "run": record.run, "step": step, "hop": 1} for step in (0, 1)]
    assert b"webhook-id: exec-1:1\r\n" in there.requests[1]


@pytest.mark.parametrize("status", [200, 202, 204, 299, 409])
def test_what_means_that_somebody_runs_it_is_all_right(peer: Callable[..., Peer], status: int) -> None:
    assert HttpResume(peer(f"HTTP/1.1 {status} Any\r\n\r\n".encode()).url, SECRET)("exec-1") == status


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 413, 429, 500, 502, 503, 508])
def test_what_was_refused_is_told_and_never_followed(peer: Callable[..., Peer], status: int) -> None:
    there = peer(f"HTTP/1.1 {status} Any\r\nlocation: /elsewhere\r\nretry-after: 0\r\n\r\n".encode())
    with pytest.raises(CallbackFailed, match=f"resume/exec-1 was answered with {status}") as caught:
        HttpResume(there.url, SECRET)("exec-1")
    assert caught.value.status == status
    assert len(there.requests) == 1


def test_interim_answers_are_not_the_answer(peer: Callable[..., Peer]) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        for piece in (
            b"HTTP/1.1 100 Continue\r\n",
            b"\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n",
            b"\r\nHTTP/1.1 20",
            b"2 \r\n",
        ):
            connection.sendall(piece)

    assert HttpResume(peer(answer).url, SECRET)("exec-1") == 202


@pytest.mark.parametrize("ring", RINGS, ids=["plain", "async"])
@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_no_answer_in_time_is_no_failure(
    peer: Callable[..., Peer], ring: Callable[[HttpResume, str], Any], drip: bytes
) -> None:
    over = threading.Event()

    def hang(connection: socket.socket, _: bytes) -> None:
        while not (over.is_set() if drip else over.wait(0.02)):
            connection.sendall(drip)

    there = peer(hang)
    began = monotonic()
    assert ring(HttpResume(there.url, SECRET, ack_timeout=0.2), "exec-1") is None
    assert monotonic() - began < 5  # not for as long as the peer likes
    over.set()
    assert len(there.requests) == 1


def test_a_connection_that_is_lost_after_all_was_sent(peer: Callable[..., Peer]) -> None:
    def reset(connection: socket.socket, _: bytes) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def greet(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        over.wait(20)  # it is not HTTP, however long one waits

    over = threading.Event()
    for answer in (reset, b"", b"HTTP/1.1 2", greet, b"x" * 100_000):
        there = peer(answer)
        with pytest.raises(CallbackFailed, match="was sent, but the connection ended before an answer") as caught:
            HttpResume(there.url, SECRET)("exec-1")
        assert caught.value.status is None
        assert len(there.requests) == 1
    over.set()


def test_nobody_there_is_tried_twice_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    connect = socket.create_connection

    def counted(*arguments: Any, **options: Any) -> socket.socket:
        tried.append(arguments[0])
        return connect(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", counted)
    port = free_port()
    with pytest.raises(CallbackFailed, match="could not be sent: ConnectionRefused") as caught:
        HttpResume(f"http://127.0.0.1:{port}", SECRET)("exec-1")
    assert caught.value.status is None
    assert tried == [("127.0.0.1", port)] * 2


def test_who_is_back_at_the_second_attempt_is_rung(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    there, connect, refused = peer(OK), socket.create_connection, list[Any]()

    def refuse_once(*address: Any, **options: Any) -> socket.socket:
        if not refused:
            refused.append(address)
            raise ConnectionRefusedError
        return connect(*address, **options)

    monkeypatch.setattr(socket, "create_connection", refuse_once)
    assert HttpResume(there.url, SECRET)("exec-1") == 200


def test_a_connection_that_never_comes_takes_no_longer_than_it_may() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as queue:
        for _ in range(3):  # nobody accepts: the queue is full, and further attempts hang
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        began = monotonic()
        with pytest.raises(CallbackFailed, match="could not be sent: TimeoutError"):
            HttpResume(f"http://127.0.0.1:{full.getsockname()[1]}", SECRET, connect_timeout=0.2)("exec-1")
        assert monotonic() - began < 5


def test_a_failed_ring_harms_no_flow_and_is_told(peer: Callable[..., Peer]) -> None:
    told: list[Event] = []
    world = World(resume=HttpResume(peer(b"HTTP/1.1 508 Loop\r\n\r\n").url, SECRET), observe=told.append)
    world.start()
    world.flow.resume_sync("exec-1")
    failed = [event for event in told if event.kind == "ring failed"]
    assert [event.error.status for event in failed if isinstance(event.error, CallbackFailed)] == [508, 508]
    assert (world.record().step, world.lease()) == (1, 0.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this host that signs itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_over_tls_the_certificate_is_checked(
    peer: Callable[..., Peer], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    there = peer(OK, wrap=lambda bare: context.wrap_socket(bare, server_side=True))
    url = there.url.replace("http:", "https:")
    with pytest.raises(CallbackFailed, match="certificate verify failed"):
        HttpResume(url, SECRET)("exec-1")
    assert there.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    hook = HttpResume(url, SECRET)
    assert [hook("exec-1"), hook("exec-2")] == [200, 200]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org", "http://10.0.0.1/x", "http://127.evil.example", "http://localhost.example", "ftp://127.0.0.1",
        "example.org", "/flows", "", "https://", "https://a b", "https://example.org/#x", "https://me:pw@example.org",
        "https://[::1", "https://example.org:port", "https://exämple.org", "https://example.org/\n", "http://0.0.0.0",
    ],
)  # fmt: skip
def test_a_url_that_others_could_read_or_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"url= is not a URL|use https"):
        HttpResume(url, SECRET)


def test_a_secret_in_the_wrong_place_is_not_shown() -> None:
    with pytest.raises(ValueError, match="url= is not a URL") as caught:
        HttpResume(SECRET, "https://example.org")
    assert SECRET not in str(caught.value)
    with pytest.raises(TypeError, match="needs a FlowExecutor, not a str") as mistaken:
        Handler(SECRET, SECRET)  # type: ignore[arg-type]
    assert SECRET not in str(mistaken.value)


def test_a_client_of_ones_own_may_ring_within_a_network_that_encrypts() -> None:
    rung: list[str] = []
    HttpResume("http://web:8000/flows", SECRET, post=lambda url, *_: rung.append(url))("exec-1")
    assert rung == ["http://web:8000/flows/resume/exec-1"]


@pytest.mark.parametrize(
    "url", ["https://example.org", "http://127.9.9.9:80", "http://[::1]:8000/x", "http://localhost/"]
)
def test_https_and_this_host_are_good(url: str) -> None:
    HttpResume(url, SECRET)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"secret": SECRET, "insecure": True}, {"secret": SECRET, "ack_timeout": 0}, {"secret": SECRET, "connect_timeout": "3"}, {"secret": SECRET, "hop_limit": 0},
        {"secret": SECRET, "hop_limit": "4"}, {"secret": SECRET, "ack_timeout": float("inf")},
        {"secret": SECRET, "connect_timeout": -1}, {"secret": SECRET, "ack_timeout": float("nan")},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"HttpResume needs|above 0 seconds|at least 1"):
        HttpResume("https://example.org", **options)


def test_what_cannot_post_is_refused() -> None:
    nothing: Any = 5
    with pytest.raises(TypeError, match="post= must be a function, got 5"):
        HttpResume("https://example.org", SECRET, post=nothing)


def test_an_id_that_would_lead_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidId):
        HttpResume("https://example.org", SECRET)("../admin")


def test_without_a_secret_there_is_no_signature(peer: Callable[..., Peer]) -> None:
    there = peer(OK)
    assert HttpResume(there.url, insecure=True)("exec-1") == 200
    assert b"webhook-" not in there.requests[0]


def test_a_client_of_ones_own(peer: Callable[..., Peer]) -> None:
    there = peer(OK)

    def post(url: str, headers: dict[str, str], body: bytes) -> int:
        with httpx.Client(timeout=10) as client:
            return client.post(url, headers=headers, content=body).status_code

    async def post_async(url: str, headers: dict[str, str], body: bytes) -> int:
        async with httpx.AsyncClient(timeout=10) as client:
            return (await client.post(url, headers=headers, content=body)).status_code

    assert HttpResume(there.url, SECRET, post=post)("exec-1") == 200
    assert ring_async(HttpResume(there.url, SECRET, post=post_async), "exec-2") == 200
    for request in there.requests:
        head, _, body = request.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        signed = Signer(SECRET).sign(headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == signed["webhook-signature"].lower()
    assert HttpResume(there.url, SECRET, post=lambda *_: None)("exec-1") is None
    with pytest.raises(CallbackFailed, match="was answered with 429"):
        HttpResume(there.url, SECRET, post=lambda *_: 429)("exec-1")


def test_two_secrets_ring_with_both() -> None:
    sent: list[tuple[dict[str, str], bytes]] = []
    hook = HttpResume("https://example.org", [SECRET, b"y" * 24], post=lambda _, *signed: sent.append(signed))
    hook("exec-1")
    ((headers, body),) = sent
    for known in (SECRET, b"y" * 24):
        assert Signer(known).check(headers, int(headers["webhook-timestamp"]), body) == "exec-1:0"


def test_many_threads_ring_by_one_hook(peer: Callable[..., Peer]) -> None:
    there, done = peer(OK), list[Any]()
    hook = HttpResume(there.url, SECRET, ack_timeout=10)
    threads = [threading.Thread(target=lambda: done.append(hook("exec-1"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [200] * 20


def test_the_hook_and_the_handler_fit(peer: Callable[..., Peer]) -> None:
    answers: list[Response] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        answers.append(Handler(world.flow, SECRET).handle_sync(Request(method, path, headers, body)))
        connection.sendall(OK)

    world = World(resume=HttpResume(peer(serve).url, SECRET, ack_timeout=0.05))
    world.start()
    deadline = monotonic() + 20
    while world.record().status != "finished":
        assert monotonic() < deadline
    assert [answer.status for answer in answers] == [200] * 4
    assert world.called == [0, 1, 2]
