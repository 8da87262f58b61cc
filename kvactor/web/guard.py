"""The request guard: it lets in requests of HTTP/1, for a path, that name the server in `Host`, do not
come from a page of another origin, and say nothing that their route would ignore.

A page in a browser can send requests to every server that its user can reach. Fetch metadata
(`Sec-Fetch-Site`) shows what kind of page has sent it; where there is none, `Origin` shows a page of
another origin. A page whose own name resolves to this server (DNS rebinding) has the same origin to
the browser; `Host` shows its name.

The rule: a header that would change what a request means is understood, or the request is refused.
"""

import re
from collections import Counter
from typing import Final

import msgspec
from aiohttp import HttpVersion10, HttpVersion11
from multidict import MultiMapping, istr

from kvactor.errors import CrossOrigin, HostNotAllowed, InvalidRequest, UnsupportedEncoding
from kvactor.settings import Settings

_HOST = istr("Host")
_ORIGIN = istr("Origin")
_SITE = istr("Sec-Fetch-Site")
_MODE = istr("Sec-Fetch-Mode")
_DESTINATION = istr("Sec-Fetch-Dest")
_ENCODING = istr("Content-Encoding")
_VERSIONS = (HttpVersion11, HttpVersion10)
#: Of `Sec-Fetch-Site`: pages of this server, and users, who have typed the address.
_OWN_SITES = ("same-origin", "none")

_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|\[::1\]|::1")
#: A host, and a port that does not matter.
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")

#: Headers that a request has once, if at all.
ONCE: Final = frozenset(
    {
        "content-range",
        "content-type",
        "host",
        "idempotency-key",
        "kvactor-transaction",
        "last-event-id",
        "origin",
        "sec-fetch-dest",
        "sec-fetch-mode",
        "sec-fetch-site",
    }
)
#: Headers that a route takes, or else refuses, because they would change what the request means.
DECISIVE: Final = frozenset(
    {
        "content-range",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "kvactor-transaction",
    }
)
#: Headers that the guard looks at, beside `Host`.
_EXAMINED: Final = DECISIVE | {"content-encoding", "origin", "sec-fetch-site"}

#: Values of `Host` that are remembered as good, at most, and lists of headers: the same few come again
#: and again.
KNOWN = 100
#: Headers, and characters of their names, in a list that is remembered, at most.
KNOWN_HEADERS = 32
KNOWN_SIZE = 1024


class Form(msgspec.Struct, frozen=True):
    """What requests for one route may look like."""

    #: its method and path, for people
    name: str
    #: those of `DECISIVE` that it takes, in lower case
    headers: frozenset[str] = DECISIVE
    query: bool = True
    body: bool = False
    #: may pages of other origins link to it?
    page: bool = False


def is_loopback(host: str) -> bool:
    """Is this a name or an address that only leads to the machine itself?"""
    return _LOOPBACK.fullmatch(_plain(host)) is not None


def _plain(host: str) -> str:
    return host.strip().lower().removesuffix(".")


def _name(host: str) -> str:
    """Return a host without its port; empty if it cannot be one."""
    parts = _HOST_AND_PORT.fullmatch(host.strip())
    return _plain(parts[1]) if parts else ""


class RequestGuard:
    """Refuses requests by their form.

    It checks `Host` when the server listens on a loopback address, or when `allowed_hosts` is set.
    """

    def __init__(self, settings: Settings) -> None:
        named = {_name(host) for host in settings.allowed_hosts.split(",")} - {""}
        own = _plain(settings.host)
        self._names = named | {own, f"[{own}]"}
        self._guarded = bool(named) or is_loopback(own)
        #: values that were let in already, and None: HTTP/1.0 need not send it
        self.known: set[str | None] = {None}
        #: of lists of headers' names that have come, those that are to be examined
        self.lists: dict[tuple[str, ...], frozenset[str]] = {}

    def check(
        self, version: tuple[int, int], target: str, headers: MultiMapping[str], form: Form
    ) -> None:
        """Raise `InvalidRequest` for another HTTP than 1.0 and 1.1, for a target that is no path, for a
        header that comes twice, and for what a request of this `form` does not have; `HostNotAllowed`
        for a name that is not the server's; `CrossOrigin` for a request of a page of another origin;
        `UnsupportedEncoding` for a body that is encoded.
        """
        if version not in _VERSIONS or target[:1] != "/":
            raise InvalidRequest("A request is HTTP/1.1 or HTTP/1.0, and its target begins with /.")
        # multidict's iterator leaves out what comes twice.
        names = tuple(headers)
        examined = self.lists.get(names) if len(names) == len(headers) else None
        if examined is None:
            examined = self._examine(headers)
        host = headers.get(_HOST)
        if self._guarded and host not in self.known:
            self._learn(str(host))
        if examined:
            self._check_page(headers, host, form)
            self._check_form(headers, examined, form)
        if not form.query and "?" in target and not target.endswith("?"):
            raise InvalidRequest(f"{form.name} takes no query. In a key, ? is written %3F.")

    def _examine(self, headers: MultiMapping[str]) -> frozenset[str]:
        """Return those of a request's headers that are to be examined, in lower case.

        Raises `InvalidRequest` if one comes twice that comes once.
        """
        names = tuple(name for name, _ in headers.items())
        counts = Counter(name.lower() for name in names)
        for name, count in counts.items():
            if count > 1 and name in ONCE:
                raise InvalidRequest(f"A request has the header {name.title()} once.")
        examined = _EXAMINED.intersection(counts)
        if len(counts) == len(names) <= KNOWN_HEADERS and sum(map(len, names)) <= KNOWN_SIZE:
            if len(self.lists) >= KNOWN:
                self.lists.clear()
            self.lists[names] = examined
        return examined

    def _check_page(self, headers: MultiMapping[str], host: str | None, form: Form) -> None:
        """Raise `CrossOrigin` for a request of a page of another origin, unless it is a link that its
        user follows to a page.
        """
        origin, site = headers.get(_ORIGIN), headers.get(_SITE)
        if site is None:
            if origin is not None and origin.partition("://")[2] != host:
                raise CrossOrigin(f"Pages of {origin} may not speak to this server.")
        elif site not in _OWN_SITES:
            follows = (headers.get(_MODE), headers.get(_DESTINATION)) == ("navigate", "document")
            if not (form.page and follows):
                raise CrossOrigin(
                    f"Pages of {origin or 'other origins'} may not speak to this server "
                    f"(Sec-Fetch-Site: {site})."
                )

    def _check_form(self, headers: MultiMapping[str], examined: frozenset[str], form: Form) -> None:
        """Raise `InvalidRequest` for a header that the route would ignore; `UnsupportedEncoding`."""
        ignored = sorted((examined & DECISIVE) - form.headers)
        if ignored:
            raise InvalidRequest(f"{form.name} does not take the header {ignored[0].title()}.")
        if form.body and "content-encoding" in examined:
            codings = ",".join(headers.getall(_ENCODING)).lower()
            if codings.strip(" \t") != "identity":
                raise UnsupportedEncoding("A body is sent as it is, without a Content-Encoding.")

    def _learn(self, host: str) -> None:
        name = _name(host)
        if name not in self._names and not is_loopback(name):
            raise HostNotAllowed(
                f"This server does not go by the name {host!r}. If it is to, add the name to the "
                "setting allowed_hosts (KVACTOR_ALLOWED_HOSTS)."
            )
        if len(self.known) < KNOWN:
            self.known.add(host)
