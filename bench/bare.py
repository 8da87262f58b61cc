"""The yardstick: aiohttp under uvloop, with handlers that answer as kvactor does and keep nothing.

It is what an experienced user of aiohttp would write if there were no store: same routes, status,
body and header names, same loop and options, no middleware, no access log. What kvactor costs
beyond this is its own.
"""

import asyncio
import gc
import signal
from typing import Final

import uvloop
from aiohttp import web

from bench.workloads import VALUE, key_name

JSON: Final = {"Content-Type": "application/json", "Kvactor-Revision": "10000"}
ID: Final = "0123456789abcdefghijkl"
CREATED: Final = {**JSON, "Location": f"/v1/transactions/{ID}"}

GOT: Final = f'{{"key":"{key_name(0)}","value":"{VALUE}"}}'.encode()
STORED: Final = b'{"status":"ok"}'
OPENED: Final = f'{{"id":"{ID}","depth":1,"expires_at":"2026-01-01T00:00:30.000Z"}}'.encode()
COMMITTED: Final = f'{{"id":"{ID}","depth":0}}'.encode()


async def get(request: web.Request) -> web.Response:
    """Answer as GET /get/{key} does; every key has one length and one value."""
    return web.Response(body=GOT, headers=JSON)


async def store(request: web.Request) -> web.Response:
    """Answer as POST /set does."""
    await request.read()
    return web.Response(body=STORED, headers=JSON)


async def create(request: web.Request) -> web.Response:
    """Answer as POST /v1/transactions does."""
    await request.read()
    return web.Response(status=201, body=OPENED, headers=CREATED)


async def commit(request: web.Request) -> web.Response:
    """Answer as POST /v1/transactions/{id}/commit does."""
    await request.read()
    return web.Response(body=COMMITTED, headers=JSON)


async def serve() -> None:
    """Serve on a free port, say where on one line, and end on SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    app = web.Application()
    app.router.add_get("/get/{key:.+}", get)
    app.router.add_post("/set", store)
    app.router.add_post("/v1/transactions", create)
    app.router.add_post("/v1/transactions/{id}/commit", commit)
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
