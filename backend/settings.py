"""Settings of the backend: read once from `CELLAI_*` variables, at the edge, then frozen.

`ProjectParameters` are the ones a project may override in Label Studio's own field for a
model's extra parameters. `python -m backend.settings` writes the table of all settings into the
documents that show it.
"""

import difflib
import json
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from backend.errors import ParametersError
from converters.errors import ConfigurationError

PREFIX = "CELLAI_"
OWN = "a project may set its own"

Mode = Literal["auto", "phase", "amplitude", "both", "rgb"]
Acquisition = Literal["cellai", "entropy", "margin", "bald", "random"]


class ProjectParameters(BaseModel):
    """What a project may set for itself (JSON in the model's extra parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field("auto", description="what the model looks at; auto: all the source has")
    acquisition: Acquisition = Field("cellai", description="rule that orders the queue")
    mc_passes: int = Field(50, ge=2, le=200, description="Monte-Carlo dropout passes")
    learning_rate: float | None = Field(None, gt=0, le=1, description="empty: the head's default")
    epochs: int | None = Field(None, ge=1, le=10_000, description="empty: the head's default")

    @classmethod
    def parse(cls, text: str | None) -> "ProjectParameters":
        """Read the JSON text of Label Studio's extra parameters; empty means defaults.

        Raises:
            ParametersError: not JSON, an unknown key or a value out of range.
        """
        try:
            given = json.loads(text) if text else {}
        except json.JSONDecodeError as error:
            raise ParametersError(
                f"The extra parameters are not JSON: {error.msg} at character {error.pos}.",
                hint='Write an object such as {"mode": "both", "mc_passes": 50}.',
            ) from error
        except (ValueError, RecursionError) as error:
            raise ParametersError(
                "The extra parameters hold a number too long or brackets too deep to be read.",
                hint='Write an object such as {"mode": "both", "mc_passes": 50}.',
            ) from error
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ParametersError(
                f"The extra parameters are wrong: {_sentence(error)}.",
                hint=f"Known keys: {', '.join(cls.model_fields)}.",
            ) from error


class Settings(BaseSettings):
    """Settings of one backend process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, populate_by_name=True, env_ignore_empty=True
    )

    label_studio_url: str = Field(
        "http://127.0.0.1:8080",
        validation_alias=AliasChoices("CELLAI_LABEL_STUDIO_URL", "LABEL_STUDIO_URL"),
        description="address of Label Studio as the backend reaches it",
    )
    label_studio_api_key: SecretStr = Field(
        validation_alias=AliasChoices("CELLAI_LABEL_STUDIO_API_KEY", "LABEL_STUDIO_API_KEY"),
        description="personal access token or legacy token of the account the backend uses",
    )
    data_dir: Path = Field(Path("backend-data"), description="models, jobs and feature cache")
    files_dir: Path = Field(
        Path("files"), description="document root of Label Studio's local files (pictures, cards)"
    )
    bucket_url: str = Field(
        "",
        description="address of the S3 bucket with pictures, as presigned URLs begin;"
        " empty: no bucket is read",
    )
    trunk: str = Field(
        "vgg16", description="convolutional classification network of torchvision, by its name"
    )
    weights: Path | None = Field(
        None, description="safetensors file of the trunk's weights; empty: found or fetched"
    )
    host: str = Field("127.0.0.1", description="address the backend listens on")
    port: int = Field(9090, ge=1, le=65535, description="port the backend listens on")
    workers: int = Field(1, ge=1, le=64, description="web processes")
    threads: int = Field(8, ge=1, le=256, description="threads of each web process")
    basic_auth_user: str = Field("", description="user name asked for on every route but /health")
    basic_auth_password: SecretStr = Field(SecretStr(""), description="empty: no password asked")
    public_url: str = Field(
        "",
        description="address of the backend as browsers reach it, for links to the progress report;"
        " empty: the one Label Studio uses",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="log level")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object per line, with request, project and task ids"
    )

    quiet_seconds: float = Field(10, ge=0, description="retrain after this long without a label")
    max_new_labels: int = Field(
        10,
        ge=1,
        description="retrain at once after so many new labels (at least one for 500 tasks)",
    )
    reconcile_seconds: float = Field(
        120, gt=0, description="how often labels that no webhook announced are looked for"
    )
    feature_cache_gb: float = Field(8, gt=0, description="size limit of the feature cache")
    keep_versions: int = Field(20, ge=2, description="model versions kept per project")
    seed: int = Field(0, ge=0, description="seed of training, dropout masks and the random order")

    mode: Mode = Field("auto", description=f"what the model looks at; auto: all there is; {OWN}")
    acquisition: Acquisition = Field("cellai", description=f"rule that orders the queue; {OWN}")
    mc_passes: int = Field(
        50, ge=2, le=200, description=f"Monte-Carlo dropout passes for the uncertainty; {OWN}"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description=f"of the training; empty: the head's default; {OWN}"
    )
    epochs: int | None = Field(
        None, ge=1, le=10_000, description=f"of the training; empty: the head's default; {OWN}"
    )

    @field_validator("bucket_url", "public_url")
    @classmethod
    def _is_address(cls, address: str) -> str:
        parts = urlsplit(address)
        is_plain = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        if address and (not is_plain or parts.username or parts.query or parts.fragment):
            raise ValueError("it is no address such as https://example.org/path")
        return address.rstrip("/")

    @field_validator("trunk")
    @classmethod
    def _is_known(cls, trunk: str) -> str:
        if trunk == "vgg16":  # the usual case needs no torchvision to be known
            return trunk
        from backend.torchvision_networks import network_names  # noqa: PLC0415

        if trunk not in network_names():
            nearest = _nearest(trunk, set(network_names()))
            raise ValueError(f"torchvision has no classification network {trunk!r}{nearest}")
        return trunk

    def parameters(self, extra_params: str | None) -> ProjectParameters:
        """The project's own parameters over these defaults.

        Raises:
            ParametersError: the project's JSON is wrong.
        """
        own = ProjectParameters.parse(extra_params)
        defaults = {name: getattr(self, name) for name in ProjectParameters.model_fields}
        return ProjectParameters(**(defaults | own.model_dump(exclude_unset=True)))


def read_settings() -> Settings:
    """Read the settings from the environment; all that is wrong is said at once.

    Raises:
        ConfigurationError: an unknown `CELLAI_` variable or a value out of range.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    problems = [
        f"{name} is unknown{_nearest(name, known)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known
    ]
    try:
        settings = Settings()
    except ValidationError as error:
        problems.append(_sentence(error))
    if problems:
        raise ConfigurationError(
            f"The settings are wrong: {'; '.join(problems)}.",
            hint="Correct or remove these variables; README lists all settings.",
        )
    return settings


def _nearest(name: str, known: set[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def _sentence(error: ValidationError) -> str:
    """All problems of a validation in one line, without the values of secrets."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}"
        for problem in error.errors(include_input=False, include_url=False)
    )


if __name__ == "__main__":
    from backend.settings_reference import write_documents

    write_documents()
