"""The one table of settings. Flags, environment variables, help and the README's list all come from it.

A setting's environment variable is its name in capitals behind `KVACTOR_`, its flag its name with
dashes. A flag wins over the variable, the variable over the default. Sizes are bytes, durations
seconds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

PREFIX = "KVACTOR_"

#: Bytes of a key that the tree can hold: a limit of LMDB.
MAX_KEY_SIZE = 511

#: The one variable that is no setting: `failpoints` reads it.
FAILPOINTS = PREFIX + "FAILPOINTS"

_MiB = 1024 * 1024
#: Longer than any duration that makes sense here, in seconds: a year.
MAX_SECONDS = 365 * 24 * 3600


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings. Constructing one checks nothing; `load` fills it from text, and checks."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 picks a free one")] = (
        5000
    )
    allowed_hosts: Annotated[
        str, Meta(description="more names that Host may have, separated by commas")
    ] = ""
    data_dir: Annotated[str, Meta(description="directory for the data")] = "kvactor-data"
    memory: Annotated[bool, Meta(description="keep everything in memory, and nothing on disk")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="how much to log, to standard error"),
    ] = "info"
    access_log: Annotated[bool, Meta(description="log each request; costs speed")] = False

    max_key_size: Annotated[
        int, Meta(ge=1, le=MAX_KEY_SIZE, description="bytes of a key, in UTF-8")
    ] = MAX_KEY_SIZE
    max_value_size: Annotated[int, Meta(ge=1, le=1 << 30, description="bytes of a value")] = _MiB
    max_body_size: Annotated[int, Meta(ge=1, le=1 << 30, description="bytes of a request's body")] = (
        8 * _MiB
    )
    max_header_size: Annotated[
        int, Meta(ge=256, le=_MiB, description="bytes of the request line, and of a header field")
    ] = 8190
    body_timeout: Annotated[
        float, Meta(gt=0, le=MAX_SECONDS, description="seconds in which a body has to arrive")
    ] = 30.0
    write_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="seconds in which a client has to take the next 64 KiB of a response",
        ),
    ] = 30.0
    keepalive_timeout: Annotated[
        float,
        Meta(gt=0, le=MAX_SECONDS, description="seconds after which an idle connection is closed"),
    ] = 75.0
    shutdown_timeout: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_SECONDS,
            description="seconds for requests in progress to finish when the server stops",
        ),
    ] = 10.0
    exit_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="seconds beyond shutdown_timeout until a stop is abandoned, with status 1",
        ),
    ] = 30.0
    max_connections: Annotated[int, Meta(ge=1, description="connections; more get 503")] = 10_000
    max_in_flight_size: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes that requests, responses and transactions hold together; more get 503",
        ),
    ] = 256 * _MiB
    max_request_work: Annotated[
        int,
        Meta(
            ge=1000,
            description="units of work of one request, of 1 to 3 microseconds each",
        ),
    ] = 50_000
    mailbox_size: Annotated[int, Meta(ge=1, description="requests in the mailbox; more get 503")] = (
        10_000
    )

    max_transactions: Annotated[int, Meta(ge=1, description="isolated transactions open at once")] = (
        1000
    )
    max_transaction_depth: Annotated[int, Meta(ge=1, description="levels of nesting")] = 32
    max_transaction_size: Annotated[
        int, Meta(ge=1, description="bytes of a transaction's writes and read set")
    ] = 32 * _MiB
    transaction_idle_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="seconds after which an idle isolated transaction is rolled back",
        ),
    ] = 30.0
    max_transaction_idle_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="the longest idle timeout that a client may ask for, in seconds",
        ),
    ] = 300.0
    shared_transaction_idle_timeout: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_SECONDS,
            description="seconds after which an idle shared transaction is rolled back; 0: never",
        ),
    ] = 0.0
    shared_transaction_warning: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="seconds after which the log warns of an open shared transaction",
        ),
    ] = 60.0
    priority_wait: Annotated[
        float,
        Meta(
            ge=0,
            le=60,
            description="seconds for which a write waits for a transaction that is retried often",
        ),
    ] = 0.05
    remembered_transactions: Annotated[
        int,
        Meta(
            ge=0,
            description="ended transactions that are remembered, so that a commit may be repeated",
        ),
    ] = 10_000

    max_batch_size: Annotated[
        int,
        Meta(ge=1, description="checks and operations of a batch, and keys that one revision deletes"),
    ] = 10_000
    max_scan_limit: Annotated[int, Meta(ge=1, description="keys in one page of a scan")] = 1000
    idempotency_window: Annotated[
        float,
        Meta(gt=0, le=MAX_SECONDS, description="seconds for which an Idempotency-Key is remembered"),
    ] = 86_400.0
    max_idempotency_reads: Annotated[
        int,
        Meta(ge=0, description="bytes that a batch under an Idempotency-Key reads: they are kept"),
    ] = 64 * 1024
    max_idempotency_size: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes kept for all Idempotency-Keys; beyond it the oldest are forgotten",
        ),
    ] = 64 * _MiB
    max_subscribers: Annotated[int, Meta(ge=1, description="requests that follow the changes")] = 1000
    heartbeat: Annotated[
        float,
        Meta(
            gt=0,
            le=MAX_SECONDS,
            description="seconds without an event after which a stream sends a comment",
        ),
    ] = 15.0

    history: Annotated[int, Meta(ge=0, description="revisions kept in the journal")] = 100_000
    history_size: Annotated[
        int, Meta(ge=0, description="bytes of the revisions kept in the journal, about")
    ] = 1 << 30
    memtable_size: Annotated[
        int, Meta(ge=1, description="bytes of changes in memory before they are folded into the tree")
    ] = 8 * _MiB
    min_free_space: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes of free disk below which writes get 507; 0: until it is full, which "
            "ends the process, and deletions need free disk, too",
        ),
    ] = 256 * _MiB
    map_size: Annotated[
        int,
        Meta(
            ge=16 * _MiB,
            le=1 << 45,  # a process has 1 << 47, on most systems
            description="bytes of address space of the journal, and of the tree: their upper bounds",
        ),
    ] = 1 << 40


#: msgspec's sentence for a number that is out of bounds, and the words for it here.
_BOUND = re.compile(r"Expected `\w+` (>=|>|<=) (\S+)")
_BOUND_WORDS = {">=": "at least", ">": "more than", "<=": "at most"}


class Setting(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    kind: type
    default: object
    help: str
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """The placeholder of the flag's value in the help."""
        return "|".join(self.choices) or {int: "N", float: "SECONDS"}.get(self.kind, "TEXT")

    def objection(self, text: str, error: msgspec.ValidationError) -> str:
        """Return a plain sentence for a value that msgspec has refused with `error`."""
        if self.choices:
            return f"{self.name} is one of {', '.join(self.choices)}"
        if bound := _BOUND.match(str(error)):
            return f"{self.name} is {_BOUND_WORDS[bound[1]]} {bound[2].removesuffix('.0')}"
        number = f"{text!r} is not a {'whole ' if self.kind is int else ''}number"
        if self.kind is int and self.help.startswith("bytes"):
            return f"{number} of bytes; it takes no suffix"
        return number


