"""Run all measurements: `python -m benchmarks [--full] [--data FILE,FILE] [--only PART]`."""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from backend.feature_cache import FeatureCache
from backend.features import load_trunk
from backend.weights import resolve_weights
from benchmarks.compute import Workload, measure_compute
from benchmarks.contention import contention_numbers
from benchmarks.finished import FinishedRuns, code_digest, features_digest
from benchmarks.label_studio_import import import_numbers
from benchmarks.labelled_features import LabelledFeatures, read_labelled_features
from benchmarks.learning import (
    BUDGET,
    FULL_BUDGET,
    FULL_STRATEGIES,
    STRATEGIES,
    Run,
    Simulation,
    full_macro_f1,
    simulate,
    split,
    use_one_thread,
)
from benchmarks.model_checks import measure_model, objection
from benchmarks.precision import measure_precision
from benchmarks.results import Results, learning_numbers
from benchmarks.versions import measure_versions
from converters.errors import CellAIError
from converters.sample import write_sample_crops

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
RGB = SHARED / "bccd5_rgb.h5"
OUT = Path(__file__).resolve().parent / "out"
SEEDS, FULL_SEEDS = 3, 8
SAMPLE_CELLS = 1600
LEAST_CROPS = 60  # of them a third are for the test; with fewer a curve has three points
CACHE_BYTES = 4_000_000_000
PARTS = ("compute", "learning", "import")


def main() -> None:
    """Measure, and write results.json, results.md and the plots."""
    try:
        _measure(_parse())
    except CellAIError as error:
        raise SystemExit(str(error)) from error


def _measure(options: argparse.Namespace) -> None:
    (OUT / "part").mkdir(parents=True, exist_ok=True)
    parts = options.only or PARTS
    results = Results(OUT / "part" if options.only or options.data else OUT, full=options.full)
    if "compute" in parts and options.data is None:
        _measure_compute(results, full=options.full)
    if "import" in parts and options.data is None:
        for name, value in import_numbers(load_trunk(_weights())):
            results.add(name, value)
    if "learning" in parts:
        _measure_learning(results, options.data, full=options.full)
    results.write()
    print(f"Written: {results.folder / 'results.json'}, results.md and plots beside it.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--full",
        action="store_true",
        help="8 seeds instead of 3, all strategies, 200 labels instead of 100, 100,000 crops, int8",
    )
    parser.add_argument(
        "--data",
        type=lambda text: [Path(part) for part in text.split(",")],
        help="labelled files to measure learning on instead of the usual ones, written to out/part",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts, written to out/part")
    return parser.parse_args()


def _measure_compute(results: Results, *, full: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 96, 96, 3), np.uint8)
    work = Workload(load_trunk(_weights()), pixels)
    for name, value in measure_compute(work):
        results.add(name, value)
    for name, value in contention_numbers(_weights()):
        results.add(name, value)
    for name, value in measure_versions(work.trunk, full=full):
        results.add(name, value)
    if full and RGB.exists():
        for name, value in measure_precision(_weights(), RGB):
            results.add(name, value)


def _measure_learning(results: Results, paths: list[Path] | None, *, full: bool) -> None:
    seeds = range(FULL_SEEDS if full else SEEDS)
    trunk = load_trunk(_weights())
    # Not in `features`, whose records of before have no maps, which would not be missed here.
    cache = FeatureCache(OUT / "cache", trunk, max_bytes=CACHE_BYTES)
    simulations = [
        Simulation(seed, balanced, strategy, FULL_BUDGET if full else BUDGET)
        for balanced in (False, True)
        for seed in seeds
        for strategy in (FULL_STRATEGIES if full else STRATEGIES)
    ]
    datasets = []
    for name, path in _sources(paths).items():
        print(f"Reading {path.name}", flush=True)
        data = read_labelled_features(path, trunk, cache, name=name)
        datasets.append(_splittable(data, simulations))
    for run in _runs(datasets, simulations):
        results.add_run(run)
    for name, value in learning_numbers(results.runs):
        results.add(name, value)
    for data in datasets:
        if why := objection(data):
            print(f"Order and maps are not measured on {data.name}: {why}")
            continue
        for name, value in measure_model(data, cache):
            results.add(f"{name}_{data.name}", value)


