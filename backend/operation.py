"""What an operator asks of the versions of a project: serve another one, delete old ones."""

from typing import Any

from backend.errors import ModelIncompatibleError, ModelNotFoundError, UnknownProjectError
from backend.jobs import JobStore, Project
from backend.registry import Registry, Version


class Operation:
    """Wishes of the operator; the job runner fulfils them.

    Args:
        store: where wishes are kept.
        registry: the stored versions.
    """

    def __init__(self, store: JobStore, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    def promote(self, project_id: int, name: str) -> dict[str, Any]:
        """Serve a stored version again, until a label changes.

        Raises:
            UnknownProjectError: the project was never connected.
            ModelNotFoundError: it has no such version.
            ModelIncompatibleError: the version was made for other classes, another trunk or mode.
        """
        project = self._project(project_id)
        version = self._registry.get(project_id, name)
        newest = self._registry.versions(project_id)[-1]
        if not _fits(version, newest):
            raise ModelIncompatibleError(
                f"{name} of project {project_id} was made for other classes, another trunk or mode"
                f" than {newest.version}.",
                hint="Train a new version: `cellai train --project`.",
            )
        self._store.want(project_id, name)
        return {"project_id": project_id, "from": project.serving_version, "to": name}

    def rollback(self, project_id: int) -> dict[str, Any]:
        """Serve the version before the serving one.

        Raises:
            UnknownProjectError: the project was never connected.
            ModelNotFoundError: there is no earlier version that fits.
        """
        project = self._project(project_id)
        versions = self._registry.versions(project_id)
        names = [version.version for version in versions]
        current = project.wanted_version or project.serving_version
        end = names.index(current) if current in names else 0
        earlier = [v for v in versions[:end] if v.promoted and _fits(v, versions[-1])]
        if not earlier:
            raise ModelNotFoundError(
                f"Project {project_id} has no version before {current or 'the first'}.",
                hint="`cellai models list` shows the stored versions.",
            )
        return self.promote(project_id, earlier[-1].version)

    def prune(self, project_id: int, keep: int) -> dict[str, Any]:
        """Delete the oldest versions until `keep` are left; the serving and the newest one stay.

        Raises:
            UnknownProjectError: the project was never connected.
        """
        project = self._project(project_id)
        newest = [version.version for version in self._registry.versions(project_id)][-1:]
        protected = {*newest, project.serving_version or "", project.wanted_version or ""}
        deleted = self._registry.prune(project_id, keep=keep, protected=protected)
        return {"project_id": project_id, "deleted": deleted}

    def _project(self, project_id: int) -> Project:
        project = self._store.project(project_id)
        if project is None:
            raise UnknownProjectError(
                f"The backend knows no project {project_id}.",
                hint="Connect it with `cellai import`; `cellai status` lists the projects.",
            )
        return project


def _fits(version: Version, newest: Version) -> bool:
    return version.interface == newest.interface
