"""Pictures in an S3 bucket, to which only Label Studio has the keys.

Asked for an `s3://` address of one of the task's storages, Label Studio answers with the picture
itself or with a redirect to a presigned URL. A redirect is followed only to that very picture in
the bucket that the operator named (CELLAI_BUCKET_URL), whatever the task or Label Studio says, and
where the bucket itself redirects to is not followed at all.
"""

import httpx

from backend.errors import PredictionError
from backend.label_studio import LabelStudioClient

SCHEME = "s3://"
TIMEOUT_S = 30
# Above any picture that backend.images decodes: 4096 x 4096 px, stored without compression.
MAX_BYTES = 64 * 1024 * 1024


class BucketReader:
    """Reads the pictures of one bucket.

    Args:
        bucket_url: address of the bucket as presigned URLs begin; '' when there is none.
        client: asks Label Studio.
    """

    def __init__(self, bucket_url: str, client: LabelStudioClient) -> None:
        self._bucket_url = httpx.URL(bucket_url)
        self._client = client
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def read(self, task_id: int, uri: str) -> bytes:
        """Bytes of a picture.

        Args:
            task_id: the task that names it; Label Studio looks among its project's storages.
            uri: its address, `s3://bucket/key`.

        Raises:
            PredictionError: it lies elsewhere, or the bucket does not hand it out.
            LabelStudioError: Label Studio does not know where it lies.
        """
        found = self._client.resolve(task_id, uri)
        return found if isinstance(found, bytes) else self._fetch(self._checked(found, uri), uri)

    def _checked(self, address: str, uri: str) -> httpx.URL:
        """The presigned URL, if it is the picture's in the operator's bucket."""
        key = uri.removeprefix(SCHEME).partition("/")[2]
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL:
            url = httpx.URL()
        if not self._is_own(url, key):
            raise PredictionError(
                f"Label Studio sends {uri[:200]!r} to {url.scheme}://{url.host}, which is not this"
                " picture in the bucket of CELLAI_BUCKET_URL.",
                hint="If it is the right bucket, set CELLAI_BUCKET_URL as docs/operations.md says.",
            )
        return url

    def _is_own(self, url: httpx.URL, key: str) -> bool:
        """Whether a URL is that of a key in the operator's bucket."""
        bucket = self._bucket_url
        return (
            bool(bucket.host)
            and (url.scheme, url.netloc, url.userinfo) == (bucket.scheme, bucket.netloc, b"")
            and url.path == f"{bucket.path.rstrip('/')}/{key}"
            # `%2e%2e` is no step up here, but the server may take it for one.
            and not {".", ".."} & set(key.split("/"))
        )

    def _fetch(self, url: httpx.URL, uri: str) -> bytes:
        content = bytearray()
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != httpx.codes.OK:
                    raise PredictionError(
                        f"The bucket answers {response.status_code} to {uri[:200]!r}.",
                        hint="Was it uploaded, and may Label Studio's account read it?",
                    )
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise PredictionError(
                            f"{uri[:200]!r} has more than {MAX_BYTES} bytes.",
                            hint="It is no picture of a cell: delete the task and import its source"
                            " again with --project.",
                        )
        except httpx.HTTPError as error:
            raise PredictionError(
                f"The bucket does not answer ({type(error).__name__}).",
                hint="Look whether the backend's machine reaches CELLAI_BUCKET_URL.",
            ) from error
        return bytes(content)
