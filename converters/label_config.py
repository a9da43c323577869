"""The labelling config of a project: read the classes from it, write one for other classes.

In: the XML that Label Studio calls labelling config. Out: names and classes, in the order that is
the class index. `label_config.xml` beside the packages is the default and the template.
"""

import html
import re
import string
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.errors import LabelConfigError

TEMPLATE_PATH = Path(__file__).resolve().parent.parent / "label_config.xml"

# Label Studio 1.23.2 binds "u" to "unselect region" on every labelling page.
_RESERVED_HOTKEYS = frozenset("u")
_HOTKEYS = string.ascii_lowercase + string.digits
_MARKUP = re.compile(r"<[^>]*>")
_DATA_KEY = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What a labelling config says about the classification.

    Attributes:
        from_name: name of the Choices tag, `from_name` of every result.
        to_name: name of the tag the choices belong to, `to_name` of every result.
        classes: ids as Label Studio stores them and as they stand in the file; index = class index.
        titles: what the annotator reads for each class, without markup.
        data_keys: keys of the task data that the page shows, in order of appearance.
    """

    from_name: str
    to_name: str
    classes: tuple[str, ...]
    titles: tuple[str, ...]
    data_keys: tuple[str, ...]


def read_label_config(xml: str) -> LabelConfig:
    """Classes and names of a labelling config with exactly one single-choice Choices tag.

    Args:
        xml: the labelling config.

    Returns:
        Names and classes; a class id is the choice's `alias` where it has one, else its `value`,
        which is what Label Studio stores.

    Raises:
        LabelConfigError: not XML, no or several Choices, fewer than two classes, a class twice,
            or choices that Label Studio would not store as one class id.
    """
    root = _parse(xml)
    choices = _single_choices(root)
    from_name, to_name = _names(root, choices)
    options = choices.findall("Choice")
    classes = tuple(_stored_id(option) for option in options)
    _check_classes(classes)
    return LabelConfig(
        from_name=from_name,
        to_name=to_name,
        classes=classes,
        titles=tuple(_title(option) for option in options),
        data_keys=tuple(dict.fromkeys(_data_keys(root))),
    )


def write_label_config(classes: Sequence[str]) -> str:
    """The labelling page of `label_config.xml` for other classes.

    Args:
        classes: two or more class ids as they stand in the file; index = class index.

    Returns:
        Labelling config; each class has a hotkey of its own while keys last (35 classes).

    Raises:
        LabelConfigError: fewer than two classes, a class twice, or a name that cannot be stored.
    """
    wanted = tuple(classes)
    _check_classes(wanted)
    root = _parse(TEMPLATE_PATH.read_text(encoding="utf-8"))
    choices = _single_choices(root)
    for option in choices.findall("Choice"):
        choices.remove(option)
    for class_id, hotkey in zip(wanted, _hotkeys(wanted), strict=True):
        option = ET.SubElement(choices, "Choice", {"value": class_id})
        if hotkey:
            option.set("hotkey", hotkey)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _parse(xml: str) -> ET.Element:
    """Root of the config; a DOCTYPE is refused, for only its entities can harm a parser."""
    hint = "Give the labelling config as Label Studio shows it under Settings > Labeling Interface."
    if "<!DOCTYPE" in xml:
        raise LabelConfigError("The labelling config has a DOCTYPE.", hint="Remove it.")
    try:
        return ET.fromstring(xml)  # noqa: S314 - no DOCTYPE, so no entities
    except (ET.ParseError, ValueError) as error:
        raise LabelConfigError(f"The labelling config is not XML: {error}.", hint=hint) from error


def _single_choices(root: ET.Element) -> ET.Element:
    found = list(root.iter("Choices"))
    if not found:
        raise LabelConfigError(
            "The labelling config has no Choices tag.",
            hint='Add <Choices name="…" toName="…"> with one <Choice value="…"/> for each class.',
        )
    if len(found) > 1:
        names = ", ".join(repr(choices.get("name", "")) for choices in found)
        raise LabelConfigError(
            f"The labelling config has {len(found)} Choices tags: {names}.",
            hint="Keep the one that holds the cell classes.",
        )
    if found[0].get("choice", "single") == "multiple":
        raise LabelConfigError(
            f"Choices {found[0].get('name', '')!r} allows several classes for one cell.",
            hint='Set choice="single-radio".',
        )
    return found[0]


def _names(root: ET.Element, choices: ET.Element) -> tuple[str, str]:
    from_name, to_name = choices.get("name", ""), choices.get("toName", "")
    shown = {tag.get("name", "") for tag in root.iter() if "$" in tag.get("value", "")}
    if not from_name or to_name not in shown:
        raise LabelConfigError(
            f"Choices {from_name!r} belongs to toName={to_name!r}, which names nothing shown.",
            hint="Give Choices a name, and as toName the name of the picture or card.",
        )
    return from_name, to_name


def _stored_id(option: ET.Element) -> str:
    if option.find("Choice") is not None:
        raise LabelConfigError(
            f"Choice {option.get('value', '')!r} has choices inside.",
            hint="Give every class a Choice of its own, side by side.",
        )
    return option.get("alias", "") or option.get("value", "")


def _title(option: ET.Element) -> str:
    shown = html.unescape(_MARKUP.sub("", option.get("html", ""))).strip()
    return shown or option.get("value", "")


def _check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise LabelConfigError(
            f"The labelling config has {len(classes)} class(es): {', '.join(classes) or 'none'}.",
            hint="A classifier needs at least two.",
        )
    doubled = sorted({name for name in classes if classes.count(name) > 1})
    if doubled:
        raise LabelConfigError(
            f"The labelling config names a class twice: {', '.join(map(repr, doubled))}.",
            hint="Give every class its own id.",
        )
    unusable = [name for name in classes if not _is_storable(name)]
    if unusable:
        raise LabelConfigError(
            f"Label Studio cannot store these class names: {', '.join(map(repr, unusable))}.",
            hint="Use names without '$', line breaks, or spaces at either end.",
        )


def _is_storable(name: str) -> bool:
    """Whether a class id comes back as it was: `$` is a variable, XML folds white space."""
    return bool(name) and name == name.strip() and name.isprintable() and "$" not in name


def _data_keys(root: ET.Element) -> Iterator[str]:
    for tag in root.iter():
        yield from _DATA_KEY.findall(tag.get("value", ""))


def _hotkeys(classes: Sequence[str]) -> Iterator[str]:
    """One key for each class: a letter of its name where one is free, '' when keys are used up."""
    free = [key for key in _HOTKEYS if key not in _RESERVED_HOTKEYS]
    for name in classes:
        own = (letter for letter in name.lower() if letter in free)
        hotkey = next(own, free[0] if free else "")
        if hotkey:
            free.remove(hotkey)
        yield hotkey
