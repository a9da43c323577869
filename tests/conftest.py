"""Fixtures: one real Label Studio with backend for the session, real files, real weights."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from hypothesis import settings
from installation import (
    SHARED,
    Installation,
    OwnBackend,
    free_port,
    run_cellai,
    shared_file,
    start_installation,
    wait_until,
)

from converters.errors import UnreachableError
from converters.label_studio import Connection
from converters.launcher import LABEL_STUDIO_ENVIRONMENT, label_studio_command

# A shell lets what it starts in the background ignore Ctrl+C; what tests start must not inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A gate must judge the change and not the dice: what hypothesis draws is the same in every run.
# `HYPOTHESIS_PROFILE=drawn pytest …` draws anew.
settings.register_profile("same", derandomize=True)
settings.register_profile("drawn", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

pytest_plugins = [
    "browser_fixtures",
    "hdf5_fixtures",
    "fault_table",
    "fault_fixtures",
    "module_order",
]


@pytest.fixture(scope="session")
def weights() -> Path:
    """ImageNet weights of the trunk."""
    return shared_file("vgg16_features.safetensors")


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 synthetic cells, all labelled."""
    path = tmp_path_factory.mktemp("sample") / "sample.seg"
    answer = run_cellai("sample", path, "--cells", 300, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.fixture(scope="session")
def sample_labels(sample_file: Path) -> list[str]:
    """The true class of every cell of the sample, by index."""
    with h5py.File(sample_file) as file:
        return [label.decode() for label in file["label/ground_truth"][:]]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Iterator[Installation]:
    """The sample without its labels in a running installation."""
    arguments: list[object] = [sample_file, "--no-labels"]
    weights = SHARED / "vgg16_features.safetensors"
    if weights.exists():
        arguments += ["--weights", weights]
    # Keys of a bucket that any test may make; without them boto3 would look for an instance's role.
    installation = start_installation(
        tmp_path_factory.mktemp("demo"),
        *arguments,
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
    )
    yield installation
    with contextlib.suppress(ProcessLookupError):
        installation.stop()


@pytest.fixture
def backend(demo: Installation, weights: Path, tmp_path: Path) -> OwnBackend:
    return OwnBackend.beside(demo, tmp_path / "backend", weights)


@pytest.fixture
def personal_token(demo: Installation) -> Iterator[str]:
    """A personal access token of the installation's account, revoked afterwards."""
    connection = demo.label_studio

    def revoke(token: str) -> None:
        connection.request("POST", "api/token/blacklist/", payload={"refresh": token})

    for row in connection.get("api/token/"):  # an account has one at a time
        revoke(row["token"])
    token = str(connection.post("api/token/", {})["token"])
    yield token
    revoke(token)


@pytest.fixture(scope="session")
def guarded_label_studio(
    demo: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """A second Label Studio on a copy of the database, with its own default address block."""
    folder = tmp_path_factory.mktemp("guarded")
    copy = folder / "label-studio"
    demo.copy_label_studio(copy)
    port = free_port()
    environment = {
        name: value
        for name, value in (os.environ | LABEL_STUDIO_ENVIRONMENT).items()
        if "BANNED_SUBNETS" not in name
    }
    process = subprocess.Popen(
        label_studio_command(port),
        env=environment
        | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(copy),
            # Above the folders of all tests, so that any of them may be served.
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(tmp_path_factory.getbasetemp()),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    connection = Connection(f"http://127.0.0.1:{port}", demo.connection_file.api_key)

    def is_up() -> bool:
        try:
            return connection.request("GET", "health").is_success
        except UnreachableError:
            return False

    try:
        wait_until(is_up, deadline_s=120, what="second Label Studio")
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(30)
