"""Django: orders that wait for a yes, each step in a request of its own; a process beside it rings what is late.

The last line is for another terminal, with the same environment::

    pip install -e . django gunicorn && cd examples
    export SEQUENTIAL_SECRET=$(python -c "from sequential.http import new_secret; print(new_secret())")
    export SEQUENTIAL_URL=http://127.0.0.1:8000/flows ALLOWED_HOSTS=127.0.0.1
    gunicorn --bind 127.0.0.1:8000 --threads 8 web_django
    python -m sequential sweep web_django:flow --every 60

and elsewhere, ID being what the first line answers::

    curl -X POST "http://127.0.0.1:8000/orders?item=lamp"
    curl http://127.0.0.1:8000/orders/ID
    curl -X POST http://127.0.0.1:8000/orders/ID/approve

There are several threads, so that who rings is answered meanwhile.  Executions are in ``orders.db``, or in another
store that ``SEQUENTIAL_STORE`` names (see `sequential.stores.open`).
Your project has its own ``settings.py`` and ``urls.py``; `application` belongs into its ``wsgi.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from sequential import FlowExecutor, current, stores, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, wsgi_app
from sequential.patterns import check

if missing := [name for name in ("SEQUENTIAL_SECRET", "SEQUENTIAL_URL", "ALLOWED_HOSTS") if not os.environ.get(name)]:
    raise RuntimeError(f"set {' and '.join(missing)} in the environment: the first lines of this file show how")
SECRET = os.environ["SEQUENTIAL_SECRET"].split()  # one, or two with a space between while one replaces the other
# Errors go to stderr, for Django's own way to log would mail them; without cookies, there is no CSRF to ward off.
settings.configure(ALLOWED_HOSTS=os.environ["ALLOWED_HOSTS"].split(), ROOT_URLCONF=__name__, LOGGING_CONFIG=None)


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


def begin(request: HttpRequest) -> JsonResponse:
    """Start an execution."""
    if "item" not in request.GET:
        return JsonResponse({"error": "which item?"}, status=400)
    return JsonResponse({"id": flow.start_sync(order, input={"item": request.GET["item"]})}, status=202)


def look(request: HttpRequest, id: str) -> JsonResponse:
    """Tell how it stands."""
    try:
        status = flow.status_sync(id)
    except InvalidId:
        status = None
    if status is None:
        raise Http404
    return JsonResponse({"status": status.status, "value": status.value})


def approve(request: HttpRequest, id: str) -> JsonResponse:
    """Say yes, if nobody has yet; who may is for your own authentication to tell."""
    try:
        return JsonResponse({"taken": flow.signal_sync(id, "approval", "yes")})
    except (UnknownExecution, InvalidId):
        raise Http404 from None
    except AlreadyEnded:
        return JsonResponse({"error": "the order has ended"}, status=409)


urlpatterns = [
    path("orders", require_POST(begin)),
    path("orders/<id>", require_GET(look)),
    path("orders/<id>/approve", require_POST(approve)),
]
pages, callbacks = get_wsgi_application(), wsgi_app(flow, SECRET)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """Pass callbacks by Django, so that their answer can leave before the step is done."""
    app = callbacks if environ["PATH_INFO"].startswith("/flows/") else pages
    return app(environ, start_response)
