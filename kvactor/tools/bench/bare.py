"""The yardstick: aiohttp under uvloop, with handlers that answer as kvactor does and keep nothing.

It is what an experienced user of aiohttp would write if there were no store: same routes, status,
body and header names, same loop and options, no middleware, no access log, no look into a body. What
kvactor costs beyond this is its own: with a batch or a scan nearly all, since the request is one.
"""

import asyncio
import gc
import signal
from collections.abc import Mapping
from typing import Final

import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler

from kvactor.tools.bench.workloads import BATCH, KEY, SCAN, VALUE

ID: Final = "0123456789abcdefghijkl"
JSON: Final = {
    "Content-Type": "application/json",
    "Kvactor-Revision": "10000",
    "Kvactor-Time": "1700000000000",
}
CREATED: Final = {**JSON, "Location": f"/v1/transactions/{ID}"}
TAGGED: Final = {**JSON, "ETag": '"10000"'}
PLAIN: Final = {**JSON, "X-Content-Type-Options": "nosniff"}
GUARDED: Final = {
    **TAGGED,
    **PLAIN,
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
PAGED: Final = {**PLAIN, "Link": f'</v1/kv?limit={SCAN}&cursor=PmtleTAwMDAwMDk5OQ>; rel="next"'}

GOT: Final = f'{{"key":"{KEY % 0}","value":"{VALUE}"}}'.encode()
STORED: Final = b'{"status":"ok"}'
OPENED: Final = f'{{"id":"{ID}","depth":1,"expires_at":"2026-01-01T00:00:30.000Z"}}'.encode()
COMMITTED: Final = f'{{"id":"{ID}","depth":0}}'.encode()
RAW: Final = f'"{VALUE}"'.encode()
WRITTEN: Final = b'{"revision":10000}'


def _items(count: int) -> str:
    rest = f'"revision":10000,"content_type":"application/json","expires_at":null,"value":"{VALUE}"'
    return ",".join(f'{{"key":"{KEY % number}",{rest}}}' for number in range(count))


SCANNED: Final = f'{{"items":[{_items(SCAN)}],"cursor":"PmtleTAwMDAwMDk5OQ","revision":10000}}'.encode()
BATCH_GOT: Final = f'{{"revision":null,"results":[{_items(BATCH)}]}}'.encode()
BATCH_PUT: Final = f'{{"revision":10000,"results":[{",".join(["{}"] * BATCH)}]}}'.encode()


def reading(body: bytes, headers: Mapping[str, str]) -> Handler:
    """Return a handler that answers a GET; every key has one length and one value."""

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=body, headers=headers)

    return read


def writing(body: bytes, headers: Mapping[str, str], status: int = 200) -> Handler:
    """Return a handler that reads a body and answers."""

    async def write(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=status, body=body, headers=headers)

    return write


async def batch(request: web.Request) -> web.Response:
    """Answer as POST /v1/batch does, to puts or to gets."""
    puts = (await request.read()).startswith(b'{"operations":[{"op":"put"')
    return web.Response(body=BATCH_PUT if puts else BATCH_GOT, headers=JSON)


ROUTES: Final = (
    ("GET", "/get/{key:.+}", reading(GOT, JSON)),
    ("POST", "/set", writing(STORED, JSON)),
    ("POST", "/v1/transactions", writing(OPENED, CREATED, 201)),
    ("POST", "/v1/transactions/{id}/commit", writing(COMMITTED, JSON)),
    ("GET", "/v1/kv/{key:.+}", reading(RAW, GUARDED)),
    ("PUT", "/v1/kv/{key:.+}", writing(WRITTEN, TAGGED)),
    ("GET", "/v1/kv", reading(SCANNED, PAGED)),
    ("POST", "/v1/batch", batch),
)


async def serve() -> None:
    """Serve on a free port, say where on one line, and end on SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    app = web.Application()
    for method, path, handler in ROUTES:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=75, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    gc.collect()
    gc.freeze()
    host, port = runner.addresses[0][:2]
    print(f"bare aiohttp on http://{host}:{port}", flush=True)
    await stopped.wait()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve())
