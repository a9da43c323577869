"""A data directory that is full, read-only or damaged: said clearly, nothing lost, back again.

The first two need to mount a small tmpfs, so they run as root on Linux; elsewhere they skip and
say so.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fault_table import note_seen, note_times
from installation import OwnBackend, wait_until
from laboratory import FEW_EPOCHS, Laboratory, fault_environment, new_laboratory
from own_label_studio import OwnLabelStudio

from backend.diagnosis import LEAST_FREE_BYTES
from backend.runner_record import read_runner

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]

MOUNT, UMOUNT = (shutil.which(name) or name for name in ("mount", "umount"))
DISK_BYTES = 64_000_000
DEADLINE_S = 120


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, mounted on the folder."""
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(
        [MOUNT, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([UMOUNT, "--lazy", folder], check=True)


@contextmanager
def covered(folder: Path) -> Iterator[None]:
    """The folder lies, read-only, over itself until the block ends.

    What is open for writing stays so, and would keep the disk itself from being made read-only.
    """
    subprocess.run([MOUNT, "--bind", folder, folder], check=True)
    try:
        subprocess.run([MOUNT, "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run([UMOUNT, "--lazy", folder], check=True)


@contextmanager
def files_limited(data_dir: Path) -> Iterator[None]:
    """No process of a backend may write beyond the first byte of a file until the block ends."""
    runner = read_runner(data_dir)
    assert runner is not None
    master = psutil.Process(runner.pid).parents()[1]
    soft, hard = master.rlimit(psutil.RLIMIT_FSIZE)
    for process in [master, *master.children(recursive=True)]:
        process.rlimit(psutil.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:  # others than before, if one of them ended
        for process in [master, *master.children(recursive=True)]:
            process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))


def fill(folder: Path) -> Path:
    """A file that leaves no room; the backend may free a page of its own meanwhile."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    return filler


@contextmanager
def laboratory_on(
    disk: Path, label_studio: OwnLabelStudio, own_backend: OwnBackend, source: Path
) -> Iterator[Laboratory]:
    backend = replace(own_backend, data_dir=disk)
    with (
        backend.running(
            CELLAI_RECONCILE_SECONDS="5", CELLAI_FEATURE_CACHE_GB="0.02", CELLAI_EPOCHS=FEW_EPOCHS
        ),
        new_laboratory(label_studio, backend, source) as laboratory,
    ):
        yield laboratory


def test_full_disk(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """The disk of the data directory is full, until room is made."""
    with (
        small_disk(tmp_path / "disk") as disk,
        laboratory_on(disk, label_studio, own_backend, small_sample) as laboratory,
    ):
        filler = fill(disk)
        laboratory.annotate(5)
        said = wait_until(laboratory.problem, deadline_s=DEADLINE_S, what="503 of a full disk")
        assert "is full" in said
        assert f"0.0 GB free at {disk}" in laboratory.diagnosed()
        note_seen("/ready: is full; doctor: 0.0 GB free")
        filler.unlink()
        laboratory.check()


def test_full_disk_of_the_files(
    label_studio: OwnLabelStudio,
    own_backend: OwnBackend,
    small_sample: Path,
    fault_file: Path,
    tmp_path: Path,
) -> None:
    """The disk of pictures and cards is full, until room is made; the backend trains and sorts."""
    settings = fault_environment(fault_file) | {"FAULT_RETRY_SECONDS": "3"}
    backend = replace(own_backend, data_dir=tmp_path / "data")
    with (
        small_disk(label_studio.files_dir) as disk,
        backend.running(log=None, **settings),
        new_laboratory(label_studio, backend, small_sample) as laboratory,
    ):
        laboratory.check_cards()
        filler = fill(disk)
        laboratory.annotate(5)
        laboratory.check()
        assert f"0.0 GB free at {disk}" in laboratory.diagnosed()
        note_seen("doctor: 0.0 GB free")
        assert laboratory.stale_cards()
        filler.unlink()
        laboratory.check_cards()


def test_disk_that_becomes_read_only(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """The data directory becomes read-only for all that is opened from then on, for a while."""
    with (
        small_disk(tmp_path / "disk") as disk,
        laboratory_on(disk, label_studio, own_backend, small_sample) as laboratory,
    ):
        laboratory.check()
        with covered(disk):
            laboratory.annotate(5)
            said = wait_until(laboratory.problem, deadline_s=DEADLINE_S, what="503 of a disk")
            assert "cannot be written" in said
            assert f"{disk} cannot be written: Read-only file system." in laboratory.diagnosed()
            note_seen("/ready and doctor: cannot be written")
        laboratory.check()


def test_files_that_may_not_grow(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """No file of the backend may become longer than a byte (RLIMIT_FSIZE), as with a quota."""
    folder = tmp_path / "quota"
    with laboratory_on(folder, label_studio, own_backend, small_sample) as laboratory:
        with files_limited(folder):
            laboratory.annotate(5)
            said = wait_until(laboratory.problem, deadline_s=DEADLINE_S, what="503 of a quota")
            assert "cannot be written: File too large" in said
            assert f"{folder} cannot be written: File too large." in laboratory.diagnosed()
            note_seen("/ready and doctor: cannot be written: File too large")
        laboratory.check()


def test_files_that_are_overwritten(
    label_studio: OwnLabelStudio, own_backend: OwnBackend, small_sample: Path, tmp_path: Path
) -> None:
    """Job store, feature cache, head and manifest of the serving version are overwritten."""
    folder = tmp_path / "damaged"
    with laboratory_on(folder, label_studio, own_backend, small_sample) as laboratory:
        for pattern in ("jobs.sqlite", "features/*/features.sqlite", "head", "manifest"):
            serving = f"models/{laboratory.project_id}/{laboratory.settle()}"
            wanted = pattern if "sqlite" in pattern else f"{serving}/{pattern}.*"
            (path,) = folder.glob(wanted)
            path.write_bytes(b"not what it was " * 1000)
            laboratory.annotate(1)
            laboratory.check()
        assert (folder / "jobs.sqlite.damaged").exists()
        assert len(list(folder.glob("models/*/.damaged-*"))) == 2
        note_times(4)
