"""Immutable model versions on disk, one folder per project.

    models/<project id>/<version>/head.safetensors   tensors of the head (absent at cold start)
                                  manifest.json      what it is, how it was made, its metrics

A version appears by one rename of a complete, fsynced folder, so a reader sees all of it
or nothing; the manifest holds the tensors' checksum and its own. They tell damage and mix-ups, not
a forger: who may write into the folder may write checksums, too. A damaged version is passed over,
and set aside as `.damaged-<version>` by the job runner. Nothing in the folder can run code.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from backend.errors import ModelCorruptError, ModelNotFoundError
from converters.durable import sync

FORMAT = 1
TENSORS = "head.safetensors"
MANIFEST = "manifest.json"
CHECKSUM = "manifest_sha256"
# Manifests of versions made before have no checksum of their own; tests/archive holds one.
CHECKSUM_SINCE = datetime(2026, 11, 25, 1, 28, 29, tzinfo=UTC)
# A head of a thousand classes takes two megabytes: what is larger is no head.
MAX_TENSORS_BYTES = 2**30
MAX_MANIFEST_BYTES = 2**24

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """One model version, as its manifest records it."""

    version: str
    project_id: int
    classes: tuple[str, ...]  # order = class index
    n_labels: int  # labelled tasks the training set held
    labels_digest: str  # identifies the training set and everything else that decides the head
    trunk_id: str
    parameters: dict[str, object]
    created_at: str  # ISO 8601, UTC
    trunk: str = "vgg16"  # name of its network
    promoted: bool = True  # False: kept, but worse than the serving version
    metrics: dict[str, object] = field(default_factory=dict)
    head_sha256: str = ""  # '' for a cold start, which has no head
    format: int = FORMAT

    @property
    def is_cold_start(self) -> bool:
        """Whether the version only orders the queue and predicts no class."""
        return not self.head_sha256

    @property
    def interface(self) -> tuple[tuple[str, ...], str, object]:
        """Classes, trunk and mode: a head means nothing on features of another trunk or mode."""
        return self.classes, self.trunk_id, self.parameters.get("mode")


class Registry:
    """Versions below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, version: Version, tensors: dict[str, Tensor] | None) -> Version:
        """Store a version; it is complete on disk when this returns.

        Args:
            version: what to store; `head_sha256` is filled in.
            tensors: the head's tensors, None at cold start.

        Returns:
            The version as stored.

        Raises:
            FileExistsError: the project has that version.
        """
        project = self._folder / str(version.project_id)
        project.mkdir(parents=True, exist_ok=True)
        target = project / version.version
        if target.exists():
            raise FileExistsError(target)
        staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=project))
        try:
            manifest = asdict(version)
            if tensors is not None:
                payload = safetensors.torch.save(tensors)
                manifest["head_sha256"] = hashlib.sha256(payload).hexdigest()
                (staging / TENSORS).write_bytes(payload)
                sync(staging / TENSORS)
            manifest[CHECKSUM] = _checksum(manifest)
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
            sync(staging / MANIFEST)
            sync(staging)
            staging.rename(target)
            for folder in (project, self._folder, self._folder.parent):
                sync(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self.get(version.project_id, version.version)

    def versions(self, project_id: int) -> list[Version]:
        """The project's versions, oldest first; folders that are no version are passed over.

        By number and not by date: the clock may have been set back between two versions.
        """
        found = []
        for folder in self._version_folders(project_id):
            try:
                found.append(self.get(project_id, folder.name))
            except ModelNotFoundError:
                continue  # pruned by another process, or not ours
            except ModelCorruptError as error:
                _log.warning("%s", error)
        return sorted(found, key=lambda version: age_order(version.version))

    def project_ids(self) -> list[int]:
        """Projects that have a folder."""
        return sorted(int(f.name) for f in self._folder.glob("*") if f.name.isdigit())

    def set_aside_damaged(self, project_id: int) -> list[str]:
        """Put versions that do not match their checksums out of the way of a new training.

        For the job runner alone, which is the only one that writes versions.

        Returns:
            The versions that were set aside.
        """
        damaged = []
        for folder in self._version_folders(project_id):
            try:
                version = self.get(project_id, folder.name)
                if not version.is_cold_start:
                    self.tensors(version)
            except ModelNotFoundError:
                continue
            except ModelCorruptError as error:
                _log.error("%s It is set aside and trained anew.", error.message)
                aside = folder.with_name(f".damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                damaged.append(folder.name)
        return damaged

    def get(self, project_id: int, version: str) -> Version:
        """Read one manifest.

        Raises:
            ModelNotFoundError: there is no such version.
            ModelCorruptError: the manifest cannot be read.
        """
        path = self._folder / str(project_id) / version / MANIFEST
        try:
            return _read_manifest(path, project_id, version)
        except FileNotFoundError as error:
            raise ModelNotFoundError(
                f"Project {project_id} has no model version {version!r}.",
                hint="`cellai models list` shows the versions.",
            ) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ModelCorruptError(
                f"The manifest of model version {version!r} of project {project_id} is damaged.",
                hint=f"Delete {path.parent} and press Start training in Label Studio.",
            ) from error

    def tensors(self, version: Version) -> dict[str, Tensor]:
        """Load the head's tensors.

        Raises:
            ModelCorruptError: they do not match the checksum in the manifest, or are no numbers.
        """
        path = self._folder / str(version.project_id) / version.version / TENSORS
        is_sane = path.exists() and path.stat().st_size <= MAX_TENSORS_BYTES
        payload = path.read_bytes() if is_sane else b""
        if hashlib.sha256(payload).hexdigest() != version.head_sha256:
            raise ModelCorruptError(
                f"{path} does not match the checksum in its manifest.", hint=_cure(path)
            )
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(payload)
        except SafetensorError as error:
            raise ModelCorruptError(
                f"{path} is no safetensors file ({error}).", hint=_cure(path)
            ) from error
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ModelCorruptError(f"{path} holds weights that are not finite.", hint=_cure(path))
        return tensors

    def prune(self, project_id: int, *, keep: int, protected: Collection[str]) -> list[str]:
        """Delete the oldest versions until `keep` are left, but none of the protected.

        Returns:
            The versions that were deleted.
        """
        versions = [v.version for v in self.versions(project_id)]
        surplus = max(0, len(versions) - keep)
        deleted = [version for version in versions if version not in protected][:surplus]
        for version in deleted:
            shutil.rmtree(self._folder / str(project_id) / version)
        return deleted

    def _version_folders(self, project_id: int) -> list[Path]:
        return [f for f in (self._folder / str(project_id)).glob("[!.]*") if f.is_dir()]


def age_order(name: str) -> tuple[int, str]:
    """Sorts names such as cellai-0009 and cellai-10000 by their number."""
    return len(name), name


def _checksum(manifest: dict[str, object]) -> str:
    """SHA-256 of a manifest without its own checksum, in one spelling."""
    rest = {name: value for name, value in manifest.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path, project_id: int, name: str) -> Version:
    """The version that a manifest describes.

    Raises:
        ValueError: it is too long, was changed, lacks its checksum, or belongs to another version.
        TypeError: it is no object with the fields of `Version`.
    """
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ValueError("too long")
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict):
        raise TypeError("no object")
    given = manifest.pop(CHECKSUM, None)
    if given != _checksum(manifest) and not (given is None and _had_no_checksum(manifest)):
        raise ValueError("checksum")
    if manifest.keys() - {known.name for known in fields(Version)}:
        raise ValueError("unknown fields")
    version = TypeAdapter(Version).validate_python(manifest)
    if (version.project_id, version.version) != (project_id, name):
        raise ValueError("the manifest of another version")
    return version


def _had_no_checksum(manifest: dict[str, object]) -> bool:
    """Whether a manifest is so old that it never had a checksum of its own."""
    return datetime.fromisoformat(str(manifest["created_at"])) < CHECKSUM_SINCE


def _cure(path: Path) -> str:
    return f"Delete {path.parent} and press Start training in Label Studio."
