"""The image, built from the Dockerfile and run with the rights that docker-compose.yml gives it.

`make test-image` builds it with Docker, or with Podman (CONTAINER_ENGINE=podman). Label Studio is
the tests' own, on the host, so the container has the host's network and Label Studio's folder
instead of Compose's.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from compose_file import filled_in, given, read_compose
from installation import ROOT, START_DEADLINE_S, OwnBackend, new_address, wait_until
from laboratory import FEW_EPOCHS, Laboratory, new_laboratory
from own_label_studio import OwnLabelStudio

from converters.backend_client import BackendClient

pytestmark = [pytest.mark.label_studio, pytest.mark.image]

SERVICE: dict[str, Any] = read_compose()["services"]["backend"]
IMAGE = "cellai-backend:tested"
CONTAINER = f"cellai-tested-{os.getpid()}"
WRITABLE = ["/data", "/files", "/tmp"]  # noqa: S108  in the container
INSTALLERS = ["pip", "pip3", "uv", "gcc", "g++", "cc", "c++", "clang", "ld", "make", "cmake", "git"]
# Run inside: what the process may do, as a JSON object.
LOOK_AROUND = f"""
import json, os, shutil
from pathlib import Path

def can_write(folder):
    try:
        (folder / "probe").touch()
    except OSError:
        return False
    (folder / "probe").unlink()
    return True

folders = [Path("/"), *(f for f in Path("/").iterdir() if f.name not in ("proc", "sys", "dev"))]
status = dict(line.split(":", 1) for line in Path("/proc/1/status").read_text().splitlines())
print(json.dumps({{
    "ids": [os.getuid(), os.getgid()],
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "writable": sorted(str(folder) for folder in folders if can_write(folder)),
    "installers": [name for name in {INSTALLERS} if shutil.which(name)],
}}))
"""


def engine(*arguments: object) -> str:
    """What Docker, or the program that CONTAINER_ENGINE names, prints; it must not fail."""
    command = [os.environ.get("CONTAINER_ENGINE", "docker"), *map(str, arguments)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert answer.returncode == 0, f"{command[1]}: {answer.stdout[-2000:]}{answer.stderr[-2000:]}"
    return answer.stdout.strip()


@dataclass
class BackendInContainer(OwnBackend):
    """The backend in its image."""

    def _options(self) -> list[str]:
        """Those of Compose, at the tests' addresses and as quick as the fault tests."""
        environment = {name: filled_in(value) for name, value in given(SERVICE).items()} | {
            "LABEL_STUDIO_URL": self.label_studio_url,
            "LABEL_STUDIO_API_KEY": self.api_key,
            "CELLAI_PORT": self.address.url.rpartition(":")[2],
            "CELLAI_BASIC_AUTH_USER": self.address.user,
            "CELLAI_BASIC_AUTH_PASSWORD": self.address.password,
            "CELLAI_FILES_DIR": str(self.files_dir),
            "CELLAI_WEIGHTS": "/weights.safetensors",
            "CELLAI_QUIET_SECONDS": "1",
            "CELLAI_RECONCILE_SECONDS": "5",
            "CELLAI_EPOCHS": FEW_EPOCHS,
        }
        volumes = (
            f"{CONTAINER}:/data",
            f"{self.files_dir}:{self.files_dir}",  # Label Studio must know it by the same path
            f"{self.weights}:/weights.safetensors:ro",
        )
        return [
            "--network=host",
            *(f"--env={name}={value}" for name, value in environment.items()),
            *(f"--volume={volume}" for volume in volumes),
            *(["--init"] if SERVICE["init"] else []),
            *(["--read-only"] if SERVICE["read_only"] else []),
            *(f"--cap-drop={capability}" for capability in SERVICE["cap_drop"]),
            *(f"--security-opt={option}" for option in SERVICE["security_opt"]),
            *(f"--tmpfs={scratch}" for scratch in SERVICE["tmpfs"]),
        ]

    @contextmanager
    def served(self) -> Iterator[None]:
        """In service until the block ends; its log is printed then."""
        engine("volume", "create", CONTAINER)
        try:
            engine("run", "--detach", f"--name={CONTAINER}", *self._options(), IMAGE)
            self.wait_until_ready()
            yield
            print(engine("logs", CONTAINER))
        finally:
            engine("rm", "--force", CONTAINER)
            engine("volume", "rm", CONTAINER)

    def wait_until_ready(self) -> None:
        """Return once it has its weights and Label Studio."""
        with closing(BackendClient(self.address)) as client:
            wait_until(client.is_ready, deadline_s=START_DEADLINE_S, what="ready backend")

    def import_source(
        self, source: Path, *options: object, labels: bool = False, **environment: str
    ) -> int:
        """Import as docker-compose.yml's head says, in a container of its own."""
        assert not environment
        inside = f"/sources/{source.name}"
        volume = f"--volume={source}:{inside}:ro"
        use_labels = [] if labels else ["--no-labels"]
        folder = ("--files-dir", self.files_dir)
        command = ("cellai", "import", inside, *folder, *use_labels, *options)
        where = ("--url", self.label_studio_url, "--backend-url", self.address.url)
        return int(engine("run", "--rm", volume, *self._options(), IMAGE, *command, *where))


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    """Built as `docker compose build` does; BUILD_OPTIONS may name a mirror or its certificate."""
    engine("build", "--tag", IMAGE, *shlex.split(os.environ.get("BUILD_OPTIONS", "")), ROOT)


@pytest.fixture(scope="module")
def backend(
    label_studio: OwnLabelStudio, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackendInContainer]:
    label_studio.files_dir.chmod(0o777)  # the image's user has a number of its own
    backend = BackendInContainer(
        label_studio_url=label_studio.url,
        api_key=label_studio.api_key,
        files_dir=label_studio.files_dir,
        data_dir=tmp_path_factory.mktemp("unused"),
        weights=weights,
        address=new_address(),
    )
    with backend.served():
        yield backend


@pytest.fixture(scope="module")
def laboratory(
    label_studio: OwnLabelStudio, backend: BackendInContainer, small_sample: Path
) -> Iterator[Laboratory]:
    with new_laboratory(label_studio, backend, small_sample) as laboratory:
        yield laboratory


@pytest.mark.timeout(3600)  # the build is in it
def test_sorts_the_queue_and_learns(laboratory: Laboratory) -> None:
    laboratory.annotate(12)
    laboratory.check()
    laboratory.check_cards()


def test_process_may_do_as_little_as_possible(backend: BackendInContainer) -> None:
    assert json.loads(engine("exec", CONTAINER, "python", "-c", LOOK_AROUND)) == {
        "ids": [1001, 1001],
        "capabilities": 0,
        "no_new_privileges": 1,
        "writable": WRITABLE,
        "installers": [],
    }


def test_health_check_of_compose_runs_inside(backend: BackendInContainer) -> None:
    port = backend.address.url.rpartition(":")[2]
    _, *command = SERVICE["healthcheck"]["test"]
    engine("exec", CONTAINER, *(part.replace("9090", port) for part in command))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_state_outlives_the_container_s_process(
    laboratory: Laboratory, backend: BackendInContainer, end: str
) -> None:
    engine(end, CONTAINER)
    if end == "stop":  # within the time that Docker and Compose give it, or it would be 137
        assert engine("inspect", "--format={{.State.ExitCode}}", CONTAINER) == "0"
    laboratory.annotate(2)
    engine("start", CONTAINER)
    laboratory.check()
