"""What the server says of itself: alive, ready, and its status."""

from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

import kvactor
from kvactor.actor import StoreActor
from kvactor.core.messages import Status
from kvactor.metrics import CONTENT_TYPE
from kvactor.web.answers import answer
from kvactor.web.routes import Reply, Route, said
from kvactor.web.values import encode


class Health(msgspec.Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """The owner answers."""

    status: Literal["ready"]


class Mailbox(msgspec.Struct):
    """The owner's mailbox."""

    waiting: Annotated[int, Meta(description="requests that the owner has not seen yet")]
    held: Annotated[int, Meta(description="answers that wait for the disk")]


class Shared(msgspec.Struct):
    """The shared transaction."""

    depth: Annotated[int, Meta(description="0: it is not open")]
    age: Annotated[float, Meta(description="seconds")]


class Transactions(msgspec.Struct):
    """Open transactions."""

    open: Annotated[int, Meta(description="isolated ones")]
    shared: Shared


class Memtable(msgspec.Struct):
    """Changes that are not in the tree yet."""

    keys: int
    bytes: int


class StorageReport(msgspec.Struct):
    """What is stored."""

    staged: Annotated[int, Meta(description="revisions on their way to the disk")]
    memtable: Memtable
    folded: Annotated[int, Meta(description="the revision that the tree has reached")]
    free: Annotated[int, Meta(description="bytes of disk")]


class Report(msgspec.Struct):
    """What GET /v1/status answers."""

    version: str
    revision: int
    keys: Annotated[int, Meta(description="expired ones count until they are swept")]
    mailbox: Mailbox
    transactions: Transactions
    storage: StorageReport


class AboutRoutes:
    """Handlers for /healthz, /readyz, /metrics and /v1/status."""

    def __init__(self, actor: StoreActor) -> None:
        self._actor = actor

    def routes(self) -> list[Route]:
        """Return the routes."""
        routes = [
            Route(
                method="GET",
                path="/healthz",
                handler=self.healthz,
                summary="Is the process alive?",
                answers={200: said(Health)},
                asks=False,
            ),
            Route(
                method="GET",
                path="/readyz",
                handler=self.readyz,
                summary="Does the owner answer?",
                answers={200: said(Readiness)},
            ),
            Route(
                method="GET",
                path="/metrics",
                handler=self.metrics,
                summary="What is measured, in Prometheus' text format",
                answers={200: Reply("Done.", {CONTENT_TYPE.partition(";")[0]: str})},
            ),
            Route(
                method="GET",
                path="/v1/status",
                handler=self.status,
                summary="What the owner says of itself",
                answers={200: said(Report)},
            ),
        ]
        return [one for route in routes for one in (route, route.head())]

    async def healthz(self, _: web.Request) -> web.Response:
        """GET /healthz: the process answers."""
        return answer(self._actor.revision, b'{"status":"ok"}')

    async def readyz(self, _: web.Request) -> web.Response:
        """GET /readyz: the owner answers."""
        return answer((await self._actor.ask(Status())).revision, b'{"status":"ready"}')

    async def metrics(self, _: web.Request) -> web.Response:
        """GET /metrics: in Prometheus' text format."""
        actor = self._actor
        answered = await actor.ask(Status())
        text = actor.metrics.text(answered.result, answered.revision, actor.waiting)
        return answer(answered.revision, text, content_type=CONTENT_TYPE)

    async def status(self, _: web.Request) -> web.Response:
        """GET /v1/status: what the owner says of itself."""
        answered = await self._actor.ask(Status())
        report = answered.result
        body = Report(
            version=kvactor.__version__,
            revision=answered.revision,
            keys=report.keys,
            mailbox=Mailbox(self._actor.waiting, report.held),
            transactions=Transactions(
                report.transactions, Shared(report.shared_depth, report.shared_age / 1000)
            ),
            storage=StorageReport(
                report.staged,
                Memtable(report.memtable_keys, report.memtable_bytes),
                report.folded,
                report.free_space,
            ),
        )
        return answer(answered.revision, encode(body))
