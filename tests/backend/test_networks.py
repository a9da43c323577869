"""Other networks as the trunk: cut, weighed, run and refused like VGG16."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from seeded_networks import NETWORKS, seeded_tensors, seeded_trunk
from torch.nn import functional
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from backend.errors import WeightsError
from backend.features import load_trunk
from backend.networks import INPUT_PX, build_network
from backend.pooling import pooled
from backend.settings import read_settings
from backend.torchvision_networks import network_names
from backend.weights import resolve_weights
from converters.errors import ConfigurationError

# Transformers have tokens, not maps; Inception pads so little that 96 px are gone too early.
WITHOUT_MAPS = ("inception", "maxvit", "swin", "vit")


@pytest.mark.parametrize("mode", ["both", "rgb"])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_torchvisions_network(name: str, mode: str) -> None:
    trunk = seeded_trunk(name)
    n = 19  # more than go through VGG16's first layers at once, and some that are left over
    pixels = np.random.default_rng(0).integers(0, 256, (n, 80, 80, 3), np.uint8)
    extracted = trunk.extract(pixels, mode=mode)
    assert extracted.features.shape == (n, trunk.feature_dim)

    network = build_network(name)
    whole = models.get_model(name, weights=None).eval()
    whole.load_state_dict(seeded_tensors(network), strict=False)
    taps = create_feature_extractor(whole, list(network.taps))
    with torch.inference_mode():
        maps = list(taps(trunk._prepare(pixels, mode)).values())
        parts = [part for tap in maps for part in pooled(tap, has_mask=mode == "both")]
        expected = torch.cat(parts, 1)
    np.testing.assert_allclose(extracted.features, expected, rtol=5e-3, atol=5e-3)
    for kept, whole_maps in zip(extracted.maps.restored(), maps, strict=True):
        small = functional.adaptive_avg_pool2d(whole_maps, min(12, whole_maps.shape[-1]))
        by_place = small.flatten(2).transpose(1, 2)
        half_step = by_place.abs().amax(dim=1, keepdim=True) * 0.5 / 127
        assert ((kept - by_place).abs() <= half_step + 5e-3 + 5e-3 * by_place.abs()).all()


@pytest.mark.parametrize(("n", "size_px"), [(0, INPUT_PX), (1, 320), (3, 224)])
def test_vgg16_takes_any_number_and_size(n: int, size_px: int) -> None:
    trunk = seeded_trunk("vgg16")
    whole = models.vgg16(weights=None).eval()
    whole.load_state_dict(seeded_tensors(build_network("vgg16")), strict=False)
    pictures = torch.rand(n, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (*_, found) = trunk._layers(pictures.to(trunk.precision)).values()
        expected = whole.features[:26](pictures)
    assert found.shape == (n, 512, size_px // 16, size_px // 16)
    np.testing.assert_allclose(found.float(), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_given_weights_are_loaded(name: str, tmp_path: Path) -> None:
    tensors = seeded_tensors(build_network(name))
    given = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors | {"classifier.9.bias": torch.zeros(3)}, given)
    assert resolve_weights(given, cache_dir=tmp_path, network=name) == given
    trunk = load_trunk(given, network=name, device="cpu")
    assert trunk.network == name
    assert trunk.trunk_id != load_trunk_of_other_seed(name, tmp_path)


def load_trunk_of_other_seed(name: str, folder: Path) -> str:
    path = folder / "other.safetensors"
    safetensors.torch.save_file(seeded_tensors(build_network(name), seed=1), path)
    return load_trunk(path, network=name, device="cpu").trunk_id


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v3_small", "squeezenet1_1"])
def test_networks_nobody_named_follow_the_rule(name: str) -> None:
    network = build_network(name)
    sides = [side for _, side, _ in network.map_shapes]
    assert all(
        2 / 3 * exact < side <= exact
        for side, exact in zip(sides, (INPUT_PX // 4, INPUT_PX // 8, INPUT_PX // 16), strict=True)
    )


@pytest.mark.parametrize("name", [n for n in network_names() if n.startswith(WITHOUT_MAPS)])
def test_network_without_such_maps_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match=f"The network {name} has no maps of a quarter"):
        build_network(name)
    assert capsys.readouterr().err == ""


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    given = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(seeded_tensors(build_network("resnet18")), given)
    with pytest.raises(WeightsError, match=r"does not hold the weights of resnet50: .*missing"):
        resolve_weights(given, cache_dir=tmp_path, network="resnet50")


def test_misspelt_network_is_a_setting_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAI_LABEL_STUDIO_API_KEY", "t")
    monkeypatch.setenv("CELLAI_TRUNK", "resnt18")
    with pytest.raises(ConfigurationError, match=r"'resnt18' \(did you mean resnet18\?\)"):
        read_settings()
