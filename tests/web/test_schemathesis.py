"""Schemathesis finds no request whose response differs from the description."""

import asyncio
import re
import sys
from pathlib import Path

from aiohttp import web

from kvactor.web.app import TAGS
from tests.sizes import size
from tests.web.conftest import Server

CASES = str(size("cases"))
#: Seconds; only a failing test takes longer.
PATIENCE = 1800


async def test_every_generated_request_gets_a_response_as_described(
    app: web.Application, server: Server, tmp_path: Path
) -> None:
    host, port = server.address
    command = [
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
        *("run", f"http://{host}:{port}/openapi.json", "--checks", "all"),
        # It thinks that only DELETE ends what POST has made; commit and rollback end a transaction too.
        *("--exclude-checks", "ensure_resource_availability"),
        *("--max-examples", CASES, "--generation-deterministic"),
    ]
    run = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(PATIENCE):
            told = (await run.communicate())[0].decode()
    finally:
        if run.returncode is None:
            run.kill()
    assert run.returncode == 0, told
    operations = sum(1 for routes in app[TAGS].values() for _ in routes)
    # All but the one that it has the description from.
    assert re.search(rf"Tested: +{operations - 1}\n", told)
