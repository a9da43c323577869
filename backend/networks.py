"""Which network the trunk is, and which of its maps are read: the seam for other networks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

DEFAULT_NETWORK = "vgg16"
INPUT_PX = 96
# VGG16 as far as it is read: channels of its convolutions, rectifiers, maxima of 2 x 2.
# Source: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, column D. The first two maxima stand
# before their rectifier, which is the same and rectifies a quarter of the numbers.
_VGG16 = (
    *(64, "relu", 64, "pool", "relu"),
    *(128, "relu", 128, "pool", "relu"),
    *(256, "relu", 256, "relu", 256, "relu", "pool"),
    *(512, "relu", 512, "relu", 512, "relu", "pool"),
    *(512, "relu"),
)
_LARGE_MAPS = 10  # so many layers come before the maps are small
# Pixels of pictures that go through those layers at once on a processor: 8 crops. The maps of more
# leave its caches: with 32 at once the whole trunk takes 1.5 times as long (measured with AMX).
_PIXELS_AT_ONCE = 8 * INPUT_PX**2
# ReLU of conv3_3, conv4_3 and conv5_1 (measured, docs/model.md) and the shapes of their maps.
_VGG16_TAPS = {
    "features.15": (256, INPUT_PX // 4, INPUT_PX // 4),
    "features.22": (512, INPUT_PX // 8, INPUT_PX // 8),
    "features.25": (512, INPUT_PX // 16, INPUT_PX // 16),
}


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network cut behind its deepest tap, without weights (on the meta device).

    Attributes:
        name: torchvision's.
        layers: gives the taps by name for (n, 3, INPUT_PX, INPUT_PX).
        taps: names in torchvision's numbering of nodes, shallowest first.
        map_shapes: (C, h, w) of each tap.
    """

    name: str
    layers: nn.Module
    taps: tuple[str, ...]
    map_shapes: tuple[tuple[int, int, int], ...]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that the taps need, by torchvision's names."""
        return {
            name: tuple(tensor.shape)
            for name, tensor in self.layers.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }


class Vgg16(nn.Module):
    """VGG16 to the ReLU of conv5_1, with torchvision's names.

    Not torchvision's own: importing that takes four seconds of processor time, because it brings
    torch's compiler along, and both processes of the backend would pay them at each start.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for layer in _VGG16:
            if isinstance(layer, int):
                layers.append(nn.Conv2d(channels, layer, 3, padding=1))
                channels = layer
            else:
                layers.append(nn.MaxPool2d(2) if layer == "pool" else nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Taps by name of pictures (n, 3, S, S)."""
        n, _, height, width = pictures.shape
        at_once = max(1, _PIXELS_AT_ONCE // (height * width)) if pictures.is_cpu else n
        large_maps = self.features[:_LARGE_MAPS]
        maps = torch.cat([large_maps(part) for part in torch.split(pictures, at_once)])
        tapped = {}
        for number, layer in enumerate(self.features[_LARGE_MAPS:], start=_LARGE_MAPS):
            maps = layer(maps)
            if (name := f"features.{number}") in _VGG16_TAPS:
                tapped[name] = maps
        return tapped


def build_network(name: str) -> Network:
    """VGG16 or a classification network of torchvision, cut to what the trunk reads.

    Args:
        name: as `torchvision.models.list_models` has it.

    Raises:
        WeightsError: there is no such network, or it has no maps of the three sizes.
    """
    if name != DEFAULT_NETWORK:
        from backend.torchvision_networks import cut_network  # noqa: PLC0415  see Vgg16

        return cut_network(name)
    with torch.device("meta"):
        layers = Vgg16().eval()
    return Network(name, layers, tuple(_VGG16_TAPS), tuple(_VGG16_TAPS.values()))
