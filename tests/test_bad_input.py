"""Bad input: one clear sentence, an exit code, nothing half-written."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from file_limit import longest_file
from installation import Installation, free_port, run_cellai

from converters.errors import ConfigurationError
from converters.label_config import TEMPLATE_PATH, read_label_config, write_label_config
from converters.label_studio import Connection
from converters.project import check_classes, create_project

N_CELLS = 4


def write_cells(path: Path, *, labels: list[bytes] | None = None, n_masks: int = N_CELLS) -> Path:
    """A small file in the CellFace layout."""
    with h5py.File(path, "w") as file:
        file["phase/images"] = np.zeros((N_CELLS, 48, 48), np.float32)
        file["amplitude/images"] = np.zeros((N_CELLS, 48, 48), np.float32)
        file["mask/images"] = np.ones((n_masks, 48, 48), np.uint8)
        if labels is not None:
            file["label/ground_truth"] = np.array(labels)
    return path


def not_hdf5(folder: Path) -> Path:
    path = folder / "cells.seg"
    path.write_bytes(b"this is no HDF5 file" * 100)
    return path


def truncated(folder: Path) -> Path:
    path = write_cells(folder / "cells.seg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def unknown_layout(folder: Path) -> Path:
    path = folder / "cells.h5"
    with h5py.File(path, "w") as file:
        file["temperature"] = np.arange(5.0)
    return path


def mismatched_masks(folder: Path) -> Path:
    return write_cells(folder / "cells.seg", n_masks=N_CELLS - 1)


def mismatched_labels(folder: Path) -> Path:
    return write_cells(folder / "cells.seg", labels=[b"rbc"] * (N_CELLS + 2))


def missing_filter(folder: Path) -> Path:
    """A dataset whose pipeline names a filter that no plugin has."""
    path = write_cells(folder / "cells.seg")
    with h5py.File(path, "a") as file:
        del file["phase/images"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 48, 48))
        properties.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(
            file.id,
            b"phase/images",
            h5py.h5t.IEEE_F32LE,
            h5py.h5s.create_simple((N_CELLS, 48, 48)),
            properties,
        ).write_direct_chunk((0, 0, 0), bytes(48 * 48 * 4), filter_mask=0)
    return path


def broken_link(folder: Path) -> Path:
    path = write_cells(folder / "cells.seg")
    with h5py.File(path, "a") as file:
        del file["phase/images"]
        file["phase/images"] = h5py.ExternalLink("gone.h5", "/phase/images")
    return path


def outside_link(folder: Path) -> Path:
    (folder / "outside").mkdir()
    (folder / "inside").mkdir()
    write_cells(folder / "outside" / "other.seg")
    path = write_cells(folder / "inside" / "cells.seg")
    with h5py.File(path, "a") as file:
        del file["phase/images"]
        file["phase/images"] = h5py.ExternalLink("../outside/other.seg", "/phase/images")
    return path


def unknown_labels(folder: Path) -> Path:
    return write_cells(folder / "cells.seg", labels=[b"rbc", b"lymphocyte", b"lymphocyte", b""])


def empty_file(folder: Path) -> Path:
    path = folder / "cells.seg"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (not_hdf5, ["cells.seg", "is not an HDF5 file"]),
        (truncated, ["cells.seg", "truncated"]),
        (unknown_layout, ["cells.h5", "temperature"]),
        (mismatched_masks, ["mask/images", "3", "4"]),
        (mismatched_labels, ["label/ground_truth", "6", "4"]),
        (missing_filter, ["phase/images", "31999"]),
        (broken_link, ["gone.h5"]),
        (outside_link, ["outside"]),
        (unknown_labels, ["lymphocyte", "2", "--skip-unknown-labels"]),
        (empty_file, ["cells.seg"]),
    ],
)
def test_bad_source_is_refused_before_anything_is_written(
    tmp_path: Path, make: Callable[[Path], Path], words: list[str]
) -> None:
    source = make(tmp_path)
    data_dir = tmp_path / "data"
    answer = run_cellai("up", source, "--data-dir", data_dir, "--no-browser")
    assert answer.returncode == 3
    assert answer.stderr.startswith("Error: ")
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) <= 2, answer.stderr
    for word in words:
        assert word in answer.stderr
    assert not data_dir.exists()


def test_unwritable_data_dir(tmp_path: Path) -> None:
    source = write_cells(tmp_path / "cells.seg")
    (tmp_path / "file").touch()
    answer = run_cellai("up", source, "--data-dir", tmp_path / "file" / "data", "--no-browser")
    assert answer.returncode == 5
    assert "cannot be written" in answer.stderr


def test_full_disk(tmp_path: Path) -> None:
    source = write_cells(tmp_path / "cells.seg")
    with longest_file(10):
        answer = run_cellai("up", source, "--data-dir", tmp_path / "data", "--no-browser")
    assert answer.returncode == 5
    assert "cannot be written (File too large)" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_port_in_use(tmp_path: Path) -> None:
    source = write_cells(tmp_path / "cells.seg")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run_cellai(
            "up", source, "--data-dir", tmp_path / "data", "--no-browser", "--port", port
        )
    assert answer.returncode == 2
    assert f"Port {port} is in use" in answer.stderr
    assert "--port" in answer.stderr


def test_missing_weights_file(tmp_path: Path) -> None:
    source = write_cells(tmp_path / "cells.seg")
    answer = run_cellai(
        "up", source, "--data-dir", tmp_path / "data", "--weights", tmp_path / "none.safetensors"
    )
    assert answer.returncode == 2
    assert "none.safetensors" in answer.stderr
    assert not (tmp_path / "data").exists()


def test_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "backend.worker", str(os.getpid())],
        env={**os.environ, "CELLAI_QUIET_SECOND": "3", "CELLAI_LABEL_STUDIO_API_KEY": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "CELLAI_QUIET_SECOND is unknown (did you mean CELLAI_QUIET_SECONDS?)" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_neither_source_nor_project(tmp_path: Path) -> None:
    answer = run_cellai("import", "--url", "http://127.0.0.1:1", LABEL_STUDIO_API_KEY="0" * 40)
    assert answer.returncode == 2
    assert "No source is given." in answer.stderr
    assert "--project" in answer.stderr


@pytest.mark.label_studio
def test_other_classes_than_the_project_has(demo: Installation) -> None:
    wanted = read_label_config(write_label_config(["plt", "oof", "agg", "wbc", "rbc"]))
    check_classes(demo.label_studio, demo.project_id, wanted)
    with pytest.raises(ConfigurationError, match=r"has the classes rbc, wbc, plt, agg, oof\."):
        check_classes(
            demo.label_studio,
            demo.project_id,
            read_label_config(write_label_config(["rbc", "wbc"])),
        )


def test_label_studio_not_running(tmp_path: Path) -> None:
    answer = _import(tmp_path, f"http://127.0.0.1:{free_port()}", api_key="0" * 40)
    assert answer.returncode == 4
    assert "does not answer" in answer.stderr


@pytest.mark.label_studio
def test_wrong_token(demo: Installation, tmp_path: Path) -> None:
    answer = _import(tmp_path, demo.connection_file.label_studio_url, api_key="0" * 40)
    assert answer.returncode == 4
    assert "refuses the API key" in answer.stderr
    assert "0" * 40 not in answer.stderr
    assert not (tmp_path / "files").exists()


@pytest.mark.label_studio
def test_private_address_refused_names_the_cure(
    guarded_label_studio: Connection, demo: Installation, tmp_path: Path
) -> None:
    project_id = create_project(
        guarded_label_studio, title="guarded", label_config=TEMPLATE_PATH.read_text()
    )
    answer = run_cellai(
        "import",
        write_cells(tmp_path / "cells.seg"),
        "--url",
        guarded_label_studio.url,
        "--project",
        project_id,
        "--files-dir",
        tmp_path / "files",
        "--backend-url",
        demo.connection_file.backend_url,
        LABEL_STUDIO_API_KEY=demo.connection_file.api_key,
    )
    assert answer.returncode == 4
    assert "refuses private addresses" in answer.stderr
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in answer.stderr
    assert guarded_label_studio.get("api/ml/", project=project_id) == []


def _import(folder: Path, url: str, *, api_key: str) -> subprocess.CompletedProcess[str]:
    return run_cellai(
        "import",
        write_cells(folder / "cells.seg"),
        "--url",
        url,
        "--files-dir",
        folder / "files",
        LABEL_STUDIO_API_KEY=api_key,
    )
