"""What the server says on the wire, recorded: scripts of exchanges, one file a topic.

The rule: nothing in here knows more of the server than its command line, its ready line and its bytes.
So whatever changes inside, a script that was recorded before is replayed as it is.

A file begins with what it is about and with the flags of its server, `{directory}` among them for one
of its own. Its blocks are exchanges, done in
order; an empty line is between two. A block begins with `=== ` and its title. `> ` begins a line that
is sent, `< ` one that comes back. CRLF is behind each line of a head, LF between the lines of a body;
`>>` is between two requests that are sent at once, `<<` between two answers, and `<closed` says that
the server closes the connection. Any other byte, and an LF or CR elsewhere, is `\\n`, `\\r`, `\\xNN`,
and a backslash is two.

In what is sent `{length}` stands for the size of the body, `{600*a}` for 600 times that letter, `{id1}`
for the first id of a transaction that the server has given, and so on. In answers `VARIES` says what
stands for what is another each time. Everything else is compared byte for byte.

Options are lines that begin with `@ `:

- `over NAME`: the connection, opened when it is first used; the others are over `main`;
- `answers N`: how many are read: 1, unless this says otherwise; a block that sends nothing only reads;
- `until TEXT`: read until this has come, and not to the end of the answer;
- `again until TEXT`: send it again and again until the answer has this, and show that one;
- `hang up`: close the connection when all is read;
- `length varies`: do not compare Content-Length, of an answer to HEAD;
- `pretty`: show the body, JSON without spaces, with indentation;
- `digest`: show how long the body is, and its digest.
"""

import difflib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

SCRIPTS: Final = tuple(sorted(Path(__file__).parent.glob("*.txt")))

#: The tree that this is a part of.
ROOT: Final = Path(__file__).parents[3]

#: Seconds after which whatever is waited for has failed to happen.
PATIENCE: Final = 10.0

_READY: Final = re.compile(r"kvactor \S+ ready at http://(\S+):(\d+), ")

