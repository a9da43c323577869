from pathlib import Path

import pytest

from converters.placeholder import render_placeholder, write_card


def test_placeholder_gives_the_reason_as_text() -> None:
    card = render_placeholder("No <model> & no labels yet.")
    assert "No &lt;model&gt; &amp; no labels yet." in card


def test_placeholder_names_the_version_that_ordered_the_queue() -> None:
    assert "ordered by v&lt;1&gt;" in render_placeholder("No labels.", model_version="v<1>")
    assert "ordered by" not in render_placeholder("No labels.")


def test_card_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.html"
    write_card(path, "old")
    write_card(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.html"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    occupied = tmp_path / "c.html"
    occupied.mkdir()
    with pytest.raises(IsADirectoryError):
        write_card(occupied, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.html"]
