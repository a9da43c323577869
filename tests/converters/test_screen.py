import json

import pytest

from converters.label_config import TEMPLATE_PATH, read_label_config, write_label_config
from converters.screen import EDITOR_KEYMAP, data_manager_tabs


def test_keymap_gives_enter_to_submit_alone() -> None:
    keymap = json.loads(EDITOR_KEYMAP)
    keys = {name: entry["key"].split(",") for name, entry in keymap.items()}
    assert keys["annotation:submit"] == ["enter", "ctrl+enter"]
    assert [name for name, bound in keys.items() if "enter" in bound] == ["annotation:submit"]
    # Label Studio throws the whole keymap away when it finds an unknown property.
    assert all(set(entry) <= {"key", "mac", "description"} for entry in keymap.values())


def test_first_tab_is_the_queue() -> None:
    config = read_label_config(TEMPLATE_PATH.read_text(encoding="utf-8"))
    tabs = list(data_manager_tabs(config))
    assert [tab["title"] for tab in tabs] == [
        "Uncertain first",
        "Second look",
        *config.titles,
        "Skipped",
    ]
    assert tabs[0]["ordering"] == ["tasks:predictions_score"]
    hidden = tabs[0]["hiddenColumns"]["explore"]
    assert "tasks:data.phase" not in hidden
    assert {"tasks:data.card", "tasks:predictions_results"} <= set(hidden)


@pytest.mark.parametrize(("n_classes", "n_tabs"), [(2, 5), (8, 11), (9, 3)])
def test_many_classes_have_no_tabs(n_classes: int, n_tabs: int) -> None:
    config = read_label_config(write_label_config([f"class {k}" for k in range(n_classes)]))
    assert len(list(data_manager_tabs(config))) == n_tabs


def test_class_is_searched_as_it_stands_in_the_stored_json() -> None:
    config = read_label_config(write_label_config(['λ "x"', "b"]))
    _, _, first, *_ = data_manager_tabs(config)
    assert first["filters"]["items"][0]["value"] == r'"\u03bb \"x\""'
