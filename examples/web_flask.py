"""Flask: orders that wait for a yes, each step in a request of its own; cron rings what is late.

::

    pip install -e . flask gunicorn && cd examples
    export SEQUENTIAL_SECRET=$(python -c "from sequential.http import new_secret; print(new_secret())")
    export SEQUENTIAL_URL=http://127.0.0.1:8000/flows
    export CRON_TOKEN=$(python -c "import secrets; print(secrets.token_hex())")
    gunicorn --bind 127.0.0.1:8000 --threads 8 web_flask:app

and elsewhere with the same environment, ID being what the first line answers, the last one for cron, once a minute::

    curl -X POST "http://127.0.0.1:8000/orders?item=lamp"
    curl http://127.0.0.1:8000/orders/ID
    curl -X POST http://127.0.0.1:8000/orders/ID/approve
    curl -X POST -H "Authorization: Bearer $CRON_TOKEN" http://127.0.0.1:8000/cron/sweep

There are several threads, so that who rings is answered meanwhile.  Executions are in ``orders.db``, or in another
store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Generator
from typing import Any

from flask import Flask, abort, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sequential import FlowExecutor, current, stores, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, wsgi_app
from sequential.patterns import check

if missing := [name for name in ("SEQUENTIAL_SECRET", "SEQUENTIAL_URL", "CRON_TOKEN") if not os.environ.get(name)]:
    raise RuntimeError(f"set {' and '.join(missing)} in the environment: the first lines of this file show how")
SECRET = os.environ["SEQUENTIAL_SECRET"].split()  # one, or two with a space between while one replaces the other


def call(category: str, name: str, input: dict[str, Any]) -> Any:
    """Stand in for the services that are asked."""
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


storage = stores.open(os.environ.get("SEQUENTIAL_STORE", "sqlite:///orders.db"))
ring = HttpResume(os.environ["SEQUENTIAL_URL"], SECRET)
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[order], retain=True)
app = Flask(__name__)
# Not a view: what it answers leaves before the step is done, so that whoever rings need not wait.
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/flows": wsgi_app(flow, SECRET)})  # type: ignore[method-assign]


@app.post("/orders")
def begin() -> tuple[dict[str, str], int]:
    """Start an execution."""
    return {"id": flow.start_sync(order, input={"item": request.args["item"]})}, 202


@app.get("/orders/<id>")
def look(id: str) -> dict[str, Any]:
    """Tell how it stands."""
    if (status := flow.status_sync(id)) is None:
        raise UnknownExecution(id)
    return {"status": status.status, "value": status.value}


@app.post("/orders/<id>/approve")
def approve(id: str) -> dict[str, bool]:
    """Say yes, if nobody has yet; who may is for your own authentication to tell."""
    return {"taken": flow.signal_sync(id, "approval", "yes")}


@app.post("/cron/sweep")
def sweep() -> list[str]:
    """Ring what is late: a callback was lost, a process died, a time has come."""
    given = request.headers.get("Authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {os.environ['CRON_TOKEN']}".encode()):
        abort(401)
    return flow.sweep_sync()


@app.errorhandler(UnknownExecution)
@app.errorhandler(InvalidId)
def unknown(error: Exception) -> tuple[dict[str, str], int]:
    """Answer for an order that is not there."""
    return {"error": "there is no such order"}, 404


@app.errorhandler(AlreadyEnded)
def ended(error: Exception) -> tuple[dict[str, str], int]:
    """Answer for an order that nothing can happen to any more."""
    return {"error": "the order has ended"}, 409
