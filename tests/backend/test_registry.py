"""Versions are whole or not there, checked when loaded, and pruned without the serving one."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch
from made_up import version

from backend.errors import ModelCorruptError, ModelNotFoundError
from backend.registry import Registry

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_round_trip(registry: Registry) -> None:
    stored = registry.publish(version(1), TENSORS)
    assert not stored.is_cold_start
    assert registry.get(3, "cellai-0001") == stored
    assert torch.equal(registry.tensors(stored)["weight"], TENSORS["weight"])


def test_cold_start_has_no_head(registry: Registry) -> None:
    assert registry.publish(version(1), None).is_cold_start


def test_same_version_twice_is_refused(registry: Registry) -> None:
    registry.publish(version(1), TENSORS)
    with pytest.raises(FileExistsError):
        registry.publish(version(1), TENSORS)


def test_failed_publication_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        registry.publish(replace(version(1), metrics={"not json": object()}), TENSORS)
    assert registry.versions(3) == []
    assert list((tmp_path / "3").iterdir()) == []


def test_versions_of_projects_are_apart_and_in_order(registry: Registry) -> None:
    for number in (2, 1, 3):
        registry.publish(version(number), TENSORS)
    assert [v.n_labels for v in registry.versions(3)] == [1, 2, 3]
    assert registry.versions(4) == []


def test_order_is_by_number_when_the_clock_was_set_back(registry: Registry) -> None:
    for number, day in ((9, 9), (10, 1), (9999, 5), (10000, 2)):
        registry.publish(replace(version(number), created_at=f"2026-01-0{day}"), None)
    assert [v.n_labels for v in registry.versions(3)] == [9, 10, 9999, 10000]
    assert registry.prune(3, keep=2, protected=()) == ["cellai-0009", "cellai-0010"]


def test_damaged_tensors_and_manifests_are_refused(registry: Registry, tmp_path: Path) -> None:
    stored = registry.publish(version(1), TENSORS)
    head = tmp_path / "3" / "cellai-0001" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelCorruptError, match="checksum"):
        registry.tensors(stored)
    (tmp_path / "3" / "cellai-0001" / "manifest.json").write_text("{}")
    with pytest.raises(ModelCorruptError, match="damaged"):
        registry.get(3, "cellai-0001")
    with pytest.raises(ModelNotFoundError, match="cellai-0009"):
        registry.get(3, "cellai-0009")


def test_prune_keeps_the_newest_and_the_serving(registry: Registry) -> None:
    for number in range(1, 6):
        registry.publish(version(number), TENSORS)
    assert registry.prune(3, keep=3, protected={"cellai-0001"}) == ["cellai-0002", "cellai-0003"]
    assert [v.n_labels for v in registry.versions(3)] == [1, 4, 5]


def folder(registry: Registry, number: int) -> Path:
    return registry._folder / "3" / f"cellai-{number:04d}"


def load(registry: Registry, number: int) -> None:
    registry.tensors(registry.get(3, f"cellai-{number:04d}"))


def test_every_changed_bit_is_noticed(registry: Registry) -> None:
    registry.publish(version(1), TENSORS)
    chance = random.Random(0)  # noqa: S311  reproducible, not secret
    for name in ("head.safetensors", "manifest.json"):
        path = folder(registry, 1) / name
        sound = path.read_bytes()
        for _ in range(150):
            at = chance.randrange(len(sound))
            if sound[at : at + 1].isspace():
                continue  # layout of the JSON text
            path.write_bytes(
                sound[:at] + bytes([sound[at] ^ 1 << chance.randrange(8)]) + sound[at + 1 :]
            )
            with pytest.raises(ModelCorruptError, match="Start training"):
                load(registry, 1)
        for cut in (0, 1, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:cut])
            with pytest.raises(ModelCorruptError):
                load(registry, 1)
        path.write_bytes(sound)
    load(registry, 1)


def test_swapped_versions_are_noticed(registry: Registry) -> None:
    registry.publish(version(1), TENSORS)
    registry.publish(version(2), {"weight": torch.zeros(2, 3)})
    one, two = folder(registry, 1), folder(registry, 2)
    one.rename(one.with_name("spare"))
    two.rename(one)
    one.with_name("spare").rename(two)
    for number in (1, 2):
        with pytest.raises(ModelCorruptError):
            load(registry, number)


def test_swapped_tensors_are_noticed(registry: Registry) -> None:
    registry.publish(version(1), TENSORS)
    registry.publish(version(2), {"weight": torch.zeros(2, 3)})
    tensors = folder(registry, 2) / "head.safetensors"
    (folder(registry, 1) / "head.safetensors").write_bytes(tensors.read_bytes())
    load(registry, 2)
    with pytest.raises(ModelCorruptError, match="checksum"):
        load(registry, 1)


def forge(registry: Registry, change: Callable[[dict[str, object]], object]) -> None:
    """Change a manifest and give it a checksum that fits."""
    path = folder(registry, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True)
    path.write_text(json.dumps(manifest | {"manifest_sha256": sha256(text.encode()).hexdigest()}))


def strip_checksum(registry: Registry) -> None:
    """Take a manifest's own checksum away."""
    path = folder(registry, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    path.write_text(json.dumps(manifest))


def test_manifest_without_its_checksum_is_refused(registry: Registry) -> None:
    registry.publish(replace(version(1), created_at=datetime.now(UTC).isoformat()), TENSORS)
    strip_checksum(registry)
    with pytest.raises(ModelCorruptError, match="damaged"):
        registry.get(3, "cellai-0001")


@pytest.mark.parametrize(
    ("created_at", "is_accepted"),
    [
        ("2026-11-24T14:16:07.744213+00:00", True),  # the one of tests/archive
        ("2026-11-25T01:28:28.999999+00:00", True),
        ("2026-11-25T01:28:29+00:00", False),
        ("2026-11-25T01:28:29.000001+00:00", False),
        ("2027-01-01T00:00:00+00:00", False),
        ("", False),
        ("2026-11-24", False),
        ("yesterday", False),
    ],
)
def test_only_the_first_versions_may_lack_the_manifests_checksum(
    registry: Registry, created_at: str, is_accepted: bool
) -> None:
    registry.publish(replace(version(1), created_at=created_at), TENSORS)
    strip_checksum(registry)
    if is_accepted:
        load(registry, 1)
        head = folder(registry, 1) / "head.safetensors"
        head.write_bytes(head.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelCorruptError):
        load(registry, 1)


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}" + bytes(100),
        safetensors.torch.save({"weight": torch.tensor([1.0, float("nan")])}),
        safetensors.torch.save({"weight": torch.tensor([float("inf")])}),
        b"\x80\x04N.",
    ],
    ids=["header of 2^62 bytes", "no tensor", "NaN", "infinite", "pickle"],
)
def test_what_no_training_writes_is_refused_whatever_its_checksum(
    registry: Registry, payload: bytes
) -> None:
    registry.publish(version(1), TENSORS)
    (folder(registry, 1) / "head.safetensors").write_bytes(payload)
    forge(registry, lambda manifest: manifest.update(head_sha256=sha256(payload).hexdigest()))
    with pytest.raises(ModelCorruptError):
        load(registry, 1)


