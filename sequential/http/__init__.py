"""Callbacks over HTTP: the hook that rings, and the route that is rung, for the handler that you already have.

ring = HttpResume("https://example.org/flows", secret)           # POST .../flows/resume/{id}
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[workflow])
app = asgi_app(flow, secret)                                     # or wsgi_app, or lambda_handler
"""

from .asgi import asgi_app
from .aws_lambda import lambda_handler
from .client import HttpResume
from .handler import Handler, Request, Response
from .signing import new_secret
from .wsgi import wsgi_app

__all__ = ["Handler", "HttpResume", "Request", "Response", "asgi_app", "lambda_handler", "new_secret", "wsgi_app"]
