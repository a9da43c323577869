"""What the queue is for: few labels, in the order it asks for them, give a good model."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from installation import Installation, OwnBackend, annotate, shared_file, wait_until
from sklearn.metrics import f1_score

from backend.features import load_trunk
from backend.head import Head
from backend.registry import Registry
from converters.backend_client import BackendClient
from converters.crops import ReadOptions
from converters.label_config import TEMPLATE_PATH, read_label_config
from converters.reading import iter_crops
from converters.rendering import model_input

pytestmark = pytest.mark.label_studio

N_LABELS = 300
BATCH = 50
HELD_OUT_SHARE = 0.5


@pytest.mark.timeout(1500)
def test_macro_f1_after_300_queue_ordered_labels(
    backend: OwnBackend,
    demo: Installation,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The annotator labels what comes next, 50 cells per version; other fields are the test."""
    source = shared_file("bccd5.seg")
    pool, held_out = _split_by_field(source, tmp_path)
    with h5py.File(pool) as file:
        truth = [label.decode() for label in file["label/ground_truth"][:]]
    client = BackendClient(backend.address)
    with backend.running(CELLAI_QUIET_SECONDS="60", CELLAI_MAX_NEW_LABELS=str(BATCH)):
        project_id = backend.import_source(pool)
        wait_until(
            lambda: client.queue_state(project_id).is_sorted, deadline_s=300, what="cold start"
        )
        for n_labels in range(BATCH, N_LABELS + 1, BATCH):
            for _ in range(BATCH):
                task = demo.label_studio.get(f"api/projects/{project_id}/next")
                annotate(demo.label_studio, task["id"], truth[task["data"]["index"]])
            state = wait_until(
                lambda n=n_labels: (  # type: ignore[misc]
                    state
                    if (state := client.queue_state(project_id)).n_labels == n and state.is_sorted
                    else None
                ),
                deadline_s=120,
                what=f"version with {n_labels} labels",
            )
    client.close()
    registry = Registry(backend.data_dir / "models")
    assert state.model_version is not None
    version = registry.get(project_id, state.model_version)
    predicted, expected = _evaluate(Head.from_tensors(registry.tensors(version)), weights, held_out)
    score = f1_score(expected, predicted, average="macro")
    with capsys.disabled():
        print(f"\nmacro-F1 on {len(expected)} held-out cells after {N_LABELS} labels: {score:.3f}")
    assert score > 0.9


def _split_by_field(source: Path, folder: Path) -> tuple[Path, Path]:
    """Two files that share no field of view: the pool and the cells to test on."""
    with h5py.File(source) as file:
        fields = file["meta/field_group"][:]
    chosen = np.random.default_rng(0).permutation(np.unique(fields))
    is_held_out = np.isin(fields, chosen[: round(HELD_OUT_SHARE * len(chosen))])
    paths = folder / "pool.seg", folder / "held_out.seg"
    for path, rows in zip(paths, (~is_held_out, is_held_out), strict=True):
        with h5py.File(source) as file, h5py.File(path, "w") as part:
            for name in ("phase/images", "amplitude/images", "mask/images"):
                part[name] = file[name][:][rows]
            part["label/ground_truth"] = file["label/ground_truth"][:][rows]
            part["meta/field_group"] = fields[rows]
    return paths


def _evaluate(head: Head, weights: Path, held_out: Path) -> tuple[list[int], list[int]]:
    """Predicted and true class index of the held-out cells."""
    classes = read_label_config(TEMPLATE_PATH.read_text()).classes
    crops = list(iter_crops([held_out], options=ReadOptions()))
    pixels = np.stack([model_input(crop) for crop in crops])
    features = load_trunk(weights).extract(pixels, mode="both").features
    predicted = head.logits(torch.from_numpy(features)).argmax(dim=1)
    return predicted.tolist(), [classes.index(crop.label) for crop in crops if crop.label]
