"""What the server says of itself: alive, ready, and its status."""

import msgspec
from aiohttp import web

import kvactor
from kvactor.actor import StoreActor
from kvactor.messages import Status
from kvactor.metrics import CONTENT_TYPE
from kvactor.web.answers import answer


class AboutRoutes:
    """Handlers for /healthz, /readyz and /v1/status."""

    def __init__(self, actor: StoreActor) -> None:
        self._actor = actor

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        handlers = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
            "/v1/status": self.status,
        }
        return [
            web.route(method, path, handler)
            for path, handler in handlers.items()
            for method in ("GET", "HEAD")
        ]

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
        """GET /v1/status: what the owner says of itself. Sizes are bytes, `age` is seconds."""
        answered = await self._actor.ask(Status())
        report = answered.result
        shared = {"depth": report.shared_depth, "age": report.shared_age / 1000}
        body = {
            "version": kvactor.__version__,
            "revision": answered.revision,
            "keys": report.keys,
            "mailbox": {"waiting": self._actor.waiting, "held": report.held},
            "transactions": {"open": report.transactions, "shared": shared},
            "storage": {
                "staged": report.staged,
                "memtable": {"keys": report.memtable_keys, "bytes": report.memtable_bytes},
                "folded": report.folded,
                "free": report.free_space,
            },
        }
        return answer(answered.revision, msgspec.json.encode(body))