def table() -> Iterator[Setting]:
    """Yield every setting, in the order of the table."""
    kinds: dict[type[msgspec.inspect.Type], type] = {
        msgspec.inspect.IntType: int,
        msgspec.inspect.FloatType: float,
        msgspec.inspect.BoolType: bool,
    }
    hints = get_type_hints(Settings)
    info = msgspec.inspect.type_info(Settings)
    if not isinstance(info, msgspec.inspect.StructType):
        raise TypeError("Settings is a struct")
    for field in info.fields:
        inner, description = field.type, ""
        if isinstance(inner, msgspec.inspect.Metadata):
            description = (inner.extra_json_schema or {}).get("description", "")
            inner = inner.type
        kind = kinds.get(type(inner), str)
        # In the order of the table, which `inner` has not kept.
        choices = ("true", "false") if kind is bool else get_args(hints[field.name])
        yield Setting(field.name, kind, field.default, description, choices)


def suggestion(mistyped: str, names: Iterable[str], prefix: str) -> str:
    """Return a question for the name that is most like `mistyped`, with a space behind; empty if none
    is like it. The common `prefix` does not count as likeness.
    """
    bare = [name.removeprefix(prefix) for name in names]
    near = get_close_matches(mistyped.removeprefix(prefix), bare, 1)
    return f"Did you mean {prefix}{near[0]}? " if near else ""


#: What Kubernetes sets in every pod for a Service named kvactor, or kvactor-something: `NAME=value`.
_SERVICE_LINK = re.compile(
    PREFIX
    + r"""([A-Z0-9_]+_)?(
        SERVICE_HOST = [0-9a-f.:]+
      | SERVICE_PORT(_[A-Z0-9_]+)? = \d+
      | PORT(_\d+_[A-Z]+)? = [a-z]+://\S+:\d+
      | PORT_\d+_[A-Z]+_PROTO = [a-z]+
      | PORT_\d+_[A-Z]+_PORT = \d+
      | PORT_\d+_[A-Z]+_ADDR = [0-9a-f.:]+
    )""",
    re.VERBOSE,
)


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that Kubernetes has set for a Service: they are no settings.

    See "Discovering services" in the documentation of Kubernetes: `KVACTOR_PORT=tcp://10.0.0.1:5000`
    and others, for a Service named kvactor. Name and value both have to be of that shape.
    """
    return [name for name, text in environ.items() if _SERVICE_LINK.fullmatch(f"{name}={text}")]


def load(environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """Return the settings that an environment and flags (by setting's name) ask for.

    Raises `ValueError` with a sentence that names the variable or flag, if a value is of the wrong
    type or out of bounds, or if a variable begins with `KVACTOR_` and names no setting. Those of
    `service_links` are passed over.
    """
    links = service_links(environ)
    environ = {name: text for name, text in environ.items() if name not in links}
    rows = {setting.variable: setting for setting in table()}
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in rows and variable != FAILPOINTS:
            raise ValueError(
                f"{variable} names no setting of kvactor. {suggestion(variable, rows, PREFIX)}"
                "'kvactor --help' lists them."
            )
    settings = Settings()
    for setting in rows.values():
        for source, text in (
            (setting.variable, environ.get(setting.variable)),
            (setting.flag, flags.get(setting.name)),
        ):
            if text is not None:
                try:
                    one = msgspec.convert({setting.name: text}, Settings, strict=False)
                except msgspec.ValidationError as error:
                    raise ValueError(f"{source}={text}: {setting.objection(text, error)}.") from None
                settings = msgspec.structs.replace(
                    settings, **{setting.name: getattr(one, setting.name)}
                )
    return settings
