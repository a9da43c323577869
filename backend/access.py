"""Who may ask: user and password, compared in constant time, and a limit on guessing.

A limit must not become a way to lock Label Studio out. So an address from which the right
password has come is never refused unheard; from any other, ten wrong ones in a minute are
the last that are looked at until the minute is over. In each web process, for its own requests.
"""

import hmac
import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

MAX_FAILURES = 10
WINDOW_SECONDS = 60.0
# About 2 MB; the address that was quiet longest is forgotten first.
MAX_ADDRESSES = 10_000
IPV6_PREFIX_BITS = 64  # what one customer holds


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer to one attempt.

    Attributes:
        is_admitted: user and password are right.
        retry_after_s: seconds after which another attempt is heard; 0 when at once.
    """

    is_admitted: bool
    retry_after_s: int = 0


@dataclass(slots=True)
class _Caller:
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_FAILURES))
    is_known: bool = False


class Doorkeeper:
    """Checks user and password of every request.

    Args:
        user: the user name that is right.
        password: the password that is right; with '' nobody is asked.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user.encode()
        self._password = password.encode()
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def asks(self) -> bool:
        """Whether a password is set."""
        return bool(self._password)

    def judge(self, address: str, user: str, password: str) -> Verdict:
        """Whether the request may pass.

        Args:
            address: of the client, as the socket says; headers of proxies can be made up.
            user: as given, '' for none.
            password: as given, '' for none.
        """
        now = time.monotonic()
        with self._lock:
            caller = self._caller(_network(address))
            wait_s = _wait_s(caller, now)
            if wait_s and not caller.is_known:
                return Verdict(is_admitted=False, retry_after_s=wait_s)
            if self._is_right(user, password):
                caller.is_known = True
                return Verdict(is_admitted=True)
            # Asking without a password, as browsers do first, is no guess.
            if user or password:
                caller.failures.append(now)
            return Verdict(is_admitted=False, retry_after_s=wait_s)

    def _is_right(self, user: str, password: str) -> bool:
        # Both are compared, whatever the first gives: the time must not tell which was wrong.
        user_matches = hmac.compare_digest(_octets(user), self._user)
        password_matches = hmac.compare_digest(_octets(password), self._password)
        return user_matches and password_matches

    def _caller(self, network: str) -> _Caller:
        caller = self._callers.setdefault(network, _Caller())
        self._callers.move_to_end(network)
        if len(self._callers) > MAX_ADDRESSES:
            self._callers.popitem(last=False)
        return caller


def _wait_s(caller: _Caller, now: float) -> int:
    """Seconds until the oldest of `MAX_FAILURES` failures is a window ago."""
    if len(caller.failures) < MAX_FAILURES:
        return 0
    return max(0, math.ceil(caller.failures[0] + WINDOW_SECONDS - now))


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _network(address: str) -> str:
    """The address, or the network of an IPv6 address; as it is when it is none."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX_BITS), strict=False))
