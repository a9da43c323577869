"""Monte-Carlo probabilities to uncertainty, and priority to Label Studio's score.

Uncertainties are normalised to [0, 1], high = the passes say least about the class. Label
Studio serves the lowest score first, so `score_from_priority` turns the direction round,
and nothing else does.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32] | NDArray[np.float64]
Float64Array = NDArray[np.float64]


def predictive_entropy(mc_probabilities: FloatArray) -> Float64Array:
    """Entropy of the mean over passes, divided by ln K.

    Args:
        mc_probabilities: (T, N, K) in [0, 1], rows sum to 1.

    Returns:
        (N,) in [0, 1].

    Source:
        Gal & Ghahramani 2016, "Dropout as a Bayesian Approximation", arXiv:1506.02142.
    """
    mean = np.asarray(mc_probabilities, np.float64).mean(axis=0)
    return _normalised_entropy(mean)


def mutual_information(mc_probabilities: FloatArray) -> Float64Array:
    """Information the unknown label carries about the head (BALD), divided by ln K.

    High where the passes contradict each other, low where every pass finds the crop
    ambiguous.

    Args:
        mc_probabilities: (T, N, K) in [0, 1], rows sum to 1.

    Returns:
        (N,) in [0, 1].

    Source:
        Houlsby et al. 2011, "Bayesian Active Learning for Classification", eq. 2,
        arXiv:1112.5745.
    """
    single = np.mean([_normalised_entropy(one_pass) for one_pass in mc_probabilities], axis=0)
    return np.asarray(np.clip(predictive_entropy(mc_probabilities) - single, 0, 1))


def margin_uncertainty(probabilities: FloatArray) -> Float64Array:
    """One minus the lead of the most probable class over the second.

    Args:
        probabilities: (N, K) in [0, 1], rows sum to 1.

    Returns:
        (N,) in [0, 1].

    Source:
        Scheffer et al. 2001, "Active Hidden Markov Models for Information Extraction".
    """
    second, first = np.partition(np.asarray(probabilities, np.float64), -2, axis=1)[:, -2:].T
    return np.asarray(np.clip(1 - (first - second), 0, 1))


def score_from_priority(priority: FloatArray) -> Float64Array:
    """Label Studio's score, lowest served first.

    Args:
        priority: (N,) in [0, 1], highest to be labelled first.

    Returns:
        (N,) in [0, 1].

    Source:
        Label Studio 1.23, uncertainty sampling: ascending order of `prediction.score`.
    """
    return 1 - np.asarray(priority, np.float64)


def _normalised_entropy(probabilities: FloatArray) -> Float64Array:
    clipped = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1)
    entropy_nats = -(clipped * np.log(clipped)).sum(axis=-1)
    return np.asarray(np.clip(entropy_nats / np.log(clipped.shape[-1]), 0, 1))
