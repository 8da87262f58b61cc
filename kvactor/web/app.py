"""The application: routes, and what they share. `kvactor.server` starts and stops it.

In a stop, bodies that are still arriving get 503, waits for changes end, and handlers get their answers
(`server` says what differs from aiohttp).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from aiohttp import web

from kvactor.actor import StoreActor
from kvactor.core.memory import MemoryAccount
from kvactor.settings import Settings
from kvactor.web import simple
from kvactor.web.body_reader import BodyReader
from kvactor.web.dispatcher import Dispatcher
from kvactor.web.docs import DocsRoutes
from kvactor.web.guard import Form, RequestGuard
from kvactor.web.http import Exchange, NoRoute, Response
from kvactor.web.limits import SubscriberLimit
from kvactor.web.routes import Handler, Route
from kvactor.web.server import ACCOUNT, ACTOR, TURNSTILE, Anywhere, check_parser
from kvactor.web.status import StatusRoutes
from kvactor.web.steps import Turnstile
from kvactor.web.v1 import batch, keys
from kvactor.web.v1.changes import ChangeRoutes
from kvactor.web.v1.ranges import RangeRoutes
from kvactor.web.v1.transactions import TransactionRoutes
from kvactor.web.waits import Deadlines

#: The form of requests without a route: any.
ANY = Form("")

#: The routes of an application, by tag.
TAGS = web.AppKey("tags", Mapping[str, Sequence[Route]])


def new_id() -> str:
    """Return 128 random bits as text: an id that nobody can guess."""
    return secrets.token_urlsafe(16)


def create_app(
    actor: StoreActor, settings: Settings, new_id: Callable[[], str] = new_id
) -> web.Application:
    """Return the application that serves `actor`.

    Raises `RuntimeError` if aiohttp runs without its parser in C.
    """
    check_parser()
    app = web.Application()
    deadlines = Deadlines()
    account = MemoryAccount(settings.max_in_flight_size)
    turnstile = Turnstile()
    subscribers = SubscriberLimit(settings.max_subscribers)
    actor.metrics.subscribers = lambda: subscribers.count
    tags: dict[str, Sequence[Route]] = {
        "Keys": keys.routes() + RangeRoutes(settings).routes(),
        "Batches": batch.routes(settings),
        "Transactions": TransactionRoutes(new_id).routes(),
        "Changes": ChangeRoutes(actor, settings, deadlines, account, subscribers, turnstile).routes(),
        "One shared transaction": simple.routes(),
        "About the server": StatusRoutes(actor).routes(),
    }
    tags["About the API"] = DocsRoutes(actor, settings, tags).routes()
    app[TAGS] = tags
    app[ACTOR] = actor
    app[ACCOUNT] = account
    app[TURNSTILE] = turnstile
    bodies = BodyReader(settings, deadlines)
    dispatcher = Dispatcher(actor, RequestGuard(settings), bodies, account, deadlines, turnstile)
    routes = [route for tag in tags.values() for route in tag]
    expect = dispatcher.expectations()
    for route in routes:
        app.router.add_route(route.method, route.path, dispatcher.serve(route), expect_handler=expect)
    for path, name in {route.path: route.name for route in routes}.items():
        allowed = sorted(route.method for route in routes if route.path == path)
        handler = _no_route(HTTPStatus.METHOD_NOT_ALLOWED, ",".join(allowed))
        refuse = dispatcher.serve_handler(handler, "*", name, ANY)
        app.router.add_route("*", path, refuse, expect_handler=expect)
    nowhere = dispatcher.serve_handler(_no_route(HTTPStatus.NOT_FOUND), "*", "*", ANY)
    anywhere = Anywhere()
    anywhere.add_route("*", nowhere, expect_handler=expect)
    app.router.register_resource(anywhere)

    async def end_waits(_: web.Application) -> None:
        deadlines.stop()

    app.on_shutdown.append(end_waits)

    return app


def _no_route(status: HTTPStatus, allow: str = "") -> Handler:
    async def refuse(_: Exchange) -> Response:
        raise NoRoute(status, allow)

    return refuse
