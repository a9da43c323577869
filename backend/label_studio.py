"""The backend's one place that talks to Label Studio, through `label_studio_sdk`.

Bulk rows go over the SDK's own HTTP client (authentication, token refresh) as plain JSON:
building typed objects for 10,000 tasks costs more than the request.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from converters.errors import (
    ImportRejectedError,
    LabelStudioError,
    ProjectNotFoundError,
    TokenError,
    UnreachableError,
)

# One request for many rows: Label Studio recounts the whole project after each (measured on
# 1.23.2: 10,000 predictions take 6 s in one request, five times that in ten).
IMPORT_BATCH = 20_000
TASK_PAGE = 10_000
TIMEOUT_S = 600


class Task(NamedTuple):
    """A task's id and its `data` as imported."""

    id: int
    data: dict[str, Any]


class LabelStudioClient:
    """Reads projects, tasks and annotations; writes predictions and the serving version."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._http: Any = None

    def project(self, project_id: int) -> dict[str, Any]:
        """The project as the API gives it.

        Raises:
            ProjectNotFoundError: Label Studio has no such project.
        """
        return dict(self._json("GET", f"api/projects/{project_id}/"))

    def tasks(self, project_id: int, *, after_id: int = 0) -> Iterator[Task]:
        """The project's tasks with an id above `after_id`, ascending."""
        newer = {
            "filter": "filter:tasks:id",
            "operator": "greater",
            "type": "Number",
            "value": after_id,
        }
        query = {"filters": {"conjunction": "and", "items": [newer]}, "ordering": ["tasks:id"]}
        page = 1
        while True:
            answer = self._json(
                "GET",
                "api/tasks/",
                params={
                    "project": project_id,
                    "page": page,
                    "page_size": TASK_PAGE,
                    "fields": "task_only",
                    "include": "id,data",
                    "query": json.dumps(query),
                },
            )
            for row in answer["tasks"]:
                yield Task(row["id"], row["data"])
            if page * TASK_PAGE >= answer["total"]:
                return
            page += 1

    def annotated_tasks(self, project_id: int) -> list[dict[str, Any]]:
        """Tasks that have annotations, each with `id` and `annotations`."""
        return list(
            self._json("GET", f"api/projects/{project_id}/export", params={"exportType": "JSON"})
        )

    def model_versions(self, project_id: int) -> dict[str, int]:
        """Number of predictions per model version."""
        return dict(self._json("GET", f"api/projects/{project_id}/model-versions/"))

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        """All predictions of the project, with `id`, `task` and `model_version`."""
        return list(self._json("GET", "api/predictions/", params={"project": project_id}))

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> None:
        """Create predictions in few large requests.

        Raises:
            ImportRejectedError: Label Studio took fewer than were sent.
        """
        for start in range(0, len(predictions), IMPORT_BATCH):
            batch = predictions[start : start + IMPORT_BATCH]
            answer = self._json(
                "POST", f"api/projects/{project_id}/import/predictions", payload=batch
            )
            if answer["created"] != len(batch):
                raise ImportRejectedError(
                    f"Label Studio created {answer['created']} of {len(batch)} predictions.",
                    hint="The labelling config changed meanwhile; training starts again by itself.",
                )

    def set_model_version(self, project_id: int, version: str) -> None:
        """Make `version` the one whose scores sort the queue."""
        self._json("PATCH", f"api/projects/{project_id}/", payload={"model_version": version})

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete one prediction; it is no error when it is gone already."""
        self._request("DELETE", f"api/predictions/{prediction_id}/", accept=(204, 404))

    def download(self, path: str) -> bytes:
        """Bytes of a picture that Label Studio itself serves.

        Args:
            path: path and query below Label Studio's address, such as `data/upload/1/a.png`.
        """
        return self._request("GET", path).content

    def _json(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        payload: object = None,
    ) -> Any:
        return self._request(method, path, params=params, payload=payload).json()

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        payload: object = None,
        accept: tuple[int, ...] = (200, 201),
    ) -> httpx.Response:
        try:
            if self._http is None:
                # No retry: the SDK would repeat a POST that timed out and double the rows.
                client = LabelStudio(base_url=self.url, api_key=self._api_key, timeout=TIMEOUT_S)
                self._http = client._client_wrapper.httpx_client
            response: httpx.Response = self._http.request(
                path,
                method=method,
                params=params,
                json=payload,
                request_options={"max_retries": 0},
            )
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}).",
                hint="Start it, or correct CELLAI_LABEL_STUDIO_URL.",
            ) from error
        except ApiError as error:
            raise self._refusal(error.status_code or 0, path) from error
        if response.status_code not in accept:
            raise self._refusal(response.status_code, path)
        return response

    def _refusal(self, status: int, path: str) -> LabelStudioError:
        if status == 401:
            return TokenError(
                f"Label Studio at {self.url} refuses the API key (401).",
                hint="Set CELLAI_LABEL_STUDIO_API_KEY to a personal access token of an account"
                " of that Label Studio, or to a legacy token if those are enabled.",
            )
        if status == 404:
            return ProjectNotFoundError(
                f"Label Studio at {self.url} has no {path} (404).",
                hint="The project was deleted, or the account may not see it.",
            )
        return LabelStudioError(
            f"Label Studio at {self.url} answered {status} to {path}.",
            hint="Its log says why; the request is tried again.",
        )
