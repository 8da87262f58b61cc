"""Fixtures: a way to start servers that are always reaped, and a list of figures that were measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.process.servers import KVACTOR, Server
from tests.sizes import size

# Their assertions are to say as much as those of a test.
pytest.register_assert_rewrite("tests.process.writers", "tests.process.contents")

FIGURE: Final = "figure"


class Start(Protocol):
    """Starts a server on the test's data directory."""

    def __call__(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = KVACTOR,
        prefix: Sequence[str] = (),
    ) -> Server:
        """Return it when it is ready."""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(tmp_path: Path, data_dir: Path) -> Iterator[Start]:
    with ExitStack() as servers:

        def start(
            *arguments: str,
            environ: Mapping[str, str] | None = None,
            program: Sequence[str] = KVACTOR,
            prefix: Sequence[str] = (),
        ) -> Server:
            where = ("--data-dir", str(data_dir))
            server = Server([*where, *arguments], tmp_path, environ, program, prefix)
            return servers.enter_context(closing(server))

        yield start


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often a test that dies at random moments does so."""
    return size("rounds")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Have a measured figure shown at the end of the run."""
    return lambda text: record_property(FIGURE, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    figures = [text for one in reports for name, text in one.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("figures of the server as a process")
        for text in figures:
            terminalreporter.write_line(str(text))
