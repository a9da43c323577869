"""Which network the trunk is, and which of its maps are read: the seam for other networks.

Every convolutional classification network of torchvision can be the trunk. Three of its maps
are tapped, of about a quarter, an eighth and a sixteenth of the input's side.
"""

from dataclasses import dataclass
from functools import cache
from threading import Lock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from backend.errors import WeightsError

DEFAULT_NETWORK = "vgg16"
INPUT_PX = 96
STRIDES = (4, 8, 16)
# Networks without padding lose a little at each layer: a map counts as being of a stride when
# its side is at least this part of the exact one.
LEAST_SIDE = 2 / 3
# ReLU of conv3_3, conv4_3 and conv5_1: measured, docs/model.md. Other networks are read by rule.
_MEASURED_TAPS = {"vgg16": ("features.15", "features.22", "features.25")}
_TRACING = Lock()  # torch.fx replaces functions of the process while it traces


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
    layers: GraphModule
    taps: tuple[str, ...]
    map_shapes: tuple[tuple[int, int, int], ...]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that the taps need, by torchvision's names."""
        return {
            name: tuple(tensor.shape)
            for name, tensor in self.layers.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }


def build_network(name: str) -> Network:
    """A classification network of torchvision, cut to what the trunk reads.

    Args:
        name: as `torchvision.models.list_models` has it.

    Raises:
        WeightsError: there is no such network, or it has no maps of the three sizes.
    """
    if name not in network_names():
        raise WeightsError(
            f"torchvision has no classification network {name!r}.",
            hint="Correct CELLAI_TRUNK, for example vgg16, resnet18 or convnext_tiny.",
        )
    with _TRACING:
        return _cut(name)


def _cut(name: str) -> Network:
    network = _without_weights(name)
    taps = _MEASURED_TAPS.get(name) or _stage_ends(network, name)
    extractor = create_feature_extractor(network, list(taps), suppress_diff_warning=True)
    layers = GraphModule(extractor, extractor.graph).eval()  # without its graph for training
    outputs = layers(_meta_input())
    shapes = tuple(tuple(outputs[tap].shape[1:]) for tap in taps)
    return Network(name, layers, taps, shapes)


@cache
def network_names() -> tuple[str, ...]:
    """Names of torchvision's classification networks."""
    return tuple(models.list_models(module=models))


def _stage_ends(network: nn.Module, name: str) -> tuple[str, ...]:
    """Of each stride the last one of the maps with most channels, which ends a stage."""
    try:
        _, nodes = get_graph_node_names(network, suppress_diff_warning=True)
        layers = create_feature_extractor(network, nodes, suppress_diff_warning=True)
        outputs = Interpreter(layers).run(_meta_input())  # a call would print what it raises
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(name) from error
    taps = []
    for stride in STRIDES:
        exact = INPUT_PX // stride
        widths = {
            node: output.shape[1]
            for node, output in outputs.items()
            if _is_map(output) and LEAST_SIDE * exact < output.shape[2] <= exact
        }
        if not widths:
            raise _unfit(name)
        taps.append([node for node in widths if widths[node] == max(widths.values())][-1])
    return tuple(taps)


def _is_map(output: object) -> bool:
    """Whether a node gives square maps (n, C, h, h)."""
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]


def _meta_input() -> Tensor:
    return torch.empty(1, 3, INPUT_PX, INPUT_PX, device="meta")


def _without_weights(name: str) -> nn.Module:
    """The network on the meta device, in evaluation mode."""
    # both would draw their weights from a slow distribution and say so
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    network: nn.Module
    try:
        with torch.device("meta"):
            network = models.get_model(name, weights=None, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors
        network = models.get_model(name, weights=None).to("meta")
    return network.eval()


def _unfit(name: str) -> WeightsError:
    return WeightsError(
        f"The network {name} has no maps of a quarter, an eighth and a sixteenth of {INPUT_PX} px.",
        hint="Set CELLAI_TRUNK to a convolutional one, for example vgg16 or convnext_tiny.",
    )
