"""The goals of docs/model.md, and which of them a run reached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

AT_LEAST = {
    "trunk_fraction_of_peak_96": 0.8,
    "trunk_fraction_of_peak_224": 0.8,
    "original_over_ours": 40.0,
    "shared_mask_speedup": 3.0,
}
AT_MOST = {
    "predict_over_forward_96": 1.1,
    "predict_over_forward_224": 1.1,
    "rescore_10k_share_of_import": 0.2,
}
MOST_LABELS_RATIO = 0.5
MOST_RISK_HALF = 0.1


@dataclass(frozen=True, slots=True)
class Goal:
    """A number beside what it should be.

    Attributes:
        name: of the number.
        value: of this run.
        wanted: the goal in words.
        is_met: whether the value is that.
    """

    name: str
    value: float
    wanted: str
    is_met: bool


def goals(numbers: Mapping[str, float], datasets: Sequence[str]) -> Iterator[Goal]:
    """The goals of which the run has the numbers.

    Args:
        numbers: all flat numbers by name.
        datasets: names of the data sets, "_balanced" behind those with as many of each class.
    """
    for name, least in AT_LEAST.items():
        if name in numbers:
            yield Goal(name, numbers[name], f"at least {least:g}", numbers[name] >= least)
    for name, most in AT_MOST.items():
        if name in numbers:
            yield Goal(name, numbers[name], f"at most {most:g}", numbers[name] <= most)
    for dataset in datasets:
        yield from _of_dataset(numbers, dataset)


def _of_dataset(numbers: Mapping[str, float], dataset: str) -> Iterator[Goal]:
    ratio, area, lowest = (
        numbers[f"{name}_{dataset}"]
        for name in ("labels_to_95_ratio", "area_gain", "first50_lowest")
    )
    error = numbers.get(f"area_gain_{dataset}_se", 0.0)
    if dataset.endswith("_balanced"):
        wanted = f"at least minus its standard error, {error:.3f}"
        yield Goal(f"area_gain_{dataset}", area, wanted, area >= -error)
    else:
        wanted = f"at most {MOST_LABELS_RATIO:g}"
        yield Goal(f"labels_to_95_ratio_{dataset}", ratio, wanted, ratio <= MOST_LABELS_RATIO)
        yield Goal(f"area_gain_{dataset}", area, "above 0", area > 0)
    yield Goal(f"first50_lowest_{dataset}", lowest, "at least 0", lowest >= 0)
    wanted = f"below {MOST_RISK_HALF:g}"
    for name in (f"risk_half_{dataset}", f"risk_half_together_{dataset}"):
        yield Goal(name, numbers[name], wanted, numbers[name] < MOST_RISK_HALF)
