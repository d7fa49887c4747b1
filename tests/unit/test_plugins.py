from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatmill import plugins
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from chatmill.plugins import Registry, parse_parameters


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    name: str = "adam"


@dataclass(frozen=True)
class Parameters:
    steps: int
    rate: float = 1.0
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    names: tuple[str, ...] = ()
    extra: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None
    size: int | float = 1
    level: Literal[1, 2] = 1
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be negative")


def violations(values: dict[str, Any], cls: type[Any] = Parameters, **more: Any) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        parse_parameters(cls, values, **more)
    return {v.field: v.description for v in caught.value.violations}


def test_everything_given_is_checked_and_typed() -> None:
    parsed = parse_parameters(
        Parameters,
        {
            "steps": 3.0,
            "rate": 2,
            "mode": "b",
            "flag": True,
            "names": ["x", "y"],
            "extra": {"k": 1.0},
            "folder": "a/b",
            "size": 0.5,
            "level": 2.0,
            "inner": {"rate": 1},
        },
    )
    assert parsed == Parameters(3, 2.0, "b", True, ("x", "y"), {"k": 1}, Path("a/b"), 0.5, 2, Inner(1.0))
    assert isinstance(parsed.level, int)
    assert isinstance(parsed.steps, int)
    assert isinstance(parsed.rate, float)


@pytest.mark.parametrize(
    ("values", "field_name", "message"),
    [
        ({}, "parameters.steps", "is required"),
        ({"steps": 1, "stepz": 1}, "parameters.stepz", "unknown parameter; did you mean 'steps'?"),
        ({"steps": 1.5}, "parameters.steps", "must be a whole number, not 1.5"),
        ({"steps": True}, "parameters.steps", "must be a whole number, not True"),
        ({"steps": float("inf")}, "parameters.steps", "must be a whole number, not inf"),
        ({"steps": float("nan")}, "parameters.steps", "must be a whole number, not nan"),
        ({"steps": 1, "rate": "1"}, "parameters.rate", "must be a number, not '1'"),
        ({"steps": 1, "rate": 10**400}, "parameters.rate", "must be a number that a float can hold"),
        ({"steps": 1, "flag": 1}, "parameters.flag", "must be true or false, not 1"),
        ({"steps": 1, "mode": "c"}, "parameters.mode", "must be one of 'a', 'b', not 'c'"),
        ({"steps": 1, "mode": ["a"]}, "parameters.mode", "must be one of 'a', 'b', not ['a']"),
        ({"steps": 1, "level": True}, "parameters.level", "must be one of 1, 2, not True"),
        ({"steps": 1, "names": "x"}, "parameters.names", "must be a list, not 'x'"),
        ({"steps": 1, "names": [1]}, "parameters.names", "must be a text, not 1"),
        ({"steps": 1, "extra": []}, "parameters.extra", "must be a mapping, not []"),
        ({"steps": 1, "folder": ""}, "parameters.folder", "must be a path, not ''"),
        ({"steps": 1, "inner": 3}, "parameters.inner", "must be a mapping, not 3"),
        ({"steps": 1, "inner": {"rate": "x"}}, "parameters.inner.rate", "must be a number, not 'x'"),
        ({"steps": 1, "inner": {"rat": 1}}, "parameters.inner.rat", "unknown parameter; did you mean 'rate'?"),
        ({"steps": -1}, "parameters", "steps must not be negative"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], field_name: str, message: str) -> None:
    found = violations(values)
    assert message in found[field_name]


def test_all_violations_are_collected_under_the_callers_path() -> None:
    found = violations({"steps": "x", "flag": "y", "more": 1}, field="spec.method")
    assert set(found) == {"spec.method.steps", "spec.method.flag", "spec.method.more"}
    assert set(violations({"steps": "x"}, field="")) == {"steps"}


def test_a_type_that_can_not_be_checked_is_a_defect_of_the_plugin() -> None:
    @dataclass
    class Odd:
        value: complex = 0j

    with pytest.raises(TypeError, match="can't be checked"):
        parse_parameters(Odd, {"value": 1})
    with pytest.raises(TypeError, match="is not a dataclass"):
        parse_parameters(int, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["steps", "rate", "mode", "flag", "names", "extra", "folder", "size", "inner", "other"])


@given(st.dictionaries(names, json_values, max_size=6))
def test_whatever_is_sent_is_parsed_or_refused_never_a_crash(values: dict[str, Any]) -> None:
    try:
        parsed = parse_parameters(Parameters, values)
    except InvalidArgument:
        assert violations(values)
    else:
        assert isinstance(parsed.steps, int)
        assert isinstance(parsed.rate, float)
        assert parsed.mode in ("a", "b")
        assert all(isinstance(name, str) for name in parsed.names)
        assert isinstance(parsed.inner, Inner)


class TestRegistry:
    def test_names_are_listed_sorted_and_found(self) -> None:
        registry: Registry[str] = Registry("engine", "chatmill.nothing")
        registry.register("rows")("R")
        registry.register("openai")("O")
        assert registry.names() == ["openai", "rows"]
        assert registry.items() == [("openai", "O"), ("rows", "R")]
        assert registry.get("rows") == "R"

    def test_an_unknown_name_says_what_is_installed(self) -> None:
        registry: Registry[str] = Registry("engine", "chatmill.nothing")
        registry.register("rows")("R")
        with pytest.raises(NotFound, match=r"unknown engine 'row'; did you mean 'rows'\?.*Installed: rows") as caught:
            registry.get("row")
        assert caught.value.reason == "UNKNOWN_PLUGIN"
        assert caught.value.metadata == {"kind": "engine", "name": "row"}

    def test_a_name_can_not_be_taken_twice(self) -> None:
        registry: Registry[str] = Registry("engine", "chatmill.nothing")
        registry.register("rows")("R")
        registry.register("rows")("R")  # the same again, as on a second import
        with pytest.raises(ValueError, match="registered twice"):
            registry.register("rows")("other")

    def test_one_that_can_not_be_loaded_is_named_and_leaves_the_others_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry: Registry[object] = Registry("scorer", "chatmill.scorers")
        points = EntryPoints(
            [
                EntryPoint("broken", "no_such_module_anywhere:thing", "chatmill.scorers"),
                EntryPoint("fine", "json:dumps", "chatmill.scorers"),
            ]
        )
        monkeypatch.setattr(plugins, "entry_points", lambda group: points)
        assert registry.names() == ["fine"]
        with pytest.raises(FailedPrecondition, match="no_such_module_anywhere"):
            registry.get("broken")

    def test_entry_points_are_loaded_on_the_first_miss_and_never_hide_a_built_in(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def entry_points(group: str) -> EntryPoints:
            asked.append(group)
            return EntryPoints([EntryPoint(n, "os.path:sep", group) for n in ("rows", "theirs")])

        monkeypatch.setattr(plugins, "entry_points", entry_points)
        registry: Registry[str] = Registry("engine", "chatmill.engines")
        registry.register("rows")("R")
        assert registry.get("rows") == "R"
        assert not asked
        assert registry.get("theirs") == "/"
        assert registry.get("rows") == "R"
        assert asked == ["chatmill.engines"]
