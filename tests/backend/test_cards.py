import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from backend.cards import describe_uncertainty, overlay_heat, render_card

TITLES = ["Red blood cell", "White blood cell", "Platelet"]


def card(**changes: object) -> str:
    rng = np.random.default_rng(0)
    parts: dict[str, object] = {
        "cell": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        "heat": rng.random((12, 12), dtype=np.float32),
        "classes": TITLES,
        "probabilities": np.array([0.2, 0.7, 0.1], np.float32),
        "uncertainty": 0.53,
        "model_version": "v3",
        "n_labels": 42,
    }
    return render_card(**{**parts, **changes})  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Open tags, and the text outside <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if "style" not in self.open:
            self.text.append(text)


def visible_text(html: str) -> str:
    tags = Tags(html)
    assert tags.open == []
    return " ".join(" ".join(tags.text).split())


def picture(html: str) -> Image.Image:
    found = re.search(r"url\(data:image/jpeg;base64,([A-Za-z0-9+/=]+)\)", html)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_card_says_class_percent_uncertainty_version_and_labels() -> None:
    text = visible_text(card())
    assert "Red blood cell 20 % ▸ White blood cell 70 % Platelet 10 %" in text
    assert "The model is unsure (uncertainty 0.53)" in text
    assert "Model v3, trained on 42 labels" in text


def test_bars_are_as_long_as_the_probabilities_and_only_the_predicted_is_marked() -> None:
    html = card()
    assert re.findall(r"width:([\d.]+)%\"", html) == ["20.0", "70.0", "10.0"]
    assert len(re.findall(r'class="cc-bar cc-top"', html)) == 1
    assert re.search(r"cc-top\"[^>]*>▸ White", html)


def test_one_label_is_not_plural() -> None:
    assert "trained on 1 label<" in card(n_labels=1)


def test_all_text_is_escaped() -> None:
    html = card(
        classes=["<script>alert(1)</script>", 'a"b', "c&d"], model_version="<img src=x onerror=y>"
    )
    assert "<script" not in html
    assert "<img" not in html
    assert 'title="a&quot;b"' in html
    assert 'a"b' in visible_text(html)


def test_many_classes_show_the_likeliest_and_the_rest_as_one() -> None:
    probabilities = np.array([0.01, 0.3, *[0.02] * 6, 0.03, 0.1, 0.42, 0.02], np.float32)
    text = visible_text(card(classes=[f"k{i:02}" for i in range(12)], probabilities=probabilities))
    shown = re.findall(r"(k\d\d|5 others) (\d+) %", text)
    assert len(shown) == 8
    assert shown[0] == ("k01", "30")
    assert ("k10", "42") in shown
    assert shown[-1] == ("5 others", "9")


def test_picture_is_a_jpeg_and_the_card_small() -> None:
    smooth = np.full((96, 96, 3), 200, np.uint8)
    smooth[30:60, 30:60] = 90
    html = card(cell=smooth)
    assert picture(html).size == (144, 144)
    assert len(html.encode()) < 12_000


def test_card_without_a_probability_for_each_class_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        card(probabilities=np.array([0.5, 0.5], np.float32))


def test_overlay_is_coloured_where_it_is_hot_and_grey_where_it_is_cold() -> None:
    cell = np.full((96, 96, 3), 128, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[6:, 6:] = 1.0
    overlay = overlay_heat(cell, heat).astype(int)
    red, green, blue = overlay[-2, -2]
    assert red > blue + 60  # yellow
    assert green > blue + 60
    assert np.ptp(overlay[2, 2]) < 15  # nearly grey
    assert overlay.shape == (144, 144, 3)


@pytest.mark.parametrize(
    ("shape", "spot"),
    [((96, 96), (0.25, 0.25)), ((192, 192), (0.25, 0.25)), ((64, 64), (0.125, 0.125))],
)
def test_overlay_is_hot_where_the_trunk_saw_it(
    shape: tuple[int, int], spot: tuple[float, float]
) -> None:
    """Around a crop of less than 96 px that is its border repeated, which is not shown."""
    places = (np.arange(48) + 0.5) / 48
    distance = np.hypot(places[:, None] - 0.25, places[None] - 0.25)
    heat = np.exp(-((distance / 0.06) ** 2)).astype(np.float32)
    overlay = overlay_heat(np.full((*shape, 3), 128, np.uint8), heat).astype(int)
    row, column = np.unravel_index((overlay[..., 0] - overlay[..., 2]).argmax(), overlay.shape[:2])
    found = (row / overlay.shape[0], column / overlay.shape[1])
    assert found == pytest.approx(spot, abs=0.02)


def test_overlay_of_a_long_picture_is_not_distorted() -> None:
    overlay = overlay_heat(np.full((50, 100, 3), 128, np.uint8), np.eye(4, dtype=np.float32))
    assert overlay.shape == (72, 144, 3)


def test_overlay_of_a_large_crop_keeps_its_size() -> None:
    assert overlay_heat(np.zeros((256, 256, 3), np.uint8), np.ones((4, 4), np.float32)).shape == (
        256,
        256,
        3,
    )


@pytest.mark.parametrize(
    ("uncertainty", "words"),
    [(0.0, "sure"), (0.2, "fairly sure"), (0.5, "unsure"), (0.9, "guessing"), (1.0, "guessing")],
)
def test_uncertainty_in_words(uncertainty: float, words: str) -> None:
    assert describe_uncertainty(uncertainty) == f"The model is {words}"
