"""The request guard: it lets in requests of HTTP/1, for a path, that name the server in `Host` and do
not come from a page of another origin.

A page in a browser can send requests to every server that its user can reach. `Origin` shows a page of
another origin. A page whose own name resolves to this server (DNS rebinding) has the same origin to the
browser; `Host` shows its name.
"""

import re
from collections.abc import Mapping

from aiohttp import HttpVersion10, HttpVersion11
from multidict import istr

from kvactor.errors import CrossOrigin, HostNotAllowed, InvalidRequest
from kvactor.settings import Settings

_HOST = istr("Host")
_ORIGIN = istr("Origin")
_VERSIONS = (HttpVersion11, HttpVersion10)

_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|\[::1\]|::1")
#: A host, and a port that does not matter.
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")

#: Values of `Host` that are remembered as good, at most: the same few come again and again.
KNOWN = 100


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

    def check(self, version: tuple[int, int], target: str, headers: Mapping[str, str]) -> None:
        """Raise `InvalidRequest` for another HTTP than 1.0 and 1.1, and for a target that is no path;
        `HostNotAllowed` for a name that is not the server's; `CrossOrigin` for a request of a page of
        another origin.
        """
        if version not in _VERSIONS or target[:1] != "/":
            raise InvalidRequest("A request is HTTP/1.1 or HTTP/1.0, and its target begins with /.")
        host = headers.get(_HOST)
        if self._guarded and host not in self.known:
            self._learn(str(host))
        origin = headers.get(_ORIGIN)
        if origin is not None and origin.partition("://")[2] != host:
            raise CrossOrigin(f"Pages of {origin} may not speak to this server.")

    def _learn(self, host: str) -> None:
        name = _name(host)
        if name not in self._names and not is_loopback(name):
            raise HostNotAllowed(
                f"This server does not go by the name {host!r}. If it is to, add the name to the "
                "setting allowed_hosts (KVACTOR_ALLOWED_HOSTS)."
            )
        if len(self.known) < KNOWN:
            self.known.add(host)
