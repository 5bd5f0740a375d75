"""An ASGI application without a framework: orders that wait for a yes, each step in a request of its own.

::

    pip install -e . uvicorn && cd examples
    export SEQUENTIAL_SECRET=$(python -c "from sequential.http import new_secret; print(new_secret())")
    export SEQUENTIAL_URL=http://127.0.0.1:8000/flows
    uvicorn --port 8000 web_asgi:app

and elsewhere, ID being what the first line answers::

    curl -X POST "http://127.0.0.1:8000/orders?item=lamp"
    curl http://127.0.0.1:8000/orders/ID
    curl -X POST http://127.0.0.1:8000/orders/ID/approve

Executions are in ``orders.db``, or in another store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Generator
from typing import Any
from urllib.parse import parse_qsl

from sequential import FlowExecutor, current, stores, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, asgi_app
from sequential.patterns import check
from sequential.sweeper import sweep_forever

if missing := [name for name in ("SEQUENTIAL_SECRET", "SEQUENTIAL_URL") if not os.environ.get(name)]:
    raise RuntimeError(f"set {' and '.join(missing)} in the environment: the first lines of this file show how")
SECRET = os.environ["SEQUENTIAL_SECRET"].split()  # one, or two with a space between while one replaces the other


async def call(category: str, name: str, input: dict[str, Any]) -> Any:
    """Stand in for the services that are asked, by an async HTTP client."""
    await asyncio.sleep(0.02)
    match name:
        case "reserve":
            return {"price": 10 * len(input["item"])}
        case "charge":  # the bank is given the key, so that it charges once when it is asked twice
            return f"{input['amount']} paid, {current().key}"
        case _:
            return f"parcel with {input['item']}"


def order(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Reserve, wait for a yes, charge and ship; what fails is parked, to be looked at."""
    reserved = check((yield tool("stock", "reserve", {"item": input["item"]})))
    if (yield wait("approval", timeout=3 * 86_400)) != "yes":
        return "not approved"
    receipt = check((yield tool("bank", "charge", {"amount": reserved["price"]})))
    return {"receipt": receipt, "parcel": check((yield tool("post", "ship", {"item": input["item"]})))}


# SQLite answers at once; of a store on the network, bring the async client, lest it block the loop.
storage = stores.open(os.environ.get("SEQUENTIAL_STORE", "sqlite:///orders.db"))
ring = HttpResume(os.environ["SEQUENTIAL_URL"], SECRET)
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[order], retain=True)
callbacks = asgi_app(flow, SECRET)


async def answer(method: str, path: str, query: dict[str, str]) -> tuple[int, Any]:
    """Do what a customer asks for; who may approve is for your own authentication to tell."""
    try:
        match method, path.split("/")[1:]:
            case "POST", ["orders"]:
                if "item" not in query:
                    return 400, {"error": "which item?"}
                return 202, {"id": await flow.start(order, input={"item": query["item"]})}
            case "GET", ["orders", id] if status := await flow.status(id):
                return 200, {"status": status.status, "value": status.value}
            case "POST", ["orders", id, "approve"]:
                return 200, {"taken": await flow.signal(id, "approval", "yes")}
    except AlreadyEnded:
        return 409, {"error": "the order has ended"}
    except (UnknownExecution, InvalidId):
        pass
    return 404, {"error": "there is no such order"}


async def live(receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Ring what is late as long as this process lives; any number of them may."""
    await receive()
    sweeping = asyncio.create_task(sweep_forever(flow))
    await send({"type": "lifespan.startup.complete"})
    await receive()
    sweeping.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer customers, and pass callbacks on."""
    if scope["type"] == "lifespan":
        return await live(receive, send)
    if scope["type"] != "http" or scope["path"].startswith("/flows/"):
        return await callbacks(scope, receive, send)
    query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    status, said = await answer(scope["method"], scope["path"], query)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    return await send({"type": "http.response.body", "body": json.dumps(said).encode()})
