"""Errors of the ML backend; the tree continues `converters.errors`.

CellAIError
  + BackendError               exit code 1, HTTP 500
  |   - WeightsError           no usable ImageNet weights (HTTP 503)
  |   - PredictionError        one task cannot be predicted; never fails the batch
  |   - ParametersError        a request or a project's parameters are wrong (HTTP 400)
  |   - ModelNotFoundError     the registry has no such version (HTTP 404)
  |   - ModelIncompatibleError the version does not fit today's classes, trunk or mode (HTTP 409)
  |   - ModelCorruptError      a stored version does not match its checksum (HTTP 503)
  |   - PicturesMissingError   too few labelled pictures can be read to train; the job fails
  |   - UnknownProjectError    the backend is not connected to the project (HTTP 404)
  + TrainingError              the job fails, the serving version stays
      - SingleClassError       fewer than two classes have a label
      - DivergedError          a weight is not finite
"""

from converters.errors import CellAIError


class BackendError(CellAIError):
    """The backend cannot do what was asked."""


class WeightsError(BackendError):
    """No usable ImageNet weights of the trunk."""


class PredictionError(BackendError):
    """One task cannot be predicted."""


class ParametersError(BackendError):
    """A request, or the extra parameters of a project, are wrong."""


class ModelNotFoundError(BackendError):
    """The registry has no such version."""


class ModelCorruptError(BackendError):
    """A stored version does not match its checksum."""


class ModelIncompatibleError(BackendError):
    """A stored version was made for other classes, another trunk or mode."""


class PicturesMissingError(BackendError):
    """Too few of the labelled pictures can be read."""


class UnknownProjectError(BackendError):
    """The backend is not connected to the project."""


class TrainingError(CellAIError):
    """A head could not be trained."""


class SingleClassError(TrainingError):
    """Fewer than two classes have a label."""


class DivergedError(TrainingError):
    """The loss or a weight is not finite."""
