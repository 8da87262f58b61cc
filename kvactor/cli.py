"""The command line: `kvactor serve`, which is also what `kvactor` alone does."""

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import uvloop
from aiohttp import web

import kvactor
from kvactor import failpoints
from kvactor.actor import StoreActor
from kvactor.errors import DataDirectoryError
from kvactor.settings import FAILPOINTS, Settings, load, suggestion, table
from kvactor.storage.directory import Storage, open_directory, open_memory
from kvactor.web.app import create_app, create_runner
from kvactor.web.guard import is_loopback
from kvactor.web.server import connections_possible

log = logging.getLogger(__name__)

_USAGE = "kvactor [serve] [settings]"


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"kvactor: {message}. 'kvactor --help' says more.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser; its flags come from the table of settings."""
    top = _Parser(
        prog="kvactor",
        usage=_USAGE,
        description="A transactional key-value server over plain HTTP.",
        epilog="Every setting is a flag, and an environment variable; the flag wins.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"kvactor {kvactor.__version__}")
    commands = top.add_subparsers(dest="command", metavar="command")
    serve = commands.add_parser(
        "serve",
        usage=_USAGE,
        help="run the server (the default command)",
        description="Run the server.",
        allow_abbrev=False,
    )
    for sub in (top, serve):
        group = sub.add_argument_group("settings of serve")
        for setting in table():
            text = f"{setting.help} (default: {setting.default}; {setting.variable})"
            if setting.kind is bool:
                group.add_argument(
                    setting.flag,
                    dest=setting.name,
                    default=argparse.SUPPRESS,
                    action="store_const",
                    const="true",
                    help=text,
                )
            else:
                group.add_argument(
                    setting.flag,
                    dest=setting.name,
                    default=argparse.SUPPRESS,
                    metavar=setting.metavar,
                    help=text,
                )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0 after a stop that was asked for, 1 after a failure,
    2 for wrong usage.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if problem := _mistyped(arguments):
        return _complain(problem, 2)
    given = vars(parser().parse_args(arguments))
    given.pop("command")
    try:
        settings = load(os.environ, given)
        armed = failpoints.parse(os.environ.get(FAILPOINTS, ""))
    except ValueError as error:
        return _complain(error, 2)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    failpoints.arm(armed)
    path = Path(settings.data_dir).absolute()
    try:
        storage = open_memory() if settings.memory else open_directory(path, settings.map_size)
        where = "data in memory" if settings.memory else f"data in {path}"
        return uvloop.run(serve(storage, settings, where))
    except DataDirectoryError as error:
        return _complain(error, 1)


def _mistyped(arguments: Sequence[str]) -> str | None:
    """Say which argument is an unknown flag: argparse would blame the value behind it."""
    flags = ["--help", "--version", *(setting.flag for setting in table())]
    for argument in arguments:
        name = argument.partition("=")[0]
        if re.match("--?[A-Za-z]", name) and name not in flags and name != "-h":
            meant = suggestion(name, flags, "--")
            return f"{name} is no flag of kvactor. {meant}'kvactor --help' lists them."
    return None


def _complain(error: object, status: int) -> int:
    sys.stderr.write(f"kvactor: {error}\n")
    return status


async def serve(storage: Storage, settings: Settings, where: str) -> int:
    """Serve a storage until a signal or a failure ends it; return the exit status."""
    possible = connections_possible()
    if settings.max_connections > possible:
        log.warning(
            "max_connections is %d, and the process may open files for %d: that is the limit now",
            settings.max_connections,
            possible,
        )
        settings = msgspec.structs.replace(settings, max_connections=possible)
    actor = StoreActor(storage, settings)
    runner = create_runner(create_app(actor, settings), settings)
    told = _listen_to_signals()
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        # A name that cannot be one is a UnicodeError. uvloop puts the address before the reason.
        reason = error.strerror if isinstance(error, OSError) else "this cannot be a host's name"
        reason = str(reason or error).rpartition(": ")[2]
        return _complain(
            f"Cannot listen on port {settings.port} of {settings.host}: {reason}. "
            "Choose another address with --host and --port (0 picks a free one).",
            1,
        )
    # What is alive now lives as long as the server: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    sys.stdout.write(
        f"kvactor {kvactor.__version__} ready at {_url(runner)}, {where}, revision {actor.revision}\n"
    )
    sys.stdout.flush()
    if not is_loopback(settings.host):
        log.warning(
            "listening on %s: there is no authentication, so whoever reaches this port can read "
            "and write everything",
            settings.host,
        )
    await asyncio.wait({told, actor.done}, return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    if actor.done.exception():
        return 1
    log.info("stopped at revision %d", actor.revision)
    return 0


def _listen_to_signals() -> "asyncio.Future[None]":
    """Return what is done once SIGTERM or SIGINT has come. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if told.done():
            log.warning("ending at once: what was not acknowledged may be lost")
            os._exit(128 + number)
        log.info("%s: finishing what was accepted", signal.Signals(number).name)
        told.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return told


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
