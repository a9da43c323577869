"""Which network the trunk is, and which of its maps are read: the seam for other networks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

DEFAULT_NETWORK = "vgg16"
INPUT_PX = 96
# Channels of VGG16's convolutions as far as they are read, and its maxima of 2 x 2.
# Source: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, column D.
_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512)
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
        for width in _VGG16:
            if isinstance(width, int):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Taps by name of pictures (n, 3, S, S)."""
        maps, tapped = pictures, {}
        for number, layer in enumerate(self.features):
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
