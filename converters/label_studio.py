"""The one connection to Label Studio, through `label_studio_sdk`, and its errors in our words.

Rows travel as plain JSON over the SDK's own HTTP client (authentication, token refresh):
building typed objects for 10,000 tasks costs more than the request.
"""

from typing import Any

import httpx

from converters.errors import (
    BlockedAddressError,
    LabelStudioError,
    ProjectNotFoundError,
    TokenError,
    UnreachableError,
)

TIMEOUT_S = 600  # an import of 100,000 rows takes Label Studio half a minute
ADDRESS_SETTINGS = (
    "USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS=169.254.0.0/16"
)


class Connection:
    """An authenticated connection.

    Args:
        url: address of Label Studio.
        api_key: personal access token or legacy token; both work.
        timeout_s: of each request.
    """

    def __init__(self, url: str, api_key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._http: Any = None

    def get(self, path: str, **params: object) -> Any:
        """JSON of a GET; raises what `request` does, and LabelStudioError if it is no JSON."""
        return self._json(self.request("GET", path, params=params))

    def post(self, path: str, payload: object, **params: object) -> Any:
        """JSON of a POST."""
        return self._json(self.request("POST", path, payload=payload, params=params))

    def patch(self, path: str, payload: object, **params: object) -> Any:
        """JSON of a PATCH."""
        return self._json(self.request("PATCH", path, payload=payload, params=params))

    def request(
        self,
        method: str,
        path: str,
        *,
        payload: object = None,
        params: dict[str, Any] | None = None,
        accept: tuple[int, ...] = (),
    ) -> httpx.Response:
        """One request.

        Args:
            method: HTTP method.
            path: path below the address, without a leading slash.
            payload: JSON body.
            params: query.
            accept: statuses to return beside 2xx, redirects among them: none is followed.

        Raises:
            UnreachableError: nothing answers.
            TokenError: the API key is refused.
            ProjectNotFoundError: 404.
            BlockedAddressError: Label Studio will not talk to a private address.
            LabelStudioError: any other status, or no access token for the personal one.
        """
        # Importing it takes most of a second, which commands without Label Studio need not pay.
        from label_studio_sdk.core.api_error import ApiError  # noqa: PLC0415

        try:
            response: httpx.Response = self._client().request(
                path,
                method=method,
                params=params,
                json=payload,
                # No retry: the SDK would repeat a POST that timed out and double its rows.
                request_options={"max_retries": 0},
            )
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"Label Studio at {self.url} does not answer ({type(error).__name__}).",
                hint="Start it, or correct the address.",
            ) from error
        except httpx.InvalidURL as error:  # in the path: an address that somebody gave a task
            raise LabelStudioError(
                f"{f'{self.url}/{path}'[:200]!r} is no address ({error}).", hint="Correct it."
            ) from error
        except ApiError as error:  # the token could not be refreshed, or is not one
            body = str(error.body)
            raise self._refusal(error.status_code or 401, path, body, params) from error
        except UnicodeEncodeError as error:  # which would name the token
            raise LabelStudioError(
                f"The API key, title or name that is sent to {self.url} holds a character that"
                f" cannot be sent ({error.reason}).",
                hint="Copy the key anew, and correct what is written in another encoding than"
                " UTF-8.",
            ) from None
        except ValueError as error:  # the SDK reads the answer to a refresh as JSON, whatever it is
            raise LabelStudioError(
                f"Label Studio at {self.url} does not exchange the personal access token: its"
                " answer is not the JSON expected.",
                hint="Its log says more, or that of a proxy before it.",
            ) from error
        if response.is_success or response.status_code in accept:
            return response
        if response.has_redirect_location:
            raise LabelStudioError(
                f"Label Studio at {self.url} redirects {path} to"
                f" {response.headers['location'].partition('?')[0][:200]}.",
                hint="If that is the same Label Studio, pass the address it redirects to.",
            )
        raise self._refusal(response.status_code, path, response.text, params)

    def close(self) -> None:
        """Close the sockets; the next request opens new ones."""
        if self._http is not None:
            self._http.httpx_client.close()
            self._http = None

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:  # such as the page of a proxy before it
            raise LabelStudioError(
                f"Label Studio at {self.url} answered {response.url.path} with something that is"
                " not JSON.",
                hint="Is that address Label Studio's? A proxy before it may have answered instead.",
            ) from error

    def _client(self) -> Any:
        # Not `LabelStudio`: it adds nothing to the HTTP client, but imports pandas and the clients
        # of three cloud storages, which every command and a first answer would wait for.
        from label_studio_sdk.base_client import LabelStudioBase  # noqa: PLC0415

        if self._http is None:
            client = LabelStudioBase(
                base_url=self.url,
                api_key=self._api_key,
                timeout=self._timeout_s,
                # Where Label Studio sends one is often what somebody wrote into a task.
                follow_redirects=False,
            )
            self._http = client._client_wrapper.httpx_client
        return self._http

    def _refusal(
        self, status: int, path: str, body: str, params: dict[str, Any] | None
    ) -> LabelStudioError:
        if status in {401, 403} and "reserved network address" in body:
            return BlockedAddressError(
                f"Label Studio at {self.url} refuses private addresses ({status}).",
                hint=f"Start Label Studio with {ADDRESS_SETTINGS}.",
            )
        if status == 401:
            return TokenError(
                f"Label Studio at {self.url} refuses the API key (401).",
                hint="Use a personal access token of an account of that Label Studio, or a legacy"
                " token if legacy tokens are enabled there (Organization, API tokens settings).",
            )
        if status == 404:
            of_project = "projects/" in path or "project" in (params or {})
            return ProjectNotFoundError(
                f"Label Studio at {self.url} has no {path} (404).",
                hint="Check the project's number; it may have been deleted."
                if of_project
                else "Is that address Label Studio's?",
            )
        return LabelStudioError(
            f"Label Studio at {self.url} answered {status} to {path}: {body[:300]}",
            hint="Its log says more.",
        )
