"""Who is let in: whoever speaks HTTP/1, to a path, by a name that the server goes by, and not for a
page from elsewhere.

A browser reaches what its user reaches, and lends that to the pages that it shows. A page of another
origin gives itself away by `Origin`. One whose own name was made to lead here (DNS rebinding) is of
the same origin to the browser; what gives it away is that name, in `Host`.
"""

import re

from aiohttp import HttpVersion10, HttpVersion11, web
from multidict import istr

from kvactor.errors import CrossOrigin, HostNotAllowed, InvalidRequest
from kvactor.settings import Settings

_HOST = istr("Host")
_ORIGIN = istr("Origin")
_VERSIONS = (HttpVersion11, HttpVersion10)

_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|\[::1\]|::1")
#: A host, and a port that does not matter.
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")

#: How many texts of `Host` are known to be good, at most: the same few come again and again.
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


class Door:
    """Refuses requests by their form.

    `Host` is looked at when the server listens on a loopback address, or when `allowed_hosts` says
    what it is called.
    """

    def __init__(self, settings: Settings) -> None:
        named = {_name(host) for host in settings.allowed_hosts.split(",")} - {""}
        own = _plain(settings.host)
        self._names = named | {own, f"[{own}]"}
        self._guarded = bool(named) or is_loopback(own)
        #: what has been let in already, and None: HTTP/1.0 need not say it
        self.known: set[str | None] = {None}

    def check(self, request: web.Request) -> None:
        """Raise `InvalidRequest` for another HTTP than 1.0 and 1.1, and for a target that is no path;
        `HostNotAllowed` for a name that is not the server's; `CrossOrigin` for what a page from
        elsewhere has sent.
        """
        if request.version not in _VERSIONS or request.raw_path[:1] != "/":
            raise InvalidRequest("A request is HTTP/1.1 or HTTP/1.0, and its target begins with /.")
        headers = request.headers
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
