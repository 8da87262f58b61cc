"""The server's own state: alive, ready, and its status."""

import asyncio

import kvactor
from kvactor.actor import StoreActor
from kvactor.api.status import (
    Health,
    Mailbox,
    Memtable,
    Readiness,
    Shared,
    StatusReport,
    StorageReport,
    Transactions,
)
from kvactor.core import messages
from kvactor.core.messages import Answer, Status
from kvactor.errors import Overloaded
from kvactor.metrics import CONTENT_TYPE
from kvactor.web.http import Exchange, Request, Response, json_response
from kvactor.web.routes import Endpoint, ResponseSpec, Route, json_spec

#: Seconds within which an owner that is ready answers.
READY = 1.0


class StatusRoutes:
    """Endpoints for /healthz, /readyz, /metrics and /v1/status. They show the actor's counters beside
    the owner's report.
    """

    def __init__(self, actor: StoreActor) -> None:
        self._actor = actor

    def routes(self) -> list[Route]:
        """Return the routes."""
        routes = [
            Route(
                method="GET",
                path="/healthz",
                endpoint=self.healthz,
                summary="Is the process alive?",
                responses={200: json_spec(Health)},
                asks=False,
            ),
            Route(
                method="GET",
                path="/readyz",
                endpoint=self.readyz,
                summary="Does the owner answer within a second?",
                responses={200: json_spec(Readiness)},
            ),
            Route(
                method="GET",
                path="/metrics",
                endpoint=Endpoint(parse_status, self.encode_metrics),
                summary="The metrics, in Prometheus' text format",
                responses={200: ResponseSpec("Done", {CONTENT_TYPE.partition(";")[0]: str})},
            ),
            Route(
                method="GET",
                path="/v1/status",
                endpoint=Endpoint(parse_status, self.encode_status),
                summary="The state of the server",
                responses={200: json_spec(StatusReport)},
            ),
        ]
        return [one for route in routes for one in (route, route.head())]

    async def healthz(self, _: Exchange) -> Response:
        """GET /healthz: the process answers; the owner is not asked."""
        return Response(self._actor.revision, b'{"status":"ok"}')

    async def readyz(self, exchange: Exchange) -> Response:
        """GET /readyz: the owner answers, and has come round within a second, and the mailbox has room.
        Raises `Overloaded`.
        """
        self._actor.check_room()
        try:
            async with asyncio.timeout(READY):
                answer = await exchange.ask(Status())
        except TimeoutError:
            raise Overloaded(
                f"The owner has not come round to this request within {READY:g} s."
            ) from None
        return Response(answer.revision, b'{"status":"ready"}', time=answer.time)

    def encode_metrics(
        self, request: Request, message: Status, answer: Answer[messages.StatusReport]
    ) -> Response:
        """The metrics, in Prometheus' text format."""
        text = self._actor.metrics.text(answer.result, answer.revision, self._actor.waiting)
        return Response(answer.revision, text, content_type=CONTENT_TYPE)

    def encode_status(
        self, request: Request, message: Status, answer: Answer[messages.StatusReport]
    ) -> Response:
        """The owner's report."""
        report = answer.result
        body = StatusReport(
            version=kvactor.__version__,
            revision=answer.revision,
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
        return json_response(answer.revision, body)


def parse_status(request: Request) -> Status:
    """GET /metrics and /v1/status."""
    return Status()
