"""Who may ask, and how often. Knows addresses, tokens and headers; no pictures."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from vizsla.web.shell.tokens import from_header, matches

ADDRESSES = 10_000  # remembered at once
BURST_SECONDS = 10  # of the rate may be used up at once


class RateLimit:
    """A token bucket for each address; a /64 of IPv6 counts as one address.

    per_minute: how many requests an address has; 0: no limit. at_once: how many of them may come
    in one moment, at least. Not for many threads.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: float = 1.0,
    ) -> None:
        self.rate, self.clock = per_minute / 60, clock
        self.most = max(at_once, self.rate * BURST_SECONDS)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, at

    def wait(self, address: str, weight: float = 1.0) -> float:
        """0 where the request may pass, which then counts; else the seconds to wait.

        weight: so many requests it counts as, or as all that may come in one moment.
        """
        if self.rate <= 0:
            return 0.0
        key, now = one_address(address), self.clock()
        left, at = self._buckets.pop(key, (self.most, now))
        left = min(self.most, left + (now - at) * self.rate)
        weight = min(weight, self.most)
        passes = left >= weight
        self._buckets[key] = (left - weight if passes else left, now)
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (weight - left) / self.rate


def one_address(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:  # or all of IPv4 would be one address to a socket for both
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)


@dataclass(frozen=True)
class Access:
    """token_hash: of the token that everything asks for, None: nothing does.

    change_hash: of the token that changing the gallery asks for; None: it cannot be changed.
    hosts: the names by which the server may be called, beside addresses; None: any name.
    """

    token_hash: str | None = None
    change_hash: str | None = None
    hosts: frozenset[str] | None = None

    def may_ask(self, headers: Mapping[str, str]) -> bool:
        if self.token_hash is None:
            return True
        return matches(from_header(headers.get("authorization")), self.token_hash)

    def may_change(self, headers: Mapping[str, str]) -> bool:
        return matches(from_header(headers.get("authorization")), self.change_hash)

    def knows_host(self, host: str) -> bool:
        """Whether the Host header is an address or a known name.

        A page of a stranger can let its own name point to this machine (DNS rebinding), and would
        then read whatever is served here without a token.
        """
        if self.hosts is None:
            return True
        name = host_name(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts or name == "localhost" or name.endswith(".localhost")
        return True


def host_name(host: str) -> str:
    """Without port and brackets, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def comes_from_elsewhere(method: str, headers: Mapping[str, str]) -> bool:
    """Whether another site's page makes a browser send this, with the tokens that it remembers."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:  # browsers; our pages' own forms have the origin `null`, see http.py
        return site not in ("none", "same-origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True
