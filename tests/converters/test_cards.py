from pathlib import Path

import pytest

from converters.cards import render_placeholder, write_card


def test_placeholder_gives_the_reason_as_text() -> None:
    card = render_placeholder("No <model> & no labels yet.")
    assert "No &lt;model&gt; &amp; no labels yet." in card


def test_card_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.html"
    write_card(path, "old")
    write_card(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.html"]


def test_failed_write_keeps_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.html"
    write_card(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("converters.cards.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_card(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.html"]
