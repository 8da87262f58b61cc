"""Server processes: ready, failed, stopped and closed, with a program in the place of a server."""

import signal
import sys

import pytest

from kvactor.tools.processes import ServerFailed, ServerProcess

READY = "print('x ready at http://127.0.0.1:5001, and more', flush=True)"
FOREVER = "import signal; signal.pause()"


def process(*lines: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", "\n".join(lines)])


def test_a_ready_line_names_the_address() -> None:
    with process(READY, FOREVER) as server:
        server.wait_until_ready()
        assert (server.host, server.port, server.running) == ("127.0.0.1", 5001, True)
        assert server.ready_line == "x ready at http://127.0.0.1:5001, and more\n"
        assert server.stop() == -signal.SIGTERM


def test_a_process_that_ends_before_it_is_ready_has_failed_with_its_status_and_its_log() -> None:
    with (
        process("import sys; sys.exit('no\\nreason')") as server,
        pytest.raises(ServerFailed, match="did not start; its log ends with\nno\nreason") as failed,
    ):
        server.wait_until_ready()
    assert (failed.value.status, failed.value.log) == (1, "no\nreason\n")


def test_a_process_that_says_nothing_has_failed_at_the_deadline() -> None:
    with process(FOREVER) as server, pytest.raises(ServerFailed, match="was not ready within 0 s"):
        server.wait_until_ready(timeout=0)


def test_a_process_that_does_not_end_has_failed_at_the_deadline() -> None:
    with process(FOREVER) as server, pytest.raises(ServerFailed, match="did not end within 0 s"):
        server.wait(timeout=0)


def test_a_closed_process_does_not_run() -> None:
    with process(READY, FOREVER) as server:
        server.wait_until_ready()
    assert not server.running
    assert server.wait() == -signal.SIGKILL
