"""Who may send requests, and how many. Knows addresses, tokens and headers."""

import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cachetools import LRUCache

from vizsla.web.shell.tokens import from_header, matches

MAX_ADDRESSES = 10_000  # remembered; the one unused for longest is forgotten
BURST_SECONDS = 10  # of the rate may be used up at once


class RateLimit:
    """A token bucket for each address. For one thread only.

    per_minute: how many requests an address may send; 0: no limit. at_once: how many of them may
    come at the same moment, at least.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        at_once: float = 1.0,
    ) -> None:
        self.rate, self.clock = per_minute / 60, clock
        self.burst = max(at_once, self.rate * BURST_SECONDS)
        self._buckets: LRUCache[str, tuple[float, float]] = LRUCache(MAX_ADDRESSES)  # left, when

    def wait(self, address: str, weight: float = 1.0) -> float:
        """0 where the request may pass, and then it counts; else the seconds to wait.

        weight: how many requests it counts as, at most all that may come at the same moment.
        """
        if self.rate <= 0:
            return 0.0
        key, now = rate_limit_key(address), self.clock()
        left, at = self._buckets.get(key, (self.burst, now))
        left = min(self.burst, left + (now - at) * self.rate)
        weight = min(weight, self.burst)
        passes = left >= weight
        self._buckets[key] = (left - weight if passes else left, now)
        return 0.0 if passes else (weight - left) / self.rate


def rate_limit_key(address: str) -> str:
    """The address that is counted: all of a /64 of IPv6 together, IPv4 in IPv6 as IPv4."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:  # as a socket for both protocols shows IPv4
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)


@dataclass(frozen=True)
class Access:
    """Who may do what.

    token_hash: of the token that every request needs; None: none is needed.
    change_hash: of the token that changes need; None: nothing can be changed.
    hosts: the names by which the server may be called, besides addresses; None: any name.
    """

    token_hash: str | None = None
    change_hash: str | None = None
    hosts: frozenset[str] | None = None

    def may_read(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has the token that every request needs."""
        if self.token_hash is None:
            return True
        return matches(from_header(headers.get("authorization")), self.token_hash)

    def may_change(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has the token that changes need."""
        return matches(from_header(headers.get("authorization")), self.change_hash)

    def knows_host(self, host: str) -> bool:
        """Whether the Host header is an address or a known name.

        Another site can let its own name point to this machine (DNS rebinding); its pages would
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
    """The name in a Host header, lower case, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_cross_site(method: str, headers: Mapping[str, str]) -> bool:
    """Whether another site's page makes a browser send this, with the token that it remembers."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:  # browsers; without referrer our own forms have the origin null
        return site not in ("none", "same-origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True
