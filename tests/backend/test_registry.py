"""Versions are whole or not there, checked when loaded, and pruned without the serving one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.errors import ModelCorruptError, ModelNotFoundError
from backend.registry import Registry, Version

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3)}


def version(number: int) -> Version:
    return Version(
        version=f"cellai-{number:04d}",
        project_id=3,
        classes=("a", "b"),
        n_labels=number,
        labels_digest="d",
        trunk_id="t",
        parameters={"mode": "auto"},
        created_at=f"2026-01-01T00:00:{number:02d}+00:00",
        metrics={"macro_f1": 0.5},
    )


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