def _runs(datasets: Sequence[LabelledFeatures], simulations: Sequence[Simulation]) -> Iterator[Run]:
    """All runs, as they are done; first those that an interrupted benchmark left."""
    finished = FinishedRuns(OUT / "simulations.jsonl")
    code = code_digest()
    missing = {}
    for data in datasets:
        of_data = f"{code} {features_digest(data)}"
        for simulation in simulations:
            key = f"{of_data} {simulation}"
            if run := finished.get(key):
                yield run
            else:
                missing[key] = (data, simulation)
    with ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=get_context("spawn"),
        initializer=use_one_thread,
    ) as pool:
        of_splits = {(data.name, some.split): (data, some) for data, some in missing.values()}
        scores = pool.map(full_macro_f1, *zip(*of_splits.values(), strict=True))
        score_of = dict(zip(of_splits, scores, strict=True))
        futures = {
            pool.submit(simulate, data, some, full_score=score_of[data.name, some.split]): key
            for key, (data, some) in missing.items()
        }
        for future in as_completed(futures):
            finished.add(futures[future], future.result())
            yield future.result()


def _splittable(data: LabelledFeatures, simulations: Sequence[Simulation]) -> LabelledFeatures:
    """The data set, if there is something to learn and something to test in each split.

    Raises:
        SystemExit: it has one field or image only, one class only, or too few labels.
    """
    if len(np.unique(data.groups)) < 2:
        raise SystemExit(
            f"All labelled crops of {data.name} are of one field or image ({data.groups[0]}), so"
            " none would be left to test; give a file with several."
        )
    if len(data.classes) < 2:
        raise SystemExit(
            f"All labelled crops of {data.name} are {data.classes[0]}; give a file with several"
            " classes."
        )
    if len(data.labels) < LEAST_CROPS:
        raise SystemExit(
            f"{data.name} has {len(data.labels)} labelled crops, fewer than {LEAST_CROPS}; give a"
            " file with more."
        )
    for seed, balanced in {some.split for some in simulations}:
        learned = np.unique(split(data, seed=seed, balanced=balanced).pool.labels)
        if len(learned) < 2:
            raise SystemExit(
                f"All crops of {data.name} to learn from are {data.classes[learned[0]]} when a"
                " third of the fields are kept for the test; give a file in which the other"
                " classes are in more fields."
            )
    return data


def _sources(paths: list[Path] | None) -> dict[str, Path]:
    """The files asked for, else those at hand and the generated sample, by name.

    Raises:
        SystemExit: two of the files asked for have one name.
    """
    if paths is not None:
        by_name = {path.stem: path for path in paths}
        if len(by_name) < len(paths):
            raise SystemExit("Two of the files have one name; results are named after the files.")
        return by_name
    sample = OUT / f"sample-{SAMPLE_CELLS}.seg"
    if not sample.exists():
        write_sample_crops(sample, n_cells=SAMPLE_CELLS, seed=1)
    named = {"bccd5_rgb": RGB, "bccd5": SHARED / "bccd5.seg"}
    for path in named.values():
        if not path.exists():
            print(f"Not measured, because absent: {path}")
    return {name: path for name, path in named.items() if path.exists()} | {"sample": sample}


def _weights() -> Path:
    """The weights named in CELLAI_WEIGHTS, else those beside the data, else found as usual."""
    named = os.environ.get("CELLAI_WEIGHTS")
    beside_data = SHARED / "vgg16_features.safetensors"
    explicit = Path(named) if named else beside_data if beside_data.exists() else None
    return resolve_weights(explicit, cache_dir=OUT / "weights")


if __name__ == "__main__":
    main()
