import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import LabelConfigError
from converters.label_config import TEMPLATE_PATH, read_label_config, write_label_config

SIMPLE = """<View><Image name="cell" value="$image"/>
<Choices name="kind" toName="cell"{attributes}>{options}</Choices></View>"""


def config(options: str, attributes: str = "") -> str:
    return SIMPLE.format(options=options, attributes=attributes)


def test_default_config_names_the_five_classes_in_order() -> None:
    read = read_label_config(TEMPLATE_PATH.read_text(encoding="utf-8"))
    assert read.classes == ("rbc", "wbc", "plt", "agg", "oof")
    assert read.titles[0] == "Red blood cell"
    assert (read.from_name, read.to_name) == ("cell_class", "card")
    assert {"phase", "amplitude", "image", "card"} <= set(read.data_keys)


def test_data_key_source_is_not_shown() -> None:
    # Label Studio 1.23.2 replaces $source by the JSON of the whole task, seen in the browser.
    assert "source" not in read_label_config(TEMPLATE_PATH.read_text(encoding="utf-8")).data_keys


def test_default_hotkeys_are_unique_letters_of_the_class() -> None:
    options = list(ET.parse(TEMPLATE_PATH).getroot().iter("Choice"))  # noqa: S314 - our own file
    keys = [option.attrib["hotkey"] for option in options]
    assert len(set(keys)) == len(keys)
    assert "u" not in keys
    assert all(key in option.attrib["value"] for key, option in zip(keys, options, strict=True))


def test_class_id_is_the_alias_where_label_studio_stores_the_alias() -> None:
    read = read_label_config(config('<Choice value="Red" alias="rbc"/><Choice value="wbc"/>'))
    assert read.classes == ("rbc", "wbc")
    assert read.titles == ("Red", "wbc")


def test_title_has_no_markup() -> None:
    read = read_label_config(
        config('<Choice value="a" html="&lt;b&gt;A&lt;/b&gt; &amp;lt; 1"/><Choice value="b"/>')
    )
    assert read.titles == ("A < 1", "b")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<View>", "not XML"),
        ("\ud800", "not XML"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View/>', "DOCTYPE"),
        ("<View/>", "no Choices tag"),
        (
            '<View><Choices name="a" toName="x"/><Choices name="b" toName="x"/></View>',
            "2 Choices tags: 'a', 'b'",
        ),
        (config('<Choice value="a"/><Choice value="b"/>', ' choice="multiple"'), "several classes"),
        (config('<Choice value="a"/>'), r"1 class\(es\): a"),
        (config(""), r"0 class\(es\): none"),
        (config('<Choice value="a"/><Choice value="a"/>'), "twice: 'a'"),
        (config('<Choice value="a"/><Choice/>'), "cannot store these class names: ''"),
        (config('<Choice value="a"/><Choice value="$b"/>'), r"cannot store .*'\$b'"),
        (config('<Choice value="a"><Choice value="c"/></Choice><Choice value="b"/>'), "inside"),
        (
            '<View><Choices name="k" toName="x"><Choice value="a"/></Choices></View>',
            "toName='x', which names nothing",
        ),
    ],
)
def test_unusable_config_is_refused_with_the_reason(xml: str, message: str) -> None:
    with pytest.raises(LabelConfigError, match=message) as raised:
        read_label_config(xml)
    assert raised.value.hint


names = st.text(min_size=1, max_size=12).filter(
    lambda name: name == name.strip() and name.isprintable() and "$" not in name
)


@given(st.lists(names, min_size=2, max_size=45, unique=True))
def test_written_config_reads_back_the_same_classes(classes: list[str]) -> None:
    xml = write_label_config(classes)
    assert read_label_config(xml).classes == tuple(classes)
    keys = re.findall(r'hotkey="(.)"', xml)
    assert len(keys) == min(len(classes), 35)
    assert len(set(keys)) == len(keys)
    assert "u" not in keys


def test_written_config_keeps_the_page_and_loses_the_blood_cells() -> None:
    template = read_label_config(TEMPLATE_PATH.read_text(encoding="utf-8"))
    written = write_label_config(["benign", "blast"])
    read = read_label_config(written)
    assert read.data_keys == template.data_keys
    assert 'hotkey="b"' in written
    assert 'hotkey="l"' in written
    assert "rbc" not in written


@pytest.mark.parametrize("classes", [[], ["a"], ["a", "a"], ["a", " b"], ["a", "b\n"], ["a", ""]])
def test_classes_that_cannot_be_stored_are_refused(classes: list[str]) -> None:
    with pytest.raises(LabelConfigError):
        write_label_config(classes)
