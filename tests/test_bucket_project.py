"""A project whose pictures lie in an S3 bucket, on real servers: imported, sorted, shown.

The bucket is moto's S3 server, which speaks HTTP as S3 does; what it cannot show is whether a role
or a policy of a real account suffices.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from installation import (
    Installation,
    OwnBackend,
    free_port,
    run_cellai,
    scores_by_task,
    wait_until,
)
from playwright.sync_api import expect, sync_playwright

from backend.errors import PredictionError
from backend.images import PictureReader, decode
from backend.label_studio import LabelStudioClient, Task
from converters.backend_client import BackendClient
from converters.errors import BucketError
from converters.label_config import TEMPLATE_PATH
from converters.label_studio import Connection
from converters.picture_store import PictureBucket
from converters.project import create_project

pytestmark = pytest.mark.label_studio

N_CELLS = 40
BUCKET = "blood-cells"
PUBLIC_URL = "https://cells.example.org"


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server of its own."""

    server_url: str

    @property
    def url(self) -> str:
        return f"{self.server_url}/{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What `cellai import` is told; region and keys of a real account would stand here."""
        return {
            "AWS_ENDPOINT_URL_S3": self.server_url,
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.server_url,
            region_name="eu-central-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    port = free_port()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = Bucket(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: answers(found.server_url), deadline_s=60, what="S3 server")
        client = found.client()
        for name in (BUCKET, "of-others"):
            client.create_bucket(
                Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
            )
        client.close()
        yield found
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


@dataclass
class Project:
    """An imported project and the backend that serves it."""

    id: int
    demo: Installation
    backend: OwnBackend
    log: Path

    def tasks(self) -> list[dict[str, Any]]:
        """Tasks as they were imported, without Label Studio's own addresses for pictures."""
        answer = self.demo.label_studio.get(
            "api/tasks/", project=self.id, page_size=1000, fields="task_only", resolve_uri=False
        )
        return list(answer["tasks"])

    def card(self, task: dict[str, Any]) -> str:
        path = str(task["data"]["card"]).partition("?d=")[2]
        return (self.demo.data_dir / "files" / path).read_text()


@pytest.fixture(scope="module")
def project(
    demo: Installation, weights: Path, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """Half labelled cells, imported into the bucket; the queue is sorted."""
    folder = tmp_path_factory.mktemp("bucket")
    source = folder / "cells.seg"
    assert run_cellai("sample", source, "--cells", N_CELLS, "--labelled", 0.5).returncode == 0
    backend = OwnBackend.beside(demo, folder / "backend", weights)
    log = folder / "backend.log"
    settings = {"CELLAI_BUCKET_URL": bucket.url, "CELLAI_PUBLIC_URL": PUBLIC_URL}
    with backend.running(log=log, **settings):
        number = backend.import_source(
            source, "--bucket", f"s3://{BUCKET}/pictures", labels=True, **bucket.environment
        )
        client = BackendClient(backend.address)
        try:
            wait_until(
                lambda: client.queue_state(number).is_sorted, deadline_s=180, what="sorted queue"
            )
        finally:
            client.close()
        yield Project(number, demo, backend, log)


def test_pictures_are_in_the_bucket_and_nowhere_else(project: Project, bucket: Bucket) -> None:
    client = bucket.client()
    listed = client.list_objects_v2(Bucket=BUCKET)["Contents"]
    client.close()
    in_bucket = {f"s3://{BUCKET}/{one['Key']}" for one in listed}
    named = {
        task["data"][key]
        for task in project.tasks()
        for key in ("phase", "amplitude", "model_input")
    }
    assert named == in_bucket
    assert len(named) == 3 * N_CELLS
    assert all(uri.startswith(f"s3://{BUCKET}/pictures/project-{project.id}/") for uri in named)
    folder = project.demo.data_dir / "files" / f"project-{project.id}"
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".html"}


def test_queue_is_sorted_by_pictures_of_the_bucket(project: Project) -> None:
    version = project.demo.label_studio.get(f"api/projects/{project.id}/")["model_version"]
    scores = scores_by_task(project.demo.label_studio, project.id, version)
    assert set(scores) == {task["id"] for task in project.tasks()}
    served = project.demo.label_studio.get(f"api/projects/{project.id}/next")
    labelled = {task["id"] for task in project.tasks() if task["is_labeled"]}
    assert served["id"] == min(set(scores) - labelled, key=lambda task_id: scores[task_id])
    assert "cannot be read" not in project.log.read_text()


def test_every_card_shows_where_the_model_looked(project: Project) -> None:
    def unfinished() -> list[int]:
        return [task["id"] for task in project.tasks() if "cc-cam" not in project.card(task)]

    wait_until(lambda: not unfinished(), deadline_s=120, what="card of every cell")


def test_browser_gets_a_picture_through_label_studio(project: Project, bucket: Bucket) -> None:
    """Logged in by the form, with a cookie: Label Studio redirects to the bucket."""
    connection = project.demo.connection_file
    stored = project.tasks()[0]["data"]["phase"]
    with httpx.Client(base_url=connection.label_studio_url) as http:
        http.get("/user/login/")
        http.post(
            "/user/login/",
            data={
                "email": connection.email,
                "password": connection.password,
                "csrfmiddlewaretoken": http.cookies["csrftoken"],
            },
        )
        shown = http.get(f"/api/tasks/{project.tasks()[0]['id']}/").json()["data"]["phase"]
        redirect = http.get(shown)
        presigned = redirect.headers["location"]
        picture = http.get(presigned)
    assert redirect.status_code == 303
    assert presigned.startswith(bucket.url + stored.removeprefix(f"s3://{BUCKET}") + "?")
    assert "X-Amz-Signature=" in presigned
    assert picture.headers["content-type"] == "image/png"
    assert decode(picture.content).shape == (96, 96, 3)
    assert httpx.get(connection.label_studio_url + shown).status_code == 401


@pytest.mark.browser
def test_labelling_page_shows_pictures_and_card(project: Project, bucket: Bucket) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt install chromium): no browser test ran")
    connection = project.demo.connection_file
    fetched: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        # Playwright hears nothing of what Label Studio's service worker fetches, if that is ready.
        page = browser.new_page(viewport={"width": 1366, "height": 768}, service_workers="block")
        page.on("response", lambda answer: fetched.append(f"{answer.status} {answer.url}"))
        page.goto(f"{connection.label_studio_url}/user/login/")
        page.fill("input[name=email]", connection.email)
        page.fill("input[name=password]", connection.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        page.goto(f"{connection.label_studio_url}/projects/{project.id}/data?labeling=1")
        expect(page.locator(".cc-cam")).to_be_visible(timeout=60_000)
        page.wait_for_function(
            """() => {
                const shown = [...document.querySelectorAll('.cellai img')]
                    .filter((node) => node.getBoundingClientRect().width > 0);
                return shown.length >= 2 && shown.every((node) => node.naturalWidth === 96);
            }""",
            timeout=60_000,
        )
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "bucket.png")

        def two_from_the_bucket() -> bool:
            page.wait_for_timeout(100)  # in which playwright tells of answers
            return sum(one.startswith(f"200 {bucket.url}/pictures/") for one in fetched) >= 2

        wait_until(two_from_the_bucket, deadline_s=30, what="pictures from the bucket")
        browser.close()


