"""The label rule: ground truth, then majority, then the latest; skipped ones never count."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.labels import annotation_label, chosen_label

TAG = "cell_class"
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLASSES = ("rbc", "wbc", "plt")


def region(*choices: str, tag: str = TAG) -> dict[str, Any]:
    return {
        "from_name": tag,
        "to_name": "phase",
        "type": "choices",
        "value": {"choices": list(choices)},
    }


def annotation(label: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "result": [region(label)],
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": (START + timedelta(minutes=number)).isoformat().replace("+00:00", "Z"),
        "completed_by": 1,
        "prediction": {},
        **fields,
    }


@st.composite
def annotation_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    numbers = draw(st.lists(st.integers(1, 50), unique=True, max_size=8))
    return [
        annotation(
            draw(st.sampled_from(CLASSES)),
            number,
            ground_truth=draw(st.booleans()),
            was_cancelled=draw(st.booleans()),
        )
        for number in numbers
    ]


def counted(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [given for given in annotations if not given["was_cancelled"]]


def label_of(given: dict[str, Any]) -> str:
    return str(given["result"][0]["value"]["choices"][0])


@given(annotation_lists(), st.randoms())
def test_order_of_the_annotations_does_not_matter(
    annotations: list[dict[str, Any]], random: Any
) -> None:
    shuffled = random.sample(annotations, len(annotations))
    assert chosen_label(shuffled, from_name=TAG) == chosen_label(annotations, from_name=TAG)


@given(annotation_lists())
def test_label_has_the_most_votes_among_those_that_decide(
    annotations: list[dict[str, Any]],
) -> None:
    chosen = chosen_label(annotations, from_name=TAG)
    voters = counted(annotations)
    if not voters:
        assert chosen is None
        return
    assert chosen is not None
    deciding = [given for given in voters if given["ground_truth"]] or voters
    votes = Counter(label_of(given) for given in deciding)
    best = max(votes.values())
    tied = [given for given in deciding if votes[label_of(given)] == best]
    latest = max(tied, key=lambda given: given["id"])
    assert chosen.label == label_of(latest)
    assert chosen.annotation_id == latest["id"]
    assert chosen.is_ground_truth == latest["ground_truth"]
    assert chosen.n_annotations == len(voters)
    assert chosen.n_agreeing == sum(label_of(given) == chosen.label for given in voters)


@given(annotation_lists(), st.sampled_from(CLASSES))
def test_skipped_annotations_change_nothing(annotations: list[dict[str, Any]], label: str) -> None:
    skipped = annotation(label, 99, was_cancelled=True, ground_truth=True)
    before = chosen_label(annotations, from_name=TAG)
    assert chosen_label([*annotations, skipped], from_name=TAG) == before


@given(annotation_lists(), st.sampled_from(CLASSES))
def test_other_control_tags_change_nothing(annotations: list[dict[str, Any]], label: str) -> None:
    other = annotation(label, 99, result=[region(label, tag="quality")], ground_truth=True)
    mixed = [
        {**given, "result": [region(label, tag="quality"), *given["result"]]}
        for given in annotations
    ]
    assert chosen_label([other, *mixed], from_name=TAG) == chosen_label(annotations, from_name=TAG)


def test_one_ground_truth_beats_many() -> None:
    crowd = [annotation("rbc", number) for number in (2, 3, 4)]
    chosen = chosen_label([annotation("wbc", 1, ground_truth=True), *crowd], from_name=TAG)
    assert chosen is not None
    assert (chosen.label, chosen.is_ground_truth, chosen.n_agreeing) == ("wbc", True, 1)


def test_edited_annotation_is_the_latest() -> None:
    edited = annotation("plt", 1, updated_at="2027-01-01T00:00:00.5Z")
    chosen = chosen_label([edited, annotation("rbc", 7)], from_name=TAG)
    assert chosen is not None
    assert chosen.label == "plt"
    assert chosen.labelled_at == datetime(2027, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)


def test_times_of_other_zones_are_compared_as_instants() -> None:
    earlier = annotation("rbc", 9, updated_at="2026-01-01T14:00:00+02:00")
    later = annotation("wbc", 1, updated_at=datetime(2026, 1, 1, 12, 30))
    chosen = chosen_label([earlier, later], from_name=TAG)
    assert chosen is not None
    assert chosen.label == "wbc"


@pytest.mark.parametrize(
    ("completed_by", "annotator"),
    [({"id": 4, "email": "a@x.org"}, "a@x.org"), ({"id": 4}, "4"), (4, "4"), (None, "")],
)
def test_annotator_is_named_as_well_as_known(completed_by: object, annotator: str) -> None:
    chosen = chosen_label([annotation("rbc", 1, completed_by=completed_by)], from_name=TAG)
    assert chosen is not None
    assert chosen.annotator == annotator


@pytest.mark.parametrize(
    ("prediction", "version"),
    [({"model_version": "v3"}, "v3"), ({}, ""), (None, ""), (17, "")],
)
def test_model_version_is_the_one_shown(prediction: object, version: str) -> None:
    chosen = chosen_label([annotation("rbc", 1, prediction=prediction)], from_name=TAG)
    assert chosen is not None
    assert chosen.model_version == version


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        [region()],
        [region("rbc", "wbc")],
        [{**region("rbc"), "type": "labels"}],
        [{"from_name": TAG, "type": "choices"}],
    ],
)
def test_annotation_without_one_choice_carries_no_label(result: object) -> None:
    assert annotation_label({"id": 1, "result": result}, from_name=TAG) is None
    assert chosen_label([{"id": 1, "result": result}], from_name=TAG) is None


def test_unreadable_time_counts_as_the_oldest() -> None:
    undated = annotation("rbc", 8, updated_at="yesterday")
    chosen = chosen_label([undated, annotation("wbc", 1)], from_name=TAG)
    assert chosen is not None
    assert chosen.label == "wbc"
    alone = chosen_label([undated], from_name=TAG)
    assert alone is not None
    assert alone.labelled_at is None
