"""One job: read the project, train if something changed, publish, order the queue.

Everything is derived from Label Studio and from the digest of what decides a head, so a job
may be killed anywhere and run again: it finds the version it had stored and goes on.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from backend.errors import ModelNotFoundError, PicturesMissingError
from backend.head import Head
from backend.history import History, summarise
from backend.jobs import JobStore, Project
from backend.label_studio import LabelStudioClient
from backend.pool import FeatureReader, Pool
from backend.registry import Registry, Version
from backend.rescoring import Rescored, next_version_name, publish, rescore
from backend.settings import ProjectParameters, Settings
from backend.thinning import thinned
from backend.training import MOST_UNLABELLED, TrainingSettings, fit
from backend.training_set import Snapshot, SnapshotReader, cards_name

# Below this many hold-out labels two macro-F1 values cannot be told apart.
MIN_HOLDOUT_TO_COMPARE = 50
PROBED_PICTURES = 20

_log = logging.getLogger(__name__)


class Retraining:
    """Runs jobs for all projects in one process, which alone writes versions."""

    def __init__(
        self,
        settings: Settings,
        *,
        client: LabelStudioClient,
        features: FeatureReader,
        registry: Registry,
        store: JobStore,
    ) -> None:
        self._settings = settings
        self._client = client
        self._features = features
        self._registry = registry
        self._store = store
        self._snapshots = SnapshotReader(client)
        self._history = History(settings.data_dir / "history")

    def run(
        self, project: Project, job_id: int, *, cards_version: str | None
    ) -> tuple[Snapshot, Pool, Rescored] | None:
        """Bring a project up to date.

        Args:
            project: the project with its marks.
            job_id: the job to report progress to.
            cards_version: version that the cards show, or will when their rewriting ends.

        Returns:
            What is served now, for the cards; None when nothing had changed.

        Raises:
            CellAIError: Label Studio did not answer, pictures are gone, or training failed.
        """

        def on_stage(stage: str) -> None:
            self._store.progress(job_id, stage)

        on_stage("reading labels")
        self._registry.set_aside_damaged(project.id)
        parameters = self._settings.parameters(project.extra_params)
        snapshot = self._snapshots.read(project.id)
        digest = snapshot.digest(
            parameters, trunk_id=self._features.trunk.trunk_id, seed=self._settings.seed
        )
        self._store.counted(project.id, n_tasks=len(snapshot.tasks), n_labels=len(snapshot.labels))
        if not snapshot.tasks:
            return None  # Label Studio serves no version that has predicted nothing
        wanted = self._wanted(project, snapshot, digest, mode=parameters.mode)
        version = wanted or self._stored(project.id, digest)
        if (
            project.demanded
            or self._has_new_pictures(project, snapshot)
            or (wanted is None and self._has_new_tasks(project, snapshot, version))
        ):
            version = None
        if version is not None and self._is_served(project, version, snapshot, cards_version):
            self._settle_wish(project, wanted, digest)
            return None

        pool = self._features.pool(
            snapshot.tasks,
            mode=parameters.mode,
            on_progress=lambda done, total: on_stage(f"computing features {done}/{total}"),
        )
        if version is None:
            wanted = None
            self._store.drop_wish(project)
            version = self._train(
                project, snapshot, pool, parameters=parameters, digest=digest, on_stage=on_stage
            )
            self._store.demand_met(project)
        served = wanted or self._version_to_serve(project, version)
        self._store.progress(
            job_id, "ordering the queue", model_version=served.version, n_labels=served.n_labels
        )
        rescored = rescore(
            snapshot,
            pool,
            served,
            self.head(served),
            parameters=parameters,
            seed=self._settings.seed,
            device=self._features.trunk.device,
        )
        self._history.write(project.id, summarise(snapshot, pool, rescored))
        publish(self._client, snapshot, pool, rescored, on_stage=on_stage)
        unreadable = [pool.tasks[row].id for row in np.flatnonzero(~pool.is_readable)]
        self._store.serve(project.id, served.version, unreadable=unreadable)
        self._settle_wish(project, wanted, digest)
        self._registry.prune(
            project.id, keep=self._settings.keep_versions, protected={served.version}
        )
        _log.info(
            "project %d: %s orders %d tasks (%d labels)",
            project.id,
            served.version,
            len(pool.tasks),
            served.n_labels,
        )
        return snapshot, pool, rescored

    def head(self, version: Version) -> Head | None:
        """The version's head; None at cold start."""
        if version.is_cold_start:
            return None
        return Head.from_tensors(self._registry.tensors(version))

    def _stored(self, project_id: int, digest: str) -> Version | None:
        """The latest version, if nothing that decides a head has changed since."""
        versions = self._registry.versions(project_id)
        return versions[-1] if versions and versions[-1].labels_digest == digest else None

    def _has_new_pictures(self, project: Project, snapshot: Snapshot) -> bool:
        """Whether a picture is back that could not be read when the queue was last ordered.

        After an outage all of them are, so that a few tell.
        """
        missed = set(project.unreadable)
        tasks = [task for task in snapshot.tasks if task.id in missed]
        some = np.random.default_rng().permutation(len(tasks))[:PROBED_PICTURES]
        return any(self._features.can_read(tasks[index]) for index in some)

    def _has_new_tasks(self, project: Project, snapshot: Snapshot, latest: Version | None) -> bool:
        """Whether cells were added to the queue that the latest version sorts.

        Their scores would be of another pool than those that Label Studio has, and the queue a mix
        of two orders. A version that is not in service yet is one whose publication goes on.
        """
        name = project.serving_version
        if latest is None or latest.version != name or snapshot.model_version != name:
            return False
        return 0 < self._client.model_versions(project.id).get(name, 0) < len(snapshot.tasks)

    def _wanted(
        self, project: Project, snapshot: Snapshot, digest: str, *, mode: str
    ) -> Version | None:
        """The version a person chose, as long as no label has changed since it was served."""
        if project.wanted_version is None or project.wanted_digest not in {None, digest}:
            return None
        try:
            version = self._registry.get(project.id, project.wanted_version)
        except ModelNotFoundError as error:
            _log.warning("%s", error)
            return None
        now = (snapshot.label_config.classes, self._features.trunk.trunk_id, mode)
        is_usable = version.interface == now
        if not is_usable:
            _log.warning(
                "project %d: %s is for other classes, another trunk or mode; it is not served",
                project.id,
                version.version,
            )
        return version if is_usable else None

    def _settle_wish(self, project: Project, wanted: Version | None, digest: str) -> None:
        """Keep a fulfilled wish until the digest changes; forget one that is over."""
        if wanted is not None:
            self._store.grant_wish(project, digest)
        else:
            self._store.drop_wish(project)

    def _is_served(
        self, project: Project, version: Version, snapshot: Snapshot, cards_version: str | None
    ) -> bool:
        """Whether Label Studio sorts all tasks by the version and the cards show it."""
        is_chosen = version.promoted or version.version == project.wanted_version
        name = version.version if is_chosen else project.serving_version
        return (
            project.serving_version == name
            and snapshot.model_version == name
            and cards_version == cards_name(name, snapshot)
            and self._client.model_versions(project.id).get(name) == len(snapshot.tasks)
        )

    def _version_to_serve(self, project: Project, version: Version) -> Version:
        """The new version, unless it is worse than the serving one and that one still exists."""
        if version.promoted:
            return version
        stored = {v.version: v for v in self._registry.versions(project.id)}
        return stored.get(project.serving_version or "", version)

    def _train(
        self,
        project: Project,
        snapshot: Snapshot,
        pool: Pool,
        *,
        parameters: ProjectParameters,
        digest: str,
        on_stage: Callable[[str], None],
    ) -> Version:
        """Fit a fresh head, or note a cold start, and store it as the next version."""
        labelled = [row for row, task in enumerate(pool.tasks) if task.id in snapshot.labels]
        rows = [row for row in labelled if pool.is_readable[row]]
        is_open = pool.is_readable.copy()
        is_open[labelled] = False
        labels = np.array([snapshot.labels[pool.tasks[row].id] for row in rows], np.int64)
        stored = self._registry.versions(project.id)
        _check_pictures(stored, n_labels=len(labelled), n_readable=len(rows))
        known = [*self._client.model_versions(project.id), *(v.version for v in stored)]
        version = Version(
            version=next_version_name(known),
            project_id=project.id,
            classes=snapshot.label_config.classes,
            n_labels=len(rows),
            labels_digest=digest,
            trunk_id=self._features.trunk.trunk_id,
            trunk=self._features.trunk.network,
            parameters=parameters.model_dump(),
            created_at=datetime.now(UTC).isoformat(),
        )
        if len(np.unique(labels)) < 2:
            return self._registry.publish(version, None)

        on_stage(f"reading {len(rows)} labelled crops turned")
        turned = self._features.pool(
            [pool.tasks[row] for row in rows], mode=parameters.mode, turned=True
        )
        on_stage(f"training on {len(rows)} labels")
        fitted = fit(
            pool.features[rows],
            labels,
            [str(pool.tasks[row].data.get("group") or pool.tasks[row].id) for row in rows],
            n_classes=len(snapshot.label_config.classes),
            settings=TrainingSettings.of(parameters, seed=self._settings.seed),
            # A boolean index copies, which for a large pool takes a gigabyte.
            pool_features=pool.features
            if pool.is_readable.all()
            else pool.features[pool.is_readable],
            turned_features=np.where(
                turned.is_readable[:, None], turned.features, pool.features[rows]
            ),
            unlabelled_features=pool.features[thinned(np.flatnonzero(is_open), MOST_UNLABELLED)],
            device=self._features.trunk.device,
        )
        serving = next((v for v in stored if v.version == project.serving_version), None)
        promoted = (
            serving is None
            or serving.interface != version.interface
            or not is_worse(fitted.metrics, serving.metrics)
        )
        version = replace(version, metrics=dict(fitted.metrics), promoted=promoted)
        return self._registry.publish(version, fitted.head.to_tensors())


