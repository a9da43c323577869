"""A version and features to predictions as Label Studio stores them.

The head's class and probabilities go into the result, the queue order into the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.head import Head, mc_probabilities
from backend.uncertainty import predictive_entropy
from converters.label_config import LabelConfig

FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """What the head says about N crops.

    Attributes:
        mc_probabilities: (T, N, K) float32, one row per dropout pass.
        probabilities: (N, K) float32, their mean.
        uncertainty: (N,) float64 in [0, 1], normalised predictive entropy.
    """

    mc_probabilities: FloatArray
    probabilities: FloatArray
    uncertainty: Float64Array


def predict(head: Head, features: FloatArray, *, passes: int, seed: int) -> Predicted:
    """Monte-Carlo prediction of N crops.

    Args:
        head: fitted head.
        features: (N, D) float32.
        passes: T, number of dropout passes.
        seed: of the dropout masks, which all crops of a pass share.
    """
    drawn = mc_probabilities(head, features, passes=passes, seed=seed)
    mean = drawn.mean(axis=0)
    return Predicted(drawn, mean, predictive_entropy(drawn))


def prediction(
    task_id: int,
    label_config: LabelConfig,
    probabilities: FloatArray | None,
    *,
    score: float,
    model_version: str,
) -> dict[str, Any]:
    """One prediction as Label Studio imports it.

    Args:
        task_id: the task.
        label_config: names the control and object tag and the classes.
        probabilities: (K,), None when the version predicts no class.
        score: in [0, 1], lowest labelled first.
        model_version: stored with it; Label Studio sorts only rows of the project's version.
    """
    result = [] if probabilities is None else [_result(label_config, probabilities)]
    return {
        "task": task_id,
        "result": result,
        "score": score,
        "model_version": model_version,
    }


def _result(label_config: LabelConfig, probabilities: FloatArray) -> dict[str, Any]:
    classes: Sequence[str] = label_config.classes
    return {
        "from_name": label_config.from_name,
        "to_name": label_config.to_name,
        "type": "choices",
        "value": {"choices": [classes[int(probabilities.argmax())]]},
        "meta": {
            "probabilities": {
                name: round(float(probability), 4)
                for name, probability in zip(classes, probabilities, strict=True)
            }
        },
    }
