"""The command line: `kvactor serve`, which is also what `kvactor` alone does, and the tools."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import kvactor
from kvactor import failpoints
from kvactor.cli import serve, tools
from kvactor.errors import DataDirectoryError
from kvactor.failpoints import Failpoint
from kvactor.server import CannotListen
from kvactor.settings import FAILPOINTS, Settings, load, suggestion, table

_USAGE = "kvactor [serve] [settings]"


class WrongUsage(Exception):
    """The command line or the environment asks for what cannot be. The text is a sentence."""


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
    serving = commands.add_parser(
        "serve",
        usage=_USAGE,
        help="run the server (the default command)",
        description="Run the server.",
        allow_abbrev=False,
    )
    for name, text in tools.TOOLS.items():
        commands.add_parser(name, help=f"{text}; 'kvactor {name} --help' says more", add_help=False)
    for sub in (top, serving):
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
    2 for wrong usage. The tools say what theirs mean.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in tools.TOOLS:
            return tools.run(arguments[0], arguments[1:])
        return serve.run(*_read(arguments))
    except (WrongUsage, tools.ToolUnavailable) as error:
        return _complain(error, 2)
    except (DataDirectoryError, CannotListen) as error:
        return _complain(error, 1)


def _read(arguments: Sequence[str]) -> tuple[Settings, Mapping[str, Failpoint]]:
    """Return what `serve` is asked for, by its arguments and the environment. Raises `WrongUsage`."""
    if problem := _mistyped(arguments):
        raise WrongUsage(problem)
    given = vars(parser().parse_args(arguments))
    if (command := given.pop("command")) in tools.TOOLS:
        raise WrongUsage(f"'{command}' comes first, and takes no settings of the server.")
    try:
        return load(os.environ, given), failpoints.parse(os.environ.get(FAILPOINTS, ""))
    except ValueError as error:
        raise WrongUsage(error) from error


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
