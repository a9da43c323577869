"""What web requests need: settings, job store, registry, and the model once it is asked for."""

import threading
from typing import Any

from backend.head import Head
from backend.jobs import JobStore, Project
from backend.label_studio import LabelStudioClient
from backend.pool import FeatureReader, load_feature_reader
from backend.registry import Registry, Version
from backend.runner_record import read_state
from backend.settings import Settings

# What /setup and /predict name before a project's queue was ever ordered.
NO_VERSION = "cellai-none"


class Service:
    """Shared by the threads of one web process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = JobStore(settings.data_dir / "jobs.sqlite")
        self.registry = Registry(settings.data_dir / "models")
        self._features: FeatureReader | None = None
        self._heads: dict[int, tuple[str, Head]] = {}
        self._loading = threading.Lock()

    def set_up(self, project_id: int, *, extra_params: str) -> None:
        """Remember a connected project and its parameters.

        Raises:
            ParametersError: the parameters are wrong; nothing is stored then.
        """
        self.settings.parameters(extra_params)
        self.store.set_up(project_id, extra_params=extra_params)

    def model_version(self, project_id: int) -> str:
        """Name of the version in service; a fixed name before the first."""
        project = self.store.project(project_id)
        return (project and project.serving_version) or NO_VERSION

    def serving(self, project_id: int) -> tuple[Project, Version, Head | None] | None:
        """The version in service with its head (None at cold start); None before the first."""
        project = self.store.project(project_id)
        if project is None or project.serving_version is None:
            return None
        version = self.registry.get(project_id, project.serving_version)
        return project, version, self._head(version)

    def features(self) -> FeatureReader:
        """The trunk and its cache, loaded at the first call."""
        with self._loading:
            if self._features is None:
                client = LabelStudioClient(
                    self.settings.label_studio_url,
                    self.settings.label_studio_api_key.get_secret_value(),
                )
                self._features = load_feature_reader(self.settings, client)
            return self._features

    def version_names(self) -> list[str]:
        """Names of the stored versions of all projects."""
        names = (
            version.version
            for project in self.store.projects()
            for version in self.registry.versions(project.id)
        )
        return sorted(set(names))

    def status(self) -> list[dict[str, Any]]:
        """Per project: serving version, stored versions with metrics, last jobs."""
        return [
            {
                "project_id": project.id,
                "model_version": project.serving_version,
                "wanted_version": project.wanted_version,
                "versions": [
                    {
                        "version": version.version,
                        "n_labels": version.n_labels,
                        "metrics": version.metrics,
                        "parameters": version.parameters,
                        "trunk": version.trunk,
                        "promoted": version.promoted,
                        "created_at": version.created_at,
                    }
                    for version in self.registry.versions(project.id)
                ],
                "jobs": [job.as_json() for job in self.store.jobs(project.id)],
                "waiting": project.events != project.handled,
                "runner": read_state(self.settings.data_dir),
            }
            for project in self.store.projects()
        ]

    def _head(self, version: Version) -> Head | None:
        """The version's head; the last one of each project is kept in memory."""
        if version.is_cold_start:
            return None
        kept = self._heads.get(version.project_id)
        if kept is not None and kept[0] == version.version:
            return kept[1]
        head = Head.from_tensors(self.registry.tensors(version))
        self._heads[version.project_id] = (version.version, head)
        return head