def test_project_links_the_public_report(project: Project) -> None:
    described = project.demo.label_studio.get(f"api/projects/{project.id}/")["description"]
    assert described == f"Progress report: {PUBLIC_URL}/report/{project.id}"


def test_label_studio_keeps_no_keys_of_the_bucket(project: Project, bucket: Bucket) -> None:
    (storage,) = project.demo.label_studio.get("api/storages/s3/", project=project.id)
    assert (storage["bucket"], storage["presign"]) == (BUCKET, True)
    assert (storage["s3_endpoint"], storage["region_name"]) == (bucket.server_url, "eu-central-1")
    assert "testing" not in str(storage)


def test_second_import_adds_nothing(project: Project, bucket: Bucket) -> None:
    source = project.backend.data_dir.parent / "cells.seg"
    options = ["--project", project.id, "--bucket", f"s3://{BUCKET}/pictures"]
    project.backend.import_source(source, *options, labels=True, **bucket.environment)
    assert len(project.tasks()) == N_CELLS
    assert len(project.demo.label_studio.get("api/storages/s3/", project=project.id)) == 1


def test_doctor_fetches_a_picture_from_the_bucket(project: Project, bucket: Bucket) -> None:
    connection, address = project.demo.connection_file, project.backend.address
    answer = run_cellai(
        "doctor",
        "--project",
        project.id,
        "--url",
        connection.label_studio_url,
        LABEL_STUDIO_API_KEY=connection.api_key,
        CELLAI_BASIC_AUTH_USER=address.user,
        CELLAI_BASIC_AUTH_PASSWORD=address.password,
    )
    host = bucket.server_url.removeprefix("http://")
    (line,) = (line for line in answer.stdout.splitlines() if "Pictures" in line)
    assert line.startswith("ok"), answer.stdout
    assert f"s3://{BUCKET}/pictures/" in line
    assert line.endswith(f"from {host}")


