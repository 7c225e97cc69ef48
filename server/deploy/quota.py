"""What one device or one address may use of the entrance: buckets and shares.

When a limit is reached, the newcomer is not refused: the owner who holds most loses the
oldest holding. So a caller that opens many connections and sends nothing loses them to
callers that send something.
"""

import ipaddress
import time
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """Tokens that are taken at once and come back with time.

    Attributes
    ----------
    size
        Tokens when full, as at the beginning.
    rate
        Tokens that come back in a second.
    """

    size: float
    rate: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = self.size, time.monotonic()

    def take(self, amount: float = 1.0) -> bool:
        """Take tokens if there are as many."""
        now = time.monotonic()
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < amount:
            return False
        self.level -= amount
        return True


class Shares:
    """What is held by whom, with the amount of each holding, the oldest first.

    Parameters
    ----------
    each, total
        The most that one owner, and all of them, may hold.
    """

    def __init__(self, each: float, total: float) -> None:
        self.each, self.total = each, total
        self._held: dict[Hashable, dict[Hashable, float]] = {}
        self._sums: dict[Hashable, float] = {}
        self._sum = 0.0

    def sum(self, owner: Hashable | None = None) -> float:
        """What one owner holds, or all of them."""
        return self._sum if owner is None else self._sums.get(owner, 0.0)

    def hold(
        self, owner: Hashable, thing: Hashable, amount: float = 1.0
    ) -> list[Hashable]:
        """Add to a holding; return what must go for it, and is held no longer."""
        own = self._held.setdefault(owner, {})
        own[thing] = own.get(thing, 0.0) + amount
        self._sums[owner] = self._sums.get(owner, 0.0) + amount
        self._sum += amount
        gone: list[Hashable] = []
        while self._sums.get(owner, 0.0) > self.each:
            gone.append(self._drop_oldest(owner))
        while self._sum > self.total:
            gone.append(self._drop_oldest(max(self._sums, key=self._sums.__getitem__)))
        return gone

    def drop(self, owner: Hashable, thing: Hashable) -> None:
        """Forget a holding, if there is one."""
        own = self._held.get(owner, {})
        if thing not in own:
            return
        amount = own.pop(thing)
        self._sum -= amount
        self._sums[owner] -= amount
        if not own:
            del self._held[owner], self._sums[owner]

    def _drop_oldest(self, owner: Hashable) -> Hashable:
        thing = next(iter(self._held[owner]))
        self.drop(owner, thing)
        return thing


def neighbourhood(address: str) -> str:
    """Return what counts as one address: in IPv6 a network of 64 bits."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