@pytest.mark.parametrize(
    "change",
    [{"classes": 7}, {"n_labels": "x"}, {"created_at": None}, {"surplus": 1}, {"metrics": []}],
)
def test_wrong_types_in_a_manifest_are_refused(
    registry: Registry, change: dict[str, object]
) -> None:
    registry.publish(version(1), TENSORS)
    forge(registry, lambda manifest: manifest.update(change))
    with pytest.raises(ModelCorruptError):
        registry.get(3, "cellai-0001")


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", '"x"', " " * 2**24 + "{}"])
def test_manifest_that_is_no_manifest(registry: Registry, text: str) -> None:
    registry.publish(version(1), TENSORS)
    (folder(registry, 1) / "manifest.json").write_text(text)
    with pytest.raises(ModelCorruptError):
        registry.get(3, "cellai-0001")


def test_a_damaged_version_does_not_hide_the_others(registry: Registry) -> None:
    for number in (1, 2, 3):
        registry.publish(version(number), TENSORS)
    (folder(registry, 2) / "manifest.json").write_text("{")
    assert [v.version for v in registry.versions(3)] == ["cellai-0001", "cellai-0003"]


def test_a_damaged_version_does_not_hold_its_name(registry: Registry) -> None:
    registry.publish(version(1), TENSORS)
    (folder(registry, 1) / "manifest.json").write_text("{")
    assert registry.set_aside_damaged(3) == ["cellai-0001"]
    registry.publish(version(1), TENSORS)
    load(registry, 1)
    assert [v.version for v in registry.versions(3)] == ["cellai-0001"]
