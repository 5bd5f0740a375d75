"""FastAPI: orders that wait for a yes, each step in a request of its own.

::

    pip install -e . fastapi uvicorn && cd examples
    export SEQUENTIAL_SECRET=$(python -c "from sequential.http import new_secret; print(new_secret())")
    export SEQUENTIAL_URL=http://127.0.0.1:8000/flows
    uvicorn --port 8000 web_fastapi:app

and elsewhere, ID being what the first line answers::

    curl -X POST "http://127.0.0.1:8000/orders?item=lamp"
    curl http://127.0.0.1:8000/orders/ID
    curl -X POST http://127.0.0.1:8000/orders/ID/approve

Executions are in ``orders.db``, or in another store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Ring what is late as long as this process lives; any number of them may."""
    sweeping = asyncio.create_task(sweep_forever(flow))
    yield
    sweeping.cancel()


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer for an order that is not there, or has ended."""
    if isinstance(error, AlreadyEnded):
        return JSONResponse({"error": "the order has ended"}, 409)
    return JSONResponse({"error": "there is no such order"}, 404)


app = FastAPI(lifespan=lifespan, exception_handlers=dict.fromkeys((UnknownExecution, InvalidId, AlreadyEnded), refuse))
app.mount("/flows", asgi_app(flow, SECRET))


@app.post("/orders", status_code=202)
async def begin(item: str) -> dict[str, str]:
    """Start an execution."""
    return {"id": await flow.start(order, input={"item": item})}


@app.get("/orders/{id}")
async def look(id: str) -> dict[str, Any]:
    """Tell how it stands."""
    if (status := await flow.status(id)) is None:
        raise UnknownExecution(id)
    return {"status": status.status, "value": status.value}


@app.post("/orders/{id}/approve")
async def approve(id: str) -> dict[str, bool]:
    """Say yes, if nobody has yet; who may is for your own authentication to tell."""
    return {"taken": await flow.signal(id, "approval", "yes")}
