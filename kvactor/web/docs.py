"""The API's description, for programs at /openapi.json and for people at /docs.

The rule: a browser that shows it loads from this server only. The viewer is in the package.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from kvactor.actor import StoreActor
from kvactor.api.values import JSON, encode
from kvactor.settings import Settings
from kvactor.web.http import Exchange, Response
from kvactor.web.openapi import document
from kvactor.web.routes import ResponseSpec, Route, constant_headers

_VIEWER = files("kvactor.web") / "viewer"

#: The viewer writes its own styles into the page; scripts come from files alone.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

#: The files of /docs, by path, with their types.
PAGES = {
    "/docs": ("docs.html", "text/html; charset=utf-8", "The documentation, for a browser"),
    "/docs/rapidoc-min.js": (
        "rapidoc-min.js",
        "text/javascript; charset=utf-8",
        "Its viewer",
    ),
}


@cache
def _read(name: str) -> bytes:
    return (_VIEWER / name).read_bytes()


class DocsRoutes:
    """Handlers for /openapi.json and /docs. `tags` has all routes by the time that it serves."""

    def __init__(
        self, actor: StoreActor, settings: Settings, tags: Mapping[str, Sequence[Route]]
    ) -> None:
        self._actor = actor
        self._tags = tags
        self._settings = settings
        self._document = b""

    def routes(self) -> list[Route]:
        """Return the routes."""
        described = Route(
            method="GET",
            path="/openapi.json",
            endpoint=self.openapi,
            summary="The API, as OpenAPI 3.1",
            responses={200: ResponseSpec("Done", {JSON: dict[str, Any]})},
            asks=False,
            page=True,
        )
        return [one for route in (described, *map(self._page, PAGES)) for one in (route, route.head())]

    def _page(self, path: str) -> Route:
        name, content_type, summary = PAGES[path]
        content = _read(name)

        async def page(_: Exchange) -> Response:
            return Response(self._actor.revision, content, 200, content_type, SECURITY_HEADERS)

        kind = content_type.partition(";")[0]
        return Route(
            method="GET",
            path=path,
            endpoint=page,
            summary=summary,
            responses={200: ResponseSpec("Done", {kind: bytes}, constant_headers(SECURITY_HEADERS))},
            asks=False,
            page=kind == "text/html",
        )

    async def openapi(self, _: Exchange) -> Response:
        """GET /openapi.json: made when it is first asked for."""
        if not self._document:
            self._document = encode(document(self._tags, self._settings.max_key_size))
        return Response(self._actor.revision, self._document)
