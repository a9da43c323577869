"""Downloads one file of known content: streamed, checked, and there only when complete."""

import hashlib
import logging
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from backend.errors import WeightsError
from converters.durable import replacing

logger = logging.getLogger(__name__)

# Without a network the connection fails within CONNECT_S, so that the next source gets its turn.
CONNECT_S = 4.0
STALLED_S = 30.0
PROGRESS_EVERY_S = 5.0
# Otherwise a server may pack the archive once more and its digest would differ.
_UNCHANGED = {"Accept-Encoding": "identity"}


def http_client(*, certificates: str | None = None) -> httpx.Client:
    """Client that follows redirects and gives up early.

    Args:
        certificates: PEM file of the authorities to trust; None means httpx's own rule.
    """
    return httpx.Client(
        timeout=httpx.Timeout(STALLED_S, connect=CONNECT_S),
        follow_redirects=True,
        verify=ssl.create_default_context(cafile=certificates) if certificates else True,
    )


def download(
    client: httpx.Client,
    url: httpx.URL,
    *,
    target: Path,
    sha256: str,
    max_bytes: int,
    auth: tuple[str, str] | None = None,
) -> None:
    """Downloads a file and checks its content.

    Args:
        client: see `http_client`.
        url: of the file, without credentials.
        target: where it goes; the folder is made.
        sha256: digest of the content in hexadecimal digits, or its beginning.
        max_bytes: more than this is refused.
        auth: user and password.

    Raises:
        WeightsError: not reachable, not found, too large, of other content, or not writable.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(target) as temporary,
            temporary.open("wb") as file,
            client.stream("GET", url, auth=auth, headers=_UNCHANGED) as response,
        ):
            response.raise_for_status()
            digest = hashlib.sha256()
            for block in _with_progress(response, target.name, max_bytes=max_bytes):
                digest.update(block)
                file.write(block)
            file.flush()
            if not digest.hexdigest().startswith(sha256):
                raise _refused(url, f"its SHA-256 is {digest.hexdigest()}, not {sha256}")
    except httpx.HTTPError as error:
        raise _refused(url, str(error) or type(error).__name__) from error
    except OSError as error:
        raise _refused(url, f"{target} cannot be written ({error.strerror})") from error


def _with_progress(response: httpx.Response, name: str, *, max_bytes: int) -> Iterator[bytes]:
    total = int(response.headers.get("content-length", 0)) or max_bytes
    received, last_log = 0, time.monotonic()
    for block in response.iter_raw():
        received += len(block)
        if received > max_bytes:
            raise _refused(response.url, f"it is larger than {max_bytes:,} bytes")
        if time.monotonic() - last_log > PROGRESS_EVERY_S:
            last_log = time.monotonic()
            logger.info("Downloading %s: %d of %d MB", name, received // 10**6, total // 10**6)
        yield block


def _refused(url: httpx.URL, reason: str) -> WeightsError:
    return WeightsError(
        f"The download of {url.path.rsplit('/', 1)[-1]} from {url.host} failed: {reason}.",
        hint="Check the network, or give the weights with --weights or CELLAI_WEIGHTS.",
    )
