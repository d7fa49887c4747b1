"""`chatmill datasets stats` shows all that GetStatistics answers."""

from __future__ import annotations

import pytest

from chatmill.cli import datasets
from chatmill.cli.console import stdout
from chatmill.dataset.v1 import Statistics

FIELDS = [field.name for field in Statistics.DESCRIPTOR.fields]


def shown(seen: Statistics) -> str:
    console = stdout()
    with console.capture() as capture:
        console.print(datasets._lengths(seen))
        console.print(datasets._facts(seen))
    return capture.get()


def one(name: str) -> Statistics:
    """Statistics in which only this field says something."""
    seen = Statistics()
    field = Statistics.DESCRIPTOR.fields_by_name[name]
    if field.message_type is None:
        setattr(seen, name, 4711)
        return seen
    value = getattr(seen, name)
    if field.is_repeated:
        value = value.add()
    for inner in field.message_type.fields:
        if inner.name == "value":
            value.value = "4711"
        elif inner.name == "split":
            value.split = 1
        elif inner.message_type is None and not inner.is_repeated and inner.cpp_type != inner.CPPTYPE_STRING:
            setattr(value, inner.name, 4711)
    return seen


@pytest.mark.parametrize("name", FIELDS)
def test_no_number_is_left_out(name: str) -> None:
    empty, filled = shown(Statistics()), shown(one(name))
    assert filled != empty
    assert any(text in filled for text in ("4,711", "4711", "471100%"))


def test_brackets_of_labels_are_text() -> None:
    seen = Statistics()
    seen.labels.add(value="[bold]x[/bold]", count=2)
    assert "[bold]x[/bold] 2" in shown(seen)
