"""Other trunks than VGG16: any convolutional classification network of torchvision.

Three of its maps are tapped, of about a quarter, an eighth and a sixteenth of the input's side.
"""

from functools import cache
from threading import Lock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from backend.errors import WeightsError
from backend.networks import INPUT_PX, Network

STRIDES = (4, 8, 16)
# Networks without padding lose a little at each layer: a map counts as being of a stride when
# its side is at least this part of the exact one.
LEAST_SIDE = 2 / 3
_TRACING = Lock()  # torch.fx replaces functions of the process while it traces


def cut_network(name: str) -> Network:
    """A classification network of torchvision, cut behind the deepest map that is read.

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
        network = _without_weights(name)
        taps = _stage_ends(network, name)
        extractor = create_feature_extractor(network, list(taps), suppress_diff_warning=True)
        layers = GraphModule(extractor, extractor.graph).eval()  # without its graph for training
        outputs = layers(_meta_input())
    return Network(name, layers, taps, tuple(tuple(outputs[tap].shape[1:]) for tap in taps))


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
