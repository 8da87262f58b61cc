"""`kvactor bench` and `kvactor stress`: the tools, with command lines of their own.

The rule: a server does not load them. They are imported when they are asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Final

#: The tools, and what `kvactor --help` says of them.
TOOLS: Final[Mapping[str, str]] = {
    "bench": "measure the server beside a bare aiohttp handler",
    "stress": "let many clients at once look for a mistake in a server, its own or that of a URL",
}


class ToolUnavailable(Exception):
    """A package that a tool needs is missing. The text is a sentence that names it."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a tool with its own arguments; return its exit status. Raises `ToolUnavailable`."""
    try:
        if name == "bench":
            from kvactor.tools.bench.__main__ import main  # noqa: PLC0415 (see the rule above)
        else:
            from kvactor.tools.stress.__main__ import main  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kvactor":
            raise
        package = error.name.partition(".")[0]
        raise ToolUnavailable(
            f"'kvactor {name}' needs the package {package}, which is not installed. Install it with: "
            f"pip install {package}."
        ) from error
    return main(arguments)
