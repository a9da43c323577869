"""The restricted reader builds float32 arrays and refuses everything else."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from backend.array_pickle import read_arrays
from backend.errors import WeightsError


def old_pickle(tree: object) -> bytes:
    """As numpy 1 wrote it (numpy 2 renamed the module in the pickle)."""
    content = pickle.dumps(tree, protocol=3)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_nested_arrays_come_back_by_path() -> None:
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"net": {"conv": {"kernel": kernel, "bias": np.array([1, 2], np.float32)}}}
    arrays = read_arrays(old_pickle(tree))
    assert arrays.keys() == {"net/conv/kernel", "net/conv/bias"}
    np.testing.assert_array_equal(arrays["net/conv/kernel"], kernel)
    np.testing.assert_array_equal(arrays["net/conv/bias"], [1, 2])


def test_column_order_is_kept() -> None:
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(read_arrays(old_pickle({"a": values}))["a"], values)


class Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_nothing_is_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    with pytest.raises(WeightsError, match=r"the name (posix|nt)\.system"):
        read_arrays(old_pickle({"a": Attack(f"touch {proof}")}))
    assert not proof.exists()
    # The same bytes do run in an ordinary reader: the attack is a real one.
    pickle.loads(old_pickle(Attack(f"touch {proof}")))  # noqa: S301
    assert proof.exists()


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"a": np.zeros(3)}, "'f8'"),
        ({"a": np.array([object], dtype=object)}, "'O8'"),
        ({"a": np.zeros(3, dtype=">f4")}, "byte order '>'"),
        ({"a": [1.0]}, "a list at 'a'"),
        ([], "a list at ''"),
    ],
)
def test_everything_else_is_refused(tree: object, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        read_arrays(old_pickle(tree))


def test_shape_must_match_the_bytes() -> None:
    content = old_pickle({"a": np.zeros(3, np.float32)})
    assert content.count(b"(K\x01K\x03\x85") == 1
    with pytest.raises(WeightsError, match=r"12 bytes for shape \(200,\)"):
        read_arrays(content.replace(b"(K\x01K\x03\x85", b"(K\x01K\xc8\x85"))


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: dict[str, object] = {}
    tree["a"] = tree
    with pytest.raises(WeightsError, match="recursion"):
        read_arrays(old_pickle(tree))


@pytest.mark.parametrize("keep", [0, 1, 40, 90])
def test_truncated_content_is_refused(keep: int) -> None:
    content = old_pickle({"a": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError):
        read_arrays(content[:keep])