#: What is another each time: a pattern, what stands for it, and whether it has another length, too.
VARIES: Final = (
    (rb"(\r\nDate:) [^\r]+", rb"\1 {date}", False),
    (rb"(\r\nKvactor-Time:) \d{13}", rb"\1 {milliseconds}", False),
    (rb"(\r\nServer: Python)/\S+ aiohttp/\S+", rb"\1/{version} aiohttp/{version}", False),
    (rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", rb"{time}", False),
    (rb'(\r\nETag: "\d+-)[0-9a-f]{18}"', rb'\1{draft}"', False),
    (rb'("version":)"\d[^"]*"', rb'\1"{version}"', True),
    (rb'("age":)[0-9.e-]+', rb"\1{seconds}", True),
    (rb'("free":)\d+', rb"\1{bytes}", True),
    (rb"(?m)^(kvactor_\w+(?:\{.*\})?) \S+$", rb"\1 {number}", True),
)

_ID: Final = re.compile(rb"\r\nLocation: /v1/transactions/(\S+)\r\n")
_REPEATED: Final = re.compile(rb"\{(\d+)\*(.)\}")
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_OPTIONS: Final = (
    "over",
    "answers",
    "until",
    "again until",
    "hang up",
    "length varies",
    "pretty",
    "digest",
)


def difference(path: Path, tree: Path = ROOT) -> str:
    """Return how the answers of the server of a tree differ from a script's; empty if they do not."""
    recorded = path.read_text("ascii")
    lines = difflib.unified_diff(
        recorded.splitlines(), replay(recorded, tree).splitlines(), "recorded", "now", lineterm="", n=12
    )
    return "\n".join(lines)


def replay(script: str, tree: Path) -> str:
    """Return a script with the answers that the server of a tree gives now."""
    head, *blocks = script.removesuffix("\n").split("\n\n")
    flags = head.partition("\n$ kvactor serve ")[2]
    with tempfile.TemporaryDirectory() as directory:
        arguments = flags.replace("{directory}", directory).split()
        with _served(arguments, tree) as address, _Client(address) as client:
            return "\n\n".join([head, *map(client.exchange, blocks)]) + "\n"


@contextmanager
def _served(flags: list[str], tree: Path) -> Iterator[tuple[str, int]]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("KVACTOR_")}
    with subprocess.Popen(
        [sys.executable, "-m", "kvactor", "serve", "--port", "0", "--log-level", "error", *flags],
        cwd=tree,
        env=kept | {"PYTHONPATH": str(tree)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            found = _READY.match(process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError("the server has not started")
            yield found[1], int(found[2])
            process.terminate()
            if status := process.wait(PATIENCE):
                raise RuntimeError(f"the server has ended with exit status {status}")
        finally:
            process.kill()


class _Answer(NamedTuple):
    """An answer, and whether the server closes the connection behind it."""

    data: bytes
    last: bool


class _Connection:
    """A client's end of a connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, PATIENCE)
        self.deadline = 0.0
        self._read = b""

    def _more(self) -> bool:
        """Read on; tell whether there was anything."""
        if time.monotonic() > self.deadline:
            raise TimeoutError(f"the answer does not end: {self._read!r}")
        try:
            piece = self.socket.recv(1 << 16)
        except ConnectionResetError:
            piece = b""
        self._read += piece
        return piece != b""

    def _take(self, size: int) -> bytes:
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    def _find(self, end: bytes) -> int:
        """Return where the first `end` ends, or what is there if the connection does before."""
        while end not in self._read and self._more():
            pass
        return self._read.find(end) + len(end) if end in self._read else len(self._read)

    def until(self, text: bytes) -> _Answer:
        """Read until a text has come."""
        data = self._take(self._find(text))
        return _Answer(data, not data.endswith(text))

    def answer(self, *, bodiless: bool) -> _Answer:
        """Read an answer to its end; if it is to be the last, to the end of the connection."""
        head = self._take(self._find(b"\r\n\r\n"))
        if not head.endswith(b"\r\n\r\n"):
            return _Answer(head, last=True)
        low = head.lower()
        last = b"\r\nconnection: close\r\n" in low or (
            not low.startswith(b"http/1.1 ") and b"\r\nconnection: keep-alive\r\n" not in low
        )
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", low)
        size = 0
        if b"\r\ntransfer-encoding: chunked\r\n" in low:
            size = self._find(b"0\r\n\r\n")
        elif length is not None and not (bodiless or head[9:12] in {b"100", b"204", b"304"}):
            size = int(length[1])
        while (last or len(self._read) < size) and self._more():
            pass
        return _Answer(head + self._take(len(self._read) if last else size), last)


class _Client:
    """Does exchanges, over connections that stay open from one to the next."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._open: dict[str, _Connection] = {}
        self._ids: list[bytes] = []

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for connection in self._open.values():
            connection.socket.close()

    def exchange(self, block: str) -> str:
        """Do what a block says, and return it with the answers that have come."""
        said = [line for line in block.splitlines() if not line.startswith("<")]
        options = dict(map(_option, (line[2:] for line in said if line.startswith("@ "))))
        sent = self._sent([line for line in said if line.startswith(">")])
        deadline = time.monotonic() + PATIENCE
        while True:
            answers = self._ask(sent, options)
            awaited = options.get("again until", "").encode()
            if all(awaited in answer.data for answer in answers):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain for {awaited!r}:\n{block}")
        for answer in answers:
            self._ids += _ID.findall(answer.data)
        told = [self._shown(answer, options) for answer in answers]
        return "\n".join(said + "\n<<\n".join(told).splitlines())

    def _ask(self, sent: bytes, options: dict[str, str]) -> list[_Answer]:
        name = options.get("over", "main")
        if name not in self._open:
            self._open[name] = _Connection(self._address)
        connection = self._open[name]
        connection.deadline = time.monotonic() + PATIENCE
        connection.socket.sendall(sent)
        answers: list[_Answer] = []
        while len(answers) < int(options.get("answers", 1)) and not (answers and answers[-1].last):
            if "until" in options:
                answers.append(connection.until(_ESCAPE.sub(_unescaped, options["until"].encode())))
            else:
                answers.append(connection.answer(bodiless=sent.startswith(b"HEAD ")))
        if "hang up" in options or (answers and answers[-1].last):
            self._open.pop(name).socket.close()
        return answers

    def _sent(self, lines: list[str]) -> bytes:
        """Return the bytes that lines stand for."""
        messages: list[list[bytes]] = [[]]
        for line in lines:
            if line == ">>":
                messages.append([])
            else:
                messages[-1].append(line[2:].encode())
        return b"".join(map(self._message, messages))

    def _message(self, lines: list[bytes]) -> bytes:
        end = lines.index(b"") if b"" in lines else len(lines)
        head, body = b"\r\n".join(lines[:end]), b"\n".join(lines[end + 1 :])
        if end < len(lines):
            head += b"\r\n\r\n"
        body = self._filled(body)
        return self._filled(head).replace(b"{length}", b"%d" % len(body)) + body

    def _filled(self, text: bytes) -> bytes:
        for number, known in enumerate(self._ids, 1):
            text = text.replace(b"{id%d}" % number, known)
        text = _REPEATED.sub(lambda found: int(found[1]) * found[2], text)
        return _ESCAPE.sub(_unescaped, text)

    def _shown(self, answer: _Answer, options: dict[str, str]) -> str:
        """Return the lines that stand for an answer."""
        data, resized = answer.data, 0
        for pattern, stands, resizes in VARIES:
            data, count = re.subn(pattern, stands, data)
            resized += count if resizes else 0
        for number, known in enumerate(self._ids, 1):
            data = data.replace(known, b"{id%d}" % number)
        head, end, body = data.partition(b"\r\n\r\n")
        if resized or "length varies" in options:
            head = re.sub(rb"(\r\nContent-Length:) \d+", rb"\1 {length}", head)
        if "pretty" in options:
            body = _pretty(body)
        if "digest" in options:
            body = b"{%d bytes, %b}" % (len(body), blake2b(body, digest_size=16).hexdigest().encode())
        lines = head.split(b"\r\n") if head else []
        if end:
            lines += [b"", *(body.split(b"\n") if body else [])]
        told = [f"< {_escaped(line)}" if line else "<" for line in lines]
        return "\n".join([*told, *(["<closed"] if answer.last else [])])


def _option(text: str) -> tuple[str, str]:
    for name in _OPTIONS:
        if text == name or text.startswith(name + " "):
            return name, text[len(name) + 1 :]
    raise ValueError(f"{text!r} is no option")


def _unescaped(found: "re.Match[bytes]") -> bytes:
    code = found[1]
    if len(code) > 1:
        return bytes.fromhex(code[1:].decode())
    return {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}[code]


def _escaped(line: bytes) -> str:
    text = line.replace(b"\\", b"\\\\").replace(b"\r", b"\\r").replace(b"\n", b"\\n")
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in text)


def _pretty(body: bytes) -> bytes:
    """Return JSON with indentation. Raises `ValueError` if it has spaces, or anything else is lost."""
    said = json.loads(body)
    if json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode() != body:
        raise ValueError("the body is not JSON without spaces")
    return json.dumps(said, indent=1, ensure_ascii=False).encode()
