"""What a GPU does differently; skipped, and said so, where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from seeded_networks import NETWORKS, seeded_tensors, seeded_trunk

from backend.features import GPU_BATCH, load_trunk
from backend.networks import build_network
from backend.precision import fastest_precision
from backend.training import TrainingSettings, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

N_CROPS = GPU_BATCH + 6


@pytest.fixture(scope="module")
def pixels() -> NDArray[Any]:
    """Smooth pictures, as those of cells are."""
    small = np.random.default_rng(0).integers(0, 256, (N_CROPS, 8, 8, 3), np.uint8)
    return np.kron(small, np.ones((1, 12, 12, 1), np.uint8))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_depend_neither_on_other_crops_nor_on_the_place_among_them(
    name: str, pixels: NDArray[Any]
) -> None:
    trunk = seeded_trunk(name, device="cuda", precision=fastest_precision(torch.device("cuda")))
    together = trunk.extract(pixels, mode="rgb")
    order = np.random.default_rng(1).permutation(N_CROPS)
    for rows in (order, order[:1], order[:5], order[: GPU_BATCH - 1]):
        some = trunk.extract(pixels[rows], mode="rgb")
        np.testing.assert_array_equal(some.features, together.features[rows])
        for ours, others in zip(some.maps.restored(), together.maps.restored(), strict=True):
            np.testing.assert_array_equal(ours, others[rows])


def test_a_large_picture_takes_the_memory_of_one() -> None:
    """The batch is filled up once its pictures are small."""
    trunk = seeded_trunk(device="cuda", precision=torch.bfloat16)
    picture = np.zeros((1, 2048, 2048, 3), np.uint8)
    trunk.extract(picture, mode="rgb")
    torch.cuda.reset_peak_memory_stats()
    trunk.extract(picture, mode="rgb")
    assert torch.cuda.max_memory_allocated() < 20 * picture.nbytes + 5e8


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_processor(name: str, pixels: NDArray[Any]) -> None:
    exact = seeded_trunk(name).extract(pixels[:8], mode="rgb").features
    for precision, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 5e-2)):
        trunk = seeded_trunk(name, device="cuda", precision=precision)
        difference = np.linalg.norm(trunk.extract(pixels[:8], mode="rgb").features - exact)
        assert difference / np.linalg.norm(exact) < tolerance


def test_head_is_the_same_each_time_and_nearly_that_of_the_processor() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    features = (rng.normal(size=(3, 200))[labels] + rng.normal(size=(90, 200))).astype(np.float32)
    groups = [str(row) for row in range(90)]
    unlabelled = rng.normal(size=(90, 200)).astype(np.float32)

    def head(device: str) -> Any:
        place = torch.device(device)
        settings = TrainingSettings(mc_passes=8)
        return fit(
            features,
            labels,
            groups,
            n_classes=3,
            settings=settings,
            unlabelled_features=unlabelled,
            device=place,
        ).head

    first, second = head("cuda"), head("cuda")
    for name, tensor in first.to_tensors().items():
        assert torch.equal(tensor, second.to_tensors()[name]), name
    crops = torch.from_numpy(features)
    exact = head("cpu").logits(crops).softmax(dim=1)
    torch.testing.assert_close(first.logits(crops).softmax(dim=1), exact, rtol=0, atol=1e-3)


def test_trunk_goes_there_by_itself(tmp_path: Path) -> None:
    save_file(seeded_tensors(build_network("vgg16")), tmp_path / "weights.safetensors")
    assert load_trunk(tmp_path / "weights.safetensors").device.type == "cuda"
