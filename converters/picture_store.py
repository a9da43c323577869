"""Where the pictures of a project lie: the folder that Label Studio serves, or an S3 bucket.

The credentials of a bucket are never given to Label Studio's database: it and this command each
take their own, from the instance's role or from AWS's usual environment variables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from converters.errors import BucketError, ConfigurationError, LabelStudioError
from converters.label_studio import Connection
from converters.tasks import local_files_url

SCHEME: Final = "s3://"
STORAGE_TITLE: Final = "CellAI pictures"
# Minutes; Label Studio makes a new address each time a picture is shown.
PRESIGN_TTL_MIN: Final = 5
# What boto3 calls the region when it was told none.
NO_REGION: Final = "aws-global"


class PictureStore(Protocol):
    """Takes the pictures of one project."""

    # Threads that encode and write at once.
    writers: int

    def attach(self, connection: Connection, project_id: int) -> None:
        """Let Label Studio serve the pictures in the project, unless it does already."""

    def write(self, path: PurePosixPath, picture: bytes) -> None:
        """Store a PNG file at a path of `converters.tasks.TaskPaths`."""

    def url(self, path: PurePosixPath) -> str:
        """What a task names it by."""


class PictureFolder:
    """Pictures below the document root of Label Studio's local files.

    Args:
        files_dir: that folder, as seen from here.
    """

    writers = 2  # the encoder leaves Python's lock, so two threads nearly double the pace

    def __init__(self, files_dir: Path) -> None:
        self._files_dir = files_dir

    def attach(self, connection: Connection, project_id: int) -> None:
        """Nothing to do: the project's folder, which holds the cards too, is served anyway."""

    def write(self, path: PurePosixPath, picture: bytes) -> None:
        """Store a picture.

        Raises:
            OSError: the folder cannot be written.
        """
        target = self._files_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)

    def url(self, path: PurePosixPath) -> str:
        """Address at which Label Studio serves it."""
        return local_files_url(path)


def s3_client(*, connections: int = 10) -> Any:
    """A client of S3 by boto3's usual settings.

    Args:
        connections: kept open, at most.

    Raises:
        botocore.exceptions.BotoCoreError: no region, or one that does not exist.
    """
    # A command that does without a bucket need not pay the tenth of a second.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    # For us-east-1, too, the endpoint names the region, so that one rule gives its address.
    regional = {"us_east_1_regional_endpoint": "regional"}
    return boto3.client("s3", config=Config(max_pool_connections=connections, s3=regional))


class PictureBucket:
    """Pictures in an S3 bucket; region, endpoint and credentials are boto3's usual ones.

    Args:
        address: `s3://bucket` or `s3://bucket/prefix`.

    Raises:
        ConfigurationError: another address, or AWS_DEFAULT_REGION is missing or another.
        BucketError: the bucket cannot be used.
    """

    writers = 16  # a request takes tens of milliseconds, most of them waiting

    def __init__(self, address: str) -> None:
        self._bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
        self._prefix = PurePosixPath(prefix.strip("/"))
        if not address.startswith(SCHEME) or not self._bucket or ".." in self._prefix.parts:
            raise ConfigurationError(
                f"{address!r} is no bucket.", hint="Write --bucket s3://NAME or s3://NAME/PREFIX."
            )
        with self._explained():
            self._client = s3_client(connections=self.writers)
            answer = self._client.head_bucket(Bucket=self._bucket)
        self._check_region(answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region"))

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    @property
    def public_url(self) -> str:
        """How Label Studio's presigned URLs begin, the backend's CELLAI_BUCKET_URL."""
        return f"{self._client.meta.endpoint_url}/{self._bucket}"

    def attach(self, connection: Connection, project_id: int) -> None:
        """Add the bucket to the project's storages.

        Raises:
            BucketError: Label Studio cannot use the bucket.
        """
        storages = connection.get("api/storages/s3/", project=project_id)
        if any(storage["bucket"] == self._bucket for storage in storages):
            return
        settings = {
            "project": project_id,
            "title": STORAGE_TITLE,
            "bucket": self._bucket,
            # Named, or Label Studio would presign for us-east-1 and an address that redirects
            # to the bucket's region, which browsers do not follow for pictures.
            "region_name": self._client.meta.region_name,
            "s3_endpoint": self._client.meta.endpoint_url,
            "use_blob_urls": True,
            "presign": True,
            "presign_ttl": PRESIGN_TTL_MIN,
        }
        try:
            connection.post("api/storages/s3/", settings)
        except LabelStudioError as error:
            raise BucketError(
                f"Label Studio cannot use the bucket {self._bucket}: {error.message}",
                hint="Give Label Studio's process a role or AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY that may read the bucket.",
            ) from error

    def write(self, path: PurePosixPath, picture: bytes) -> None:
        """Store a picture.

        Raises:
            BucketError: the bucket refuses it.
        """
        with self._explained():
            self._client.put_object(
                Bucket=self._bucket, Key=self._key(path), Body=picture, ContentType="image/png"
            )

    def url(self, path: PurePosixPath) -> str:
        """Its `s3://` address."""
        return f"{SCHEME}{self._bucket}/{self._key(path)}"

    def _check_region(self, lies_in: str | None) -> None:
        """boto3 finds the bucket from any region, but Label Studio's presigned URLs would not."""
        region = self._client.meta.region_name
        if region in {"", NO_REGION}:
            raise ConfigurationError(
                "AWS_DEFAULT_REGION is missing.",
                hint="Set it to the bucket's region; outside of AWS us-east-1 will do.",
            )
        if lies_in is not None and region != lies_in:
            raise ConfigurationError(
                f"The bucket {self._bucket} lies in {lies_in}, not in {region}.",
                hint="Set AWS_DEFAULT_REGION to where it lies.",
            )

    def _key(self, path: PurePosixPath) -> str:
        return (self._prefix / path).as_posix()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise BucketError(
                f"The bucket {self._bucket} cannot be used: {error}",
                hint="Check its name, AWS_DEFAULT_REGION, and that the role or AWS_ACCESS_KEY_ID"
                " may list it and put objects into it.",
            ) from error