def test_reader_keeps_to_the_bucket(project: Project, bucket: Bucket, tmp_path: Path) -> None:
    """Against the real redirects: another bucket, another task's address, another setting."""
    client = bucket.client()
    task = project.tasks()[0]
    key = task["data"]["phase"].removeprefix(f"s3://{BUCKET}/")
    client.copy_object(Bucket="of-others", Key=key, CopySource={"Bucket": BUCKET, "Key": key})
    client.close()
    connection = project.demo.connection_file
    label_studio = LabelStudioClient(connection.label_studio_url, connection.api_key)
    own = PictureReader(tmp_path, label_studio, bucket_url=bucket.url)
    other = PictureReader(tmp_path, label_studio, bucket_url=f"{bucket.server_url}/of-others")
    unset = PictureReader(tmp_path, label_studio)
    mine = Task(task["id"], {"image": f"s3://{BUCKET}/{key}"})
    theirs = Task(task["id"], {"image": f"s3://of-others/{key}"})
    missing = Task(task["id"], {"image": f"s3://{BUCKET}/pictures/none.png"})
    try:
        assert own.read(mine).shape == (96, 96, 3)
        for reader, wrong in ((own, theirs), (own, missing), (other, mine), (unset, mine)):
            with pytest.raises(PredictionError):
                reader.read(wrong)
    finally:
        label_studio.close()


def test_bucket_that_label_studio_may_not_use_is_told(
    guarded_label_studio: Connection, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Label Studio that blocks private addresses, as the bucket's is here."""
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    store = PictureBucket(f"s3://{BUCKET}/pictures")
    number = create_project(
        guarded_label_studio, title="blocked bucket", label_config=TEMPLATE_PATH.read_text()
    )
    with pytest.raises(BucketError, match=f"Label Studio cannot use the bucket {BUCKET}"):
        store.attach(guarded_label_studio, number)
    store.close()


@pytest.mark.parametrize(
    "wrong",
    [
        ("blood-cells/pictures", "eu-central-1", "is no bucket"),
        ("s3://", "eu-central-1", "is no bucket"),
        ("s3://blood-cells/../of-others", "eu-central-1", "is no bucket"),
        ("s3://not-there/pictures", "eu-central-1", "The bucket not-there cannot be used"),
        ("s3://blood-cells", "us-west-2", "lies in eu-central-1, not in us-west-2"),
        ("s3://blood-cells", "", "AWS_DEFAULT_REGION is missing"),
    ],
)
def test_wrong_bucket_is_told_before_anything_is_written(
    demo: Installation,
    bucket: Bucket,
    sample_file: Path,
    wrong: tuple[str, str, str],
) -> None:
    address, region, sentence = wrong
    before = demo.label_studio.get("api/projects/")["count"]
    answer = run_cellai(
        "import", sample_file, "--data-dir", demo.data_dir, "--title", "none", "--bucket", address,
        **bucket.environment | {"AWS_DEFAULT_REGION": region},
    )  # fmt: skip
    assert answer.returncode != 0
    assert sentence in answer.stderr
    assert demo.label_studio.get("api/projects/")["count"] == before
