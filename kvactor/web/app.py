"""The application: the routes. `kvactor.server` starts and stops it.

In a stop, bodies that are still arriving are given up, so is the waiting for changes, and handlers get
their answers (`connections` says what differs from aiohttp).
"""

import logging
import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.typedefs import Handler

from kvactor.actor import StoreActor
from kvactor.settings import Settings
from kvactor.web.about import AboutRoutes
from kvactor.web.connections import Connections
from kvactor.web.docs import DocsRoutes
from kvactor.web.errors import Edge
from kvactor.web.guard import Door
from kvactor.web.requests import Bodies, Patience, Room
from kvactor.web.routes import FAMILIES
from kvactor.web.simple import SeedRoutes
from kvactor.web.v1.batch import BatchRoutes
from kvactor.web.v1.changes import ChangeRoutes
from kvactor.web.v1.keys import KeyRoutes
from kvactor.web.v1.ranges import RangeRoutes
from kvactor.web.v1.transactions import TransactionRoutes

ACTOR = web.AppKey("actor", StoreActor)


def new_id() -> str:
    """Return 128 random bits as text: an id that nobody can guess."""
    return secrets.token_urlsafe(16)


def create_app(
    actor: StoreActor, settings: Settings, new_id: Callable[[], str] = new_id
) -> web.Application:
    """Return the application that serves `actor`.

    Raises `RuntimeError` if aiohttp runs without its parser in C: the advisories are mostly about
    the other one.
    """
    if HttpRequestParser is HttpRequestParserPy:
        raise RuntimeError(
            "aiohttp runs without its C extensions. Install a wheel that has them; unset "
            "AIOHTTP_NO_EXTENSIONS."
        )
    app = web.Application(client_max_size=settings.max_body_size)
    patience = Patience()
    app.on_shutdown.append(patience.stop)
    room = Room(settings)
    bodies = Bodies(settings, patience, room)
    families = {
        "Keys": KeyRoutes(actor, bodies).routes() + RangeRoutes(actor, settings, room).routes(),
        "Batches": BatchRoutes(actor, bodies, room).routes(),
        "Transactions": TransactionRoutes(actor, bodies, new_id).routes(),
        "Changes": ChangeRoutes(actor, settings, patience, room).routes(),
        "One shared transaction": SeedRoutes(actor, bodies).routes(),
        "About the server": AboutRoutes(actor).routes(),
        "About the API": DocsRoutes(actor, settings).routes(),
    }
    app[FAMILIES] = families
    app[ACTOR] = actor
    edge = Edge(actor, Door(settings), room)
    routes = [route for family in families.values() for route in family]
    for route in routes:
        app.router.add_route(
            route.method, route.path, edge.around(route.handler, route.method, route.name)
        )
    for path, name in {route.path: route.name for route in routes}.items():
        allowed = [route.method for route in routes if route.path == path]
        app.router.add_route("*", path, edge.around(_refuse_method(allowed), "*", name))
    app.router.add_route("*", "/{path:(?s:.*)}", edge.around(_refuse_path, "*", "*"))

    return app


def _refuse_method(allowed: list[str]) -> Handler:
    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    return refuse


async def _refuse_path(_: web.Request) -> web.Response:
    raise web.HTTPNotFound


class _NoTracebacks(logging.Filter):
    """Lets aiohttp tell of malformed requests and of uploads that were broken off in one line each.

    They are the client's doing; the server's own faults keep their tracebacks.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | ConnectionError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = "a request could not be read: %s", (" ".join(str(error).split()),)
            record.exc_info = record.exc_text = None
        return True


#: One object, so that a second runner does not add a second filter.
_no_tracebacks = _NoTracebacks()


class _Runner(web.AppRunner):
    """Serves an application over `Connections`."""

    def __init__(self, app: web.Application, settings: Settings, **limits: Any) -> None:
        super().__init__(app, shutdown_timeout=settings.shutdown_timeout, **limits)
        self._settings = settings
        self._limits = limits

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return Connections(server, self.app[ACTOR], self._settings, **self._limits)


def create_runner(app: web.Application, settings: Settings) -> web.AppRunner:
    """Return a runner with the limits that aiohttp has no good defaults for."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(_no_tracebacks)
    return _Runner(
        app,
        settings,
        logger=logger,
        access_log=logging.getLogger("aiohttp.access") if settings.access_log else None,
        keepalive_timeout=settings.keepalive_timeout,
        max_line_size=settings.max_header_size,
        max_field_size=settings.max_header_size,
        auto_decompress=False,
    )
