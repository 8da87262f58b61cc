"""The examples of the documentation: what they are in Markdown, and a shell that runs them.

A block of the kind `console` is a session: `$ ` begins a command, `> ` goes on with it, and what
follows is what it prints, whether or not that ends with a newline. In the output `...` stands for
anything within a line, and a line of it for any number of lines. `^C` as the last line: the command
does not end by itself, and is ended when it has printed the rest. A comment `kvactor serve ...` at
the top of a document has the flags of the server that its examples speak to.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.process.servers import PATIENCE

ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

ADDRESS: Final = re.compile(r"\b(?:localhost|127\.0\.0\.1):5000\b")

_FLAGS: Final = re.compile(r"<!-- kvactor serve (.+) -->\n")
_FENCE: Final = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK: Final = re.compile(rb"\x1e(\d+)\n")
_INTERRUPT: Final = "^C"


class Block(NamedTuple):
    """A fenced block, and the number of the line that begins it."""

    line: int
    kind: str
    text: str


class Example(NamedTuple):
    """A command, what it prints, and the number of its line."""

    line: int
    command: str
    output: str

    @property
    def endless(self) -> bool:
        """Whether it has to be ended."""
        return self.output.rpartition("\n")[2] == _INTERRUPT

    def is_printed_by(self, text: str) -> bool:
        """Is it this that the command should print?"""
        lines = self.output.removesuffix(_INTERRUPT).strip("\n").split("\n")
        patterns = (
            r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
            for line in lines
        )
        printed = text.replace("\r\n", "\n").strip("\n") + "\n"
        return re.fullmatch("".join(patterns), printed) is not None


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown text."""
    for found in _FENCE.finditer(text):
        yield Block(text.count("\n", 0, found.start()) + 1, found[1], found[2])


def flags(text: str) -> list[str]:
    """Return the flags of the server that the examples of a Markdown text speak to."""
    found = _FLAGS.match(text)
    return found[1].split() if found else []


def examples(block: Block) -> Iterator[Example]:
    """Yield the examples in a session. Raises `ValueError` for a line that belongs to none."""
    command: list[str] = []
    output: list[str] = []
    began = 0
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            if command:
                yield Example(began, "\n".join(command), "\n".join(output))
            began, command, output = number, [line[2:]], []
        elif line.startswith("> ") and command and not output:
            command.append(line[2:])
        elif command:
            output.append(line)
        else:
            raise ValueError(f"line {number} is printed by no command: {line}")
    if not command:
        raise ValueError(f"the block at line {block.line} has no command")
    yield Example(began, "\n".join(command), "\n".join(output))


class Shell:
    """One bash for all examples of a document: what one sets, the next one has."""

    def __init__(self, folder: Path) -> None:
        # On a terminal curl shows no progress while it prints what it got.
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        kept = {
            name: text for name, text in os.environ.items() if not name.endswith(("_proxy", "_PROXY"))
        }
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],  # noqa: S607 (whichever comes first)
            cwd=folder,
            env=kept | {"CURL_HOME": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._deadline = 0.0
        self._rest = b""

    def run(self, example: Example) -> str:
        """Run an example to its end, and return what it has printed.

        Raises `RuntimeError` if it fails or does not end, with what it has printed until then.
        """
        self._deadline = time.monotonic() + PATIENCE
        if example.endless:
            return self._run_endless(example)
        self._tell(f"{{ {example.command}\n}} </dev/null\nprintf '\\036%d\\n' $?\n")
        text, status = self._read_to_end()
        if status:
            raise RuntimeError(f"exit status {status}\n{text}")
        return text

    def _run_endless(self, example: Example) -> str:
        self._tell(f"{example.command} </dev/null & printf '\\036%d\\n' $!\n")
        before, pid = self._read_to_end()
        # What the command has printed since may be here already.
        self._rest = before.encode() + self._rest
        while not example.is_printed_by(self._rest.decode(errors="replace")):
            self._read()
        text, self._rest = self._rest.decode(), b""
        os.kill(pid, signal.SIGTERM)
        self._tell("wait $!; printf '\\036%d\\n' 0\n")
        self._read_to_end()
        return text

    def _tell(self, text: str) -> None:
        if self._process.stdin is None:
            raise RuntimeError("no standard input")
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _read_to_end(self) -> tuple[str, int]:
        """Return what is printed before the next mark, and the number in it."""
        while (end := _MARK.search(self._rest)) is None:
            self._read()
        text, self._rest = self._rest[: end.start()].decode(), self._rest[end.end() :]
        return text, int(end[1])

    def _read(self) -> None:
        if self._process.stdout is None:
            raise RuntimeError("no standard output")
        left = max(0.0, self._deadline - time.monotonic())
        ready = select.select([self._process.stdout], [], [], left)[0]
        more = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
        if not more:
            raise RuntimeError(f"{'bash has ended' if ready else 'no end'}\n{self._rest.decode()}")
        self._rest += more

    def close(self) -> None:
        """End it, and all that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
