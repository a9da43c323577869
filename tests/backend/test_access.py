"""The door: right passwords always pass, guesses are few, and nothing grows without end."""

import hmac
import time

import pytest

from backend.access import MAX_ADDRESSES, MAX_FAILURES, WINDOW_SECONDS, Doorkeeper


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def door(clock: list[float]) -> Doorkeeper:
    return Doorkeeper("cellai", "right")


def fail(door: Doorkeeper, address: str, times: int = MAX_FAILURES) -> None:
    for number in range(times):
        assert not door.judge(address, "cellai", f"guess {number}").is_admitted


@pytest.mark.parametrize(
    ("user", "password"),
    [("cellai", "wrong"), ("other", "right"), ("", ""), ("cellai", ""), ("é\udc80", "\udcff")],
)
def test_only_the_right_pair_passes(door: Doorkeeper, user: str, password: str) -> None:
    assert not door.judge("10.0.0.1", user, password).is_admitted
    assert door.judge("10.0.0.1", "cellai", "right").is_admitted


def test_after_ten_guesses_even_the_right_one_tells_nothing(door: Doorkeeper) -> None:
    fail(door, "10.0.0.1")
    right, wrong = (door.judge("10.0.0.1", "cellai", word) for word in ("right", "wrong"))
    assert right == wrong
    assert (right.is_admitted, right.retry_after_s) == (False, WINDOW_SECONDS)


def test_the_limit_ends_with_its_window(door: Doorkeeper, clock: list[float]) -> None:
    fail(door, "10.0.0.1")
    clock[0] += WINDOW_SECONDS - 0.5
    assert door.judge("10.0.0.1", "cellai", "right").retry_after_s == 1
    clock[0] += 1
    assert door.judge("10.0.0.1", "cellai", "right").is_admitted


def test_other_addresses_are_heard(door: Doorkeeper) -> None:
    fail(door, "10.0.0.1")
    assert door.judge("10.0.0.2", "cellai", "right").is_admitted


def test_label_studio_is_not_locked_out_by_guesses_from_its_own_address(door: Doorkeeper) -> None:
    assert door.judge("10.0.0.1", "cellai", "right").is_admitted
    fail(door, "10.0.0.1", 3 * MAX_FAILURES)
    assert door.judge("10.0.0.1", "cellai", "wrong").retry_after_s > 0
    assert door.judge("10.0.0.1", "cellai", "right").is_admitted


def test_unknown_user_and_wrong_password_get_the_same_answers(door: Doorkeeper) -> None:
    for _ in range(2 * MAX_FAILURES):
        assert door.judge("a", "cellai", "wrong") == door.judge("b", "nobody", "right")


def test_asking_without_a_password_is_no_guess(door: Doorkeeper) -> None:
    for _ in range(5 * MAX_FAILURES):
        assert door.judge("10.0.0.1", "", "").retry_after_s == 0


def test_addresses_of_one_network_count_together(door: Doorkeeper) -> None:
    for number in range(MAX_FAILURES):
        door.judge(f"2001:db8:1:2::{number:x}", "cellai", "guess")
    assert door.judge("2001:db8:1:2::ffff", "cellai", "guess").retry_after_s > 0
    assert door.judge("2001:db8:1:3::1", "cellai", "guess").retry_after_s == 0


def test_memory_is_bounded(door: Doorkeeper) -> None:
    for number in range(MAX_ADDRESSES + 500):
        door.judge(f"host-{number}", "cellai", "guess")
    assert len(door._callers) == MAX_ADDRESSES


def test_user_and_password_are_compared_in_constant_time(
    door: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both by `compare_digest`, whichever is wrong, and its word is what counts."""
    compared: list[bytes] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append(right)
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for user, password in (("cellai", "right"), ("cellai", "x"), ("x", "right"), ("x", "x")):
        compared.clear()
        assert not door.judge("10.0.0.1", user, password).is_admitted
        assert compared == [b"cellai", b"right"]