def _check_pictures(stored: Sequence[Version], *, n_labels: int, n_readable: int) -> None:
    """Let no folder that is not mounted turn a trained model into one of a few labels.

    Raises:
        PicturesMissingError: less than half of what the last trained version learned from can
            be read.
    """
    trained = [version.n_labels for version in stored if not version.is_cold_start]
    if trained and n_readable < min(n_labels, trained[-1]) / 2:
        raise PicturesMissingError(
            f"{n_labels - n_readable} of the {n_labels} labelled pictures cannot be read.",
            hint="Mount CELLAI_FILES_DIR, or see that Label Studio or the bucket serves them; the"
            " last version stays meanwhile. Delete the tasks of pictures that are gone for good.",
        )


def is_worse(new: Mapping[str, object], serving: Mapping[str, object]) -> bool:
    """Whether a version's hold-out macro-F1 is below the serving one's beyond doubt.

    Args:
        new: metrics of the new version.
        serving: metrics of the version in service.

    Returns:
        True when both hold-outs have `MIN_HOLDOUT_TO_COMPARE` labels and the difference
        exceeds two standard errors (bootstrap) of the difference.
    """
    values = []
    for metrics in (new, serving):
        n_holdout, f1, se = (metrics.get(name) for name in ("n_holdout", "macro_f1", "macro_f1_se"))
        if not (isinstance(n_holdout, int) and isinstance(f1, float) and isinstance(se, float)):
            return False
        if n_holdout < MIN_HOLDOUT_TO_COMPARE:
            return False
        values.append((f1, se))
    (new_f1, new_se), (serving_f1, serving_se) = values
    return serving_f1 - new_f1 > 2 * math.hypot(new_se, serving_se)
