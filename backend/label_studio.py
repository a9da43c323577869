"""What the backend reads from Label Studio and writes to it, one method per need."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from converters.errors import ImportRejectedError
from converters.label_studio import TIMEOUT_S, Connection

# Few large requests: Label Studio recounts the whole project after each (measured on 1.23.2:
# 10,000 predictions take 6 s in one request, five times that in ten).
IMPORT_BATCH = 20_000
TASK_PAGE = 10_000
ANNOTATED_PAGE = 1_000  # with their annotations, some of which are long


class Task(NamedTuple):
    """A task's id and its `data` as imported."""

    id: int
    data: dict[str, Any]


class LabelStudioClient:
    """Reads projects, tasks and annotations; writes predictions and the serving version.

    Every method raises the errors of `converters.label_studio.Connection.request`.
    """

    def __init__(self, url: str, api_key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._connection = Connection(url, api_key, timeout_s=timeout_s)

    def check_access(self) -> None:
        """Ask who we are; the answer is that Label Studio runs and takes the API key."""
        self._connection.get("api/current-user/whoami")

    def close(self) -> None:
        """Close the sockets."""
        self._connection.close()

    def project(self, project_id: int) -> dict[str, Any]:
        """The project as the API gives it."""
        return dict(self._connection.get(f"api/projects/{project_id}/"))

    def has_project(self, project_id: int) -> bool:
        """Whether Label Studio has the project."""
        answer = self._connection.request("GET", f"api/projects/{project_id}/", accept=(404,))
        return answer.is_success

    def tasks(self, project_id: int, *, after_id: int = 0) -> Iterator[Task]:
        """The project's tasks with an id above `after_id`, ascending."""
        newer = _greater("id", after_id)
        query = {"filters": {"conjunction": "and", "items": [newer]}, "ordering": ["tasks:id"]}
        page, n_read = 1, 0
        while True:
            answer = self._connection.get(
                "api/tasks/",
                project=project_id,
                page=page,
                page_size=TASK_PAGE,
                fields="task_only",
                include="id,data",
                resolve_uri=False,  # else an address in a bucket becomes one of Label Studio's own
                query=json.dumps(query),
            )
            for row in answer["tasks"]:
                yield Task(row["id"], row["data"])
            # Not by the size that was asked for: TASK_API_PAGE_SIZE_MAX may cut it.
            n_read += len(answer["tasks"])
            if not answer["tasks"] or n_read >= answer["total"]:
                return
            page += 1

    def annotated_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Tasks that have annotations, each with `id` and `annotations`, ascending by id.

        Not the export: of each, Label Studio keeps a file for good. Asked for by annotation, not
        by the count of them that Label Studio keeps with the task; and by id, not by page, so that
        labels that come and go meanwhile move no task from one page to another.
        """
        last = 0
        while True:
            query = {
                "filters": {
                    "conjunction": "and",
                    "items": [_greater("id", last), _greater("annotations_ids", 0)],
                },
                "ordering": ["tasks:id"],
            }
            answer = self._connection.get(
                "api/tasks/",
                project=project_id,
                page_size=ANNOTATED_PAGE,
                fields="all",
                include="id,annotations",
                expand="annotations",
                query=json.dumps(query),
            )
            for row in answer["tasks"]:
                if row["id"] > last:  # once for each annotation
                    yield row
                    last = row["id"]
            # Of those behind `last`; an empty page, whatever is counted, would come again for ever.
            if not answer["tasks"] or len(answer["tasks"]) >= answer["total"]:
                return

    def exported_tasks(
        self, project_id: int, *, task_ids: Sequence[int] = ()
    ) -> list[dict[str, Any]]:
        """Tasks that have annotations, whole, each annotation with the prediction it was made from.

        Label Studio keeps a file of each export.

        Args:
            project_id: of the tasks.
            task_ids: only these of them; all where none is named.
        """
        only = {"ids[]": list(task_ids)} if task_ids else {}
        path = f"api/projects/{project_id}/export"
        return list(self._connection.get(path, exportType="JSON", **only))

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Number of predictions per model version."""
        return dict(self._connection.get(f"api/projects/{project_id}/model-versions/"))

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        """All predictions of the project, with `id`, `task` and `model_version`."""
        return list(self._connection.get("api/predictions/", project=project_id))

    def import_predictions(self, project_id: int, predictions: Iterable[dict[str, Any]]) -> None:
        """Create predictions in few large requests.

        Raises:
            ImportRejectedError: Label Studio took fewer than were sent.
        """
        rows = iter(predictions)
        while batch := list(islice(rows, IMPORT_BATCH)):
            answer = self._connection.post(f"api/projects/{project_id}/import/predictions", batch)
            if answer["created"] != len(batch):
                raise ImportRejectedError(
                    f"Label Studio created {answer['created']} of {len(batch)} predictions.",
                    hint="The labelling config changed meanwhile; the job runs again by itself.",
                )

    def set_model_version(self, project_id: int, version: str) -> None:
        """Make `version` the one whose scores sort the queue."""
        self._connection.patch(f"api/projects/{project_id}/", {"model_version": version})

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction; it is no error when it is gone already."""
        self._connection.request("DELETE", f"api/predictions/{prediction_id}/", accept=(404,))

    def download(self, path: str) -> bytes:
        """Bytes of a picture that Label Studio itself serves.

        Args:
            path: path and query below Label Studio's address, such as `data/upload/1/a.png`.
        """
        return self._connection.request("GET", path).content

    def resolve(self, task_id: int, uri: str) -> bytes | str:
        """A picture in a cloud storage of a task's project, or the presigned URL it lies at.

        Args:
            task_id: the task.
            uri: address such as `s3://bucket/key`.
        """
        response = self._connection.request(
            "GET",
            f"tasks/{task_id}/resolve/",
            params={"fileuri": base64.urlsafe_b64encode(uri.encode()).decode()},
            accept=(303,),
        )
        return response.content if response.is_success else str(response.headers["location"])


def _greater(field: str, value: int) -> dict[str, Any]:
    """One condition of a Data Manager filter."""
    return {
        "filter": f"filter:tasks:{field}",
        "operator": "greater",
        "type": "Number",
        "value": value,
    }
