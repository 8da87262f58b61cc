"""What a client asks for with `Accept` (RFC 9110, 12.5.1).

The rule: the most specific media range decides, and one with q=0 is not asked for. A range that is
malformed is none.
"""

import re

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 (of HTTP's grammar)
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
# No expression here goes back: each takes time in proportion to the header's length.
_PARAMETER = re.compile(rf"[ \t]*+;[ \t]*+(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?+")
_RANGE = re.compile(rf"[ \t]*+({_TOKEN})/({_TOKEN})((?:{_PARAMETER.pattern})*+)[ \t]*+")
#: A part of a list, which commas end, but not those in quotes.
_PART = re.compile(rf"(?:[^,\"]|{_QUOTED})*+(?:,|\Z)")
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def qualities(accept: str) -> dict[str, float]:
    """Return the media ranges of an `Accept`, in lower case and without parameters, with their
    qualities.
    """
    found: dict[str, float] = {}
    end = 0
    # An unfinished quote ends it.
    while end < len(accept) and (part := _PART.match(accept, end)):
        end = part.end()
        media = _RANGE.fullmatch(part[0].removesuffix(","))
        if media is None:
            continue
        parameters = {name.lower(): text for name, text in _PARAMETER.findall(media[3])}
        quality = parameters.get("q", "1")
        if _QUALITY.fullmatch(quality):
            kind = f"{media[1]}/{media[2]}".lower()
            found[kind] = max(found.get(kind, 0.0), float(quality))
    return found


def prefers(accept: str, wanted: str, usual: str) -> bool:
    """Does a client name the media type `wanted`, and like it as well as the `usual` one?"""
    asked = qualities(accept)
    quality = asked.get(wanted, 0.0)
    return quality > 0 and quality >= _quality(asked, usual)


def _quality(asked: dict[str, float], kind: str) -> float:
    ranges = (kind, kind.partition("/")[0] + "/*", "*/*")
    return next((asked[one] for one in ranges if one in asked), 0.0)
