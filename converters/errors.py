"""Errors of the command line and the converters; each says what happened and what to do.

CellAIError
  + BackendUnreachableError    exit code 1: nothing answers at the URL of the ML backend
  + SourceError                exit code 3
  |   - NotHdf5Error           not HDF5, or truncated
  |   - MissingFilterError     a compression plugin is not available
  |   - BrokenLinkError        an external link or virtual dataset that is missing or points outside
  |   - UnknownLayoutError     no layout matched; lists the datasets and why
  |   - ShapeMismatchError     images, masks and labels disagree, or cannot be cells
  |   - EmptySourceError       nothing to import
  |   - UnknownLabelError      labels in the file that the labelling config does not name
  |   - UnreadableSourceError  the file is missing or may not be read
  + LabelStudioError           exit code 4
  |   - UnreachableError       nothing answers at the URL
  |   - TokenError             the API key is refused
  |   - BlockedAddressError    Label Studio refuses private addresses
  |   - ProjectNotFoundError   no such project
  |   - ImportRejectedError    Label Studio took fewer rows than were sent
  + ConfigurationError         exit code 2
  |   - LabelConfigError       the labelling config cannot be used
  |   - PortInUseError         another program listens there
  |   - AlreadyRunningError    another `cellai up` holds the data directory
  + ExportError                exit code 5
      - SourceChangedError     the file is no longer the one that was imported
      - OutputError            the output cannot be written
      - BucketError            an S3 bucket for pictures cannot be used
"""

from typing import ClassVar


class CellAIError(Exception):
    """Root of all errors that a user is meant to read.

    Args:
        message: what happened, with the value found.
        hint: what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """One line: what happened, then what to do."""
        return f"{self.message} {self.hint}"


class BackendUnreachableError(CellAIError):
    """Nothing answers at the URL of the ML backend."""


class SourceError(CellAIError):
    """A file or folder of cells cannot be used."""

    exit_code = 3


class NotHdf5Error(SourceError):
    """The file is not HDF5, or it is truncated."""


class MissingFilterError(SourceError):
    """A dataset is compressed with a filter that is not installed or not safe."""


class BrokenLinkError(SourceError):
    """An external link or virtual dataset is missing or leaves the file's folder."""


class UnknownLayoutError(SourceError):
    """No known layout matches the file."""


class ShapeMismatchError(SourceError):
    """Images, masks and labels disagree in shape or number."""


class EmptySourceError(SourceError):
    """The source holds no cell."""


class UnknownLabelError(SourceError):
    """The source holds labels that are not classes of the labelling config."""


class UnreadableSourceError(SourceError):
    """The source does not exist or may not be read."""


class LabelStudioError(CellAIError):
    """Label Studio did not do what was asked."""

    exit_code = 4


class UnreachableError(LabelStudioError):
    """Nothing answers at the URL of Label Studio."""


class TokenError(LabelStudioError):
    """Label Studio refuses the API key."""


class BlockedAddressError(LabelStudioError):
    """Label Studio refuses to talk to a private address."""


class ProjectNotFoundError(LabelStudioError):
    """The project does not exist."""


class ImportRejectedError(LabelStudioError):
    """Label Studio took fewer rows than were sent."""


class ConfigurationError(CellAIError):
    """Settings or command-line options are wrong."""

    exit_code = 2


class LabelConfigError(ConfigurationError):
    """The labelling config cannot be used for classification."""


class PortInUseError(ConfigurationError):
    """Another program listens on the port."""


class AlreadyRunningError(ConfigurationError):
    """Another `cellai up` holds the data directory."""


class ExportError(CellAIError):
    """Labels could not be written back."""

    exit_code = 5


class SourceChangedError(ExportError):
    """The source file is no longer the one that was imported."""


class OutputError(ExportError):
    """The output cannot be written."""


class BucketError(ExportError):
    """An S3 bucket for pictures cannot be used."""
