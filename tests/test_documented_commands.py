"""Every command that README and docs show is run here as it stands, or listed with the reason.

What a reader fills in (file names, addresses, keys) is filled in from the test's installation.
`docs/commands.md` is generated and has a test of its own.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import CELLAI, ROOT, Installation

pytestmark = pytest.mark.label_studio

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = ("make", "cellai", "gunicorn", "curl", "docker", "tar", "cp", "aws", "mount")
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)

# Beginnings of commands that are not run here, and why.
NOT_RUN_HERE = {
    "make demo": "starts what the test's installation is; test_launcher does the same",
    "make test": "is this run",
    "make test-faults": "takes half an hour or more",
    "make test-soak": "takes half an hour",
    "make bench": "takes a quarter of an hour",
    "make setup": "made the environment of this run",
    "make lint": "comes before this run",
    "make format": "would change the checkout",
    "make reference": "would change the checkout; tests compare what it writes",
    "gunicorn": "is how `cellai up` starts the backend",
    "cellai up": "is how the test's installation was started",
    "docker": "needs a container engine; test_containers checks the files",
    "tar": "tests/faults/test_backup.py runs them",
    "cp .env.example .env": "would change the checkout; test_settings_reference checks the file",
    "aws": "needs an account",
}


def documented() -> Iterator[tuple[str, str]]:
    """(page, command) of every command in a block, on one line, without prompt and comment."""
    for page in PAGES:
        if page.name == "commands.md":
            continue
        for language, block in BLOCK.findall(page.read_text()):
            joined = re.sub(r"\\\n\s*", " ", block)
            for line in joined.splitlines():
                command = re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
                if language == "console" and not line.startswith("$ "):
                    continue  # output
                command = command.removeprefix(".venv/bin/")
                if command.split(" ")[0] in PROGRAMS:
                    yield page.name, command


def is_run(command: str) -> bool:
    return not any(command.startswith(beginning) for beginning in NOT_RUN_HERE)


COMMANDS = sorted(set(documented()))
RUN = [pytest.param(command, id=command[:60]) for _, command in COMMANDS if is_run(command)]


@pytest.fixture
def workplace(demo: Installation, sample_file: Path, tmp_path: Path) -> Path:
    """A folder as the reader has it: the file, and the data directory of `cellai up`."""
    (tmp_path / "my.seg").symlink_to(sample_file)
    (tmp_path / "cellai-data").symlink_to(demo.data_dir)
    return tmp_path


@pytest.mark.parametrize("command", RUN)
def test_command_works_as_shown(command: str, demo: Installation, workplace: Path) -> None:
    connection = demo.connection_file
    filled_in = (
        command.replace("--url http://…", f"--url {connection.label_studio_url}")
        .replace("--backend-url http://…", f"--backend-url {connection.backend_url}")
        .replace("DOCUMENT_ROOT", str(demo.data_dir / "files"))
        .replace("URL/", f"{connection.label_studio_url}/")
        .replace("/ID/", f"/{demo.project_id}/")
        .replace("KEY", connection.api_key)
        .replace("VERSION", demo.project()["model_version"])
    )
    words = shlex.split(filled_in)
    if words[0] == "cellai":
        words[0] = str(CELLAI)
    elif words[0] == "curl":
        words[1:1] = ["--silent", "--show-error", "--fail-with-body"]
    project_before = demo.project()
    try:
        answer = subprocess.run(
            words,
            cwd=workplace,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ
            | {
                "LABEL_STUDIO_API_KEY": connection.api_key,
                "CELLAI_BASIC_AUTH_USER": connection.backend_user,
                "CELLAI_BASIC_AUTH_PASSWORD": connection.backend_password,
            },
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
    finally:
        changed = ("show_collab_predictions", "model_version")
        demo.label_studio.patch(
            f"api/projects/{demo.project_id}/", {name: project_before[name] for name in changed}
        )


def test_pages_show_commands_of_both_kinds() -> None:
    assert len(RUN) >= 5
    unused = [b for b in NOT_RUN_HERE if not any(c.startswith(b) for _, c in COMMANDS)]
    assert set(unused) <= {"aws", "make test-faults", "make test-soak"}
