"""What a running installation shows to other accounts, and what it writes, pickles above all."""

import io
import os
import pickle
import pickletools
import re
import sqlite3
import stat
import sys
import warnings
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from installation import Installation, OwnBackend, annotate, run_cellai, wait_until

from converters.backend_client import BackendClient

PICKLED = re.compile(rb"\x80[\x02-\x05]")
OBJECT_ARRAY = re.compile(rb"\x93NUMPY..{1,2}.{0,200}'descr': '\|O'", re.DOTALL)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST"}
LOOK_AHEAD = 100_000
# A JSON Web Token, as personal access tokens are and what Label Studio gives for one.
WEB_TOKEN = re.compile(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}")


def holds_pickle(content: bytes) -> bool:
    """Whether the content, or something in it, is a pickle.

    The content as a whole: whatever can be read from its first byte to its last. In the middle:
    only what names code to be called, because numbers look like a short pickle now and then.
    """
    if OBJECT_ARRAY.search(content) or 0 < _length(content) == len(content):
        return True
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(holds_pickle(archive.read(name)) for name in archive.namelist())
    starts = (match.start() for match in PICKLED.finditer(content))
    return any(_names_code(content[at : at + LOOK_AHEAD]) for at in starts)


def _length(content: bytes) -> int:
    """Bytes of the pickle at the beginning of the content; 0 where there is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # numbers read as text warn of escapes
            opcodes = [(opcode.name, at or 0) for opcode, _, at in pickletools.genops(content)]
    except (ValueError, UnicodeDecodeError, OverflowError, IndexError):
        return 0
    return opcodes[-1][1] + 1 if len(opcodes) > 2 or opcodes[0][0] == "PROTO" else 0


def _names_code(content: bytes) -> bool:
    """Whether there is a pickle at the beginning that names a module and something in it."""
    texts: list[str] = []
    if not _length(content):
        return False
    with warnings.catch_warnings(action="ignore"):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                texts = str(argument).split(" ")
            elif "UNICODE" in opcode.name:
                texts.append(str(argument))
            if opcode.name in CALLS and len(texts) >= 2:
                return all(NAME.fullmatch(text) for text in texts[-2:])
    return False


def contents(path: Path) -> Iterator[bytes]:
    """The file, and every value of its tables if it is a database."""
    content = path.read_bytes()
    yield content
    if content.startswith(b"SQLite format 3\0"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                for row in database.execute(f'SELECT * FROM "{table}"'):  # noqa: S608
                    yield from (value for value in row if isinstance(value, bytes))


class Custom:
    pass


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", [None, {"a": [1.5, "x"]}, Custom(), np.zeros(3)])
def test_the_scan_finds_pickles(value: object, protocol: int) -> None:
    pickled = pickle.dumps(value, protocol)
    assert holds_pickle(pickled)
    if isinstance(value, Custom | np.ndarray):
        assert holds_pickle(b"before" + pickled + b"after")


def test_the_scan_finds_arrays_of_objects_and_archives() -> None:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([{}], dtype=object))
    assert holds_pickle(array.getvalue())
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("model/data.pkl", pickle.dumps({"w": 1}))
    assert holds_pickle(archive.getvalue())
    numbers = io.BytesIO()
    np.save(numbers, np.random.default_rng(0).normal(size=5000))
    assert not holds_pickle(numbers.getvalue())


@pytest.mark.label_studio
def test_nothing_that_we_write_is_pickled(
    demo: Installation, sample_file: Path, tmp_path: Path
) -> None:
    """A trained version, its cards, the queue, and an export among the rest."""
    with closing(demo.new_project(sample_file, "nothing pickled")) as project:
        for task, label in zip(project.tasks(), ("rbc", "wbc") * 2, strict=False):
            annotate(project.label_studio, task["id"], label)
        wait_until(
            lambda: project.serving().get("n_labels") == 4,
            deadline_s=90,
            what="version of four labels",
        )
        answer = run_cellai(
            *("export", "--data-dir", demo.data_dir, "--project", project.project_id),
            *("--out", tmp_path / "export"),
        )
    assert answer.returncode == 0, answer.stderr
    ours = [demo.data_dir / "backend", demo.data_dir / "files", tmp_path / "export"]
    files = [path for folder in ours for path in folder.rglob("*") if path.is_file()]
    files.append(demo.data_dir / "connection.json")
    kinds = {path.suffix for path in files}
    assert {".sqlite", ".json", ".png", ".html", ".csv", sample_file.suffix} <= kinds
    assert "head.safetensors" in {path.name for path in files}
    assert [
        str(path) for path in files if any(holds_pickle(content) for content in contents(path))
    ] == []


@pytest.mark.label_studio
def test_other_accounts_may_read_no_secret(demo: Installation) -> None:
    others = stat.S_IRWXG | stat.S_IRWXO
    private = [
        demo.data_dir / "connection.json",
        *(demo.data_dir / name for name in ("backend", "label-studio", "logs")),
        *(demo.data_dir / "logs").iterdir(),
    ]
    assert [str(path) for path in private if path.stat().st_mode & others] == []


@pytest.mark.label_studio
def test_secrets_are_on_no_command_line_and_in_no_log(demo: Installation) -> None:
    connection = demo.connection_file
    secrets = [connection.api_key, connection.backend_password, connection.password]
    launcher = psutil.Process(demo.process.pid)
    family = [launcher, *launcher.children(recursive=True)]
    assert len(family) >= 3
    for process in family:
        command = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in command]
        if sys.platform == "linux":
            environment = Path(f"/proc/{process.pid}/environ").stat()
            assert (stat.S_IMODE(environment.st_mode), environment.st_uid) == (0o400, os.getuid())
    for log in (demo.data_dir / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert text
        assert not [secret for secret in secrets if secret in text]


@pytest.mark.label_studio
def test_log_of_everything_holds_no_credential(
    demo: Installation,
    backend: OwnBackend,
    personal_token: str,
    sample_file: Path,
    tmp_path: Path,
) -> None:
    """Neither the token, nor what Label Studio gives for it, nor the header with the password."""
    user, password = backend.address.user, backend.address.password
    header = b64encode(f"{user}:{password}".encode()).decode()
    given = demo.label_studio.post("api/token/refresh/", {"refresh": personal_token})["access"]
    assert WEB_TOKEN.search(personal_token)
    assert WEB_TOKEN.search(given)

    log = tmp_path / "log"
    own = replace(backend, api_key=personal_token)
    with (
        own.running(log=log, CELLAI_LOG_LEVEL="DEBUG"),
        closing(BackendClient(own.address)) as client,
    ):
        project_id = own.import_source(sample_file)
        wait_until(
            lambda: client.queue_state(project_id).is_sorted, deadline_s=90, what="sorted queue"
        )
        for guess in (password, "a wrong guess"):
            httpx.post(f"{own.address.url}/predict", json={"tasks": 3}, auth=(user, guess))
    text = log.read_text()
    assert "DEBUG" in text
    assert "POST /predict: 400" in text
    assert "POST /predict: 401" in text
    assert not WEB_TOKEN.search(text)
    for secret in (personal_token, given, password, header, "a wrong guess"):
        assert secret not in text
