"""`kvactor serve`: what belongs to the process around a server. `kvactor.server` has the order of a
start and of a stop.

The process sets up the log and the failpoints, opens the storage, raises its limit of open files,
hears the signals, writes the ready line, and ends.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import uvloop

import kvactor
from kvactor import failpoints
from kvactor.cli.deadline import ExitDeadline
from kvactor.cli.heap import keep_small, return_large_pieces
from kvactor.failpoints import Failpoint
from kvactor.server import Server, TcpListener
from kvactor.settings import Settings, service_links
from kvactor.storage.directory import Storage, open_directory, open_memory
from kvactor.web.guard import is_loopback

log = logging.getLogger(__package__)

#: Files that the server opens beside connections: the data, the log, the loop's own.
OTHER_FILES = 100


def run(settings: Settings, armed: Mapping[str, Failpoint]) -> int:
    """Serve until a signal or a failure; return the exit status: 0 after a signal, 1 after a failure.

    Raises `DataDirectoryError` and `CannotListen` if the start is refused.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for variable in service_links(os.environ):
        log.warning(
            "%s=%s is ignored: Kubernetes has set it for a Service "
            "(enableServiceLinks: false keeps such variables out)",
            variable,
            os.environ[variable],
        )
    if settings.memory and settings.data_dir != Settings().data_dir:
        log.warning("data_dir is %s, and not used: memory is set", settings.data_dir)
    failpoints.arm(armed)
    return_large_pieces()
    path = Path(settings.data_dir).absolute()
    storage = open_memory() if settings.memory else open_directory(path, settings.map_size)
    where = "data in memory" if settings.memory else f"data in {path}"
    with ExitDeadline() as deadline:
        return uvloop.run(serve(storage, settings, where, deadline))


async def serve(storage: Storage, settings: Settings, where: str, deadline: ExitDeadline) -> int:
    """Serve a storage until a signal or a failure; return the exit status. Raises `CannotListen`."""
    possible = _connections_possible()
    if settings.max_connections > possible:
        log.warning(
            "max_connections is %d, and the process may open files for %d: that is the limit now",
            settings.max_connections,
            possible,
        )
        settings = msgspec.structs.replace(settings, max_connections=possible)
    listener = TcpListener(settings.host, settings.port)
    server = Server(storage, settings, listener)
    _stop_at_signals(server)
    await server.start()
    # What is alive now lives as long as the server: the garbage collector need not look at it again.
    gc.collect()
    gc.freeze()
    keep_small()
    sys.stdout.write(
        f"kvactor {kvactor.__version__} ready at {_url(*listener.address)}, {where}, "
        f"revision {server.actor.revision}\n"
    )
    sys.stdout.flush()
    if not is_loopback(settings.host):
        log.warning(
            "listening on %s: there is no authentication, so whoever reaches this port can read "
            "and write everything",
            settings.host,
        )
    await server.wait()
    deadline.start(settings.shutdown_timeout + settings.exit_timeout, lambda: server.waiting_for)
    await server.stop()
    if server.failed:
        return 1
    log.info("stopped at revision %d", server.actor.revision)
    return 0


def _stop_at_signals(server: Server) -> None:
    """Tell a server to stop at SIGTERM and SIGINT. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    told = False

    def on_signal(number: int) -> None:
        nonlocal told
        if told:
            log.warning("ending at once: what was not acknowledged may be lost")
            os._exit(128 + number)
        told = True
        server.request_stop()
        log.info("%s: finishing what was accepted", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _connections_possible() -> int:
    """Let the process open as many files as it may; return how many of them can be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        hard = soft  # as on systems that say "unlimited" and do not mean it
    return max(1, (1 << 31 if hard == resource.RLIM_INFINITY else hard) - OTHER_FILES)
