"""Scenario and suite files: what is read, and what is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from chatmill.errors import InvalidArgument, NotFound, PermissionDenied
from chatmill.located_yaml import parse
from eval_svc.scenario_file import build_scenario, read_scenario, scenario_from_mapping
from eval_svc.schema import __main__ as publish
from eval_svc.schema import scenario_schema, suite_schema
from eval_svc.suite import Suite, SuiteLibrary, read_suite

FULL = """\
schema: 1
id: refund-outside-window
title: Returning customer asks for a late refund
kind: memory
severity: major
tags: [refunds, en]
source: {type: transcript, dataset: support@v3, conversation: c-1042}
persona: {name: Ana, mood: impatient, language: en, style: short}
memory:
  profile: {order_id: A-77, tier: gold}
  sessions: [{when: 2026-10-02, turns: [{user: "hello"}, {agent: "hi"}]}]
  facts: ["Ana returned a lamp in May."]
policy: [refund-30-days]
trials: 5
turns:
  - user: "Hi, it's me again about A-77, I want my money back."
    variants: ["hello again, A-77, refund pls"]
    expect:
      - {type: contains_any, value: ["A-77", "last time"], error: context_lost}
      - {type: latency, first_token_ms: 1500, total_ms: 8000, gate: soft}
    forbid:
      - {type: regex, value: "(we|i) (have )?refunded", error: false_action, gate: hard}
    on_fail: stop
  - user: "So you refuse?"
    when: {not_matched: handoff}
final:
  outcome: [handoff, refused]
  judge: [{id: cites-policy, ask: "States the 30-day rule and invents no other rule?", gate: hard}]
"""


def build(text: str):
    return build_scenario(parse(text, "f.yaml"))


def test_the_full_vocabulary_is_read() -> None:
    scenario = build(FULL)
    assert (scenario.id, scenario.kind, scenario.severity, scenario.trials) == (
        "refund-outside-window",
        "memory",
        "major",
        5,
    )
    assert scenario.variants == 2
    assert scenario.wording(0, 1) == "hello again, A-77, refund pls"
    assert scenario.wording(1, 1) == "So you refuse?"
    first, second = scenario.turns
    assert [(c.type, c.gate, c.forbid, c.error) for c in first.checks] == [
        ("contains_any", "hard", False, "context_lost"),
        ("latency", "soft", False, "slow"),
        ("regex", "hard", True, "false_action"),
    ]
    assert first.stop_on_fail
    assert second.not_matched == "handoff"
    assert scenario.outcomes == ("handoff", "refused")
    assert [(c.id, c.type, c.scope) for c in scenario.final] == [("cites-policy", "judge", "dialog")]


def test_memory_is_rendered_a_fact_a_line() -> None:
    assert build(FULL).memory.lines() == (
        "order_id: A-77",
        "tier: gold",
        "2026-10-02 customer: hello",
        "2026-10-02 agent: hi",
        "Ana returned a lamp in May.",
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("severity: major", "severity: mayor", 5, "did you mean 'major'?"),
        ("    variants", "    varients", 17, "did you mean 'variants'?"),
        ("  outcome", "  outcom", 27, "did you mean 'outcome'?"),
        ("language: en", "language: no", 8, "quotes"),
        ("contains_any", "contain_any", 19, "did you mean 'contains_any'?"),
        ("total_ms: 8000", "total: 8000", 20, "did you mean 'total_ms'?"),
        ("false_action", "false_acton", 22, "did you mean 'false_action'?"),
        ("not_matched: handoff", "not_matched: hand_off", 25, "did you mean 'handoff'?"),
        ("(we|i) (have", "(we|i (have", 22, "regular expression"),
        ("turns:\n", "turns:\n  - {user: 3}\n", 16, "must be a text"),
        ("trials: 5", "trials: 0", 14, "minimum"),
        ('["A-77", "last time"]', "[]", 19, "at least one text"),
        ("id: refund-outside-window", "id: Refund Outside", 2, "does not match"),
        ("tags: [refunds, en]", "tags: &t [refunds]\npolicy: *t", 7, "alias"),
        ("trials: 5", "trials: 5\ntrials: 6", 15, "given twice"),
        ("id: cites-policy, ", "id: cites-policy, votes: 2, ", 28, "odd"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, line: int, told: str) -> None:
    assert old in FULL
    with pytest.raises(InvalidArgument) as error:
        build(FULL.replace(old, new, 1))
    assert f"f.yaml:{line}: " in error.value.message, error.value.message
    assert told in error.value.message


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as error:
        build(
            FULL.replace("severity: major", "severity: x").replace("title", "titel").replace("trials: 5", "trials: a")
        )
    assert len(error.value.violations) == 3


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [", "just words", "? [a]\n: b", "a: !!python/object:os.system x", "\x00"]
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"f\.yaml"):
        build(text)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"schema: 1\nid: \xff\xfe\n")
    with pytest.raises(InvalidArgument, match=r"s\.yaml:2.*UTF-8"):
        read_scenario(tmp_path / "s.yaml")
    with pytest.raises(NotFound):
        read_scenario(tmp_path / "none.yaml")


def test_a_fact_to_recall_must_be_in_the_memory() -> None:
    text = FULL.replace('contains_any, value: ["A-77", "last time"]', "fact_recall, fact: order_idd")
    with pytest.raises(InvalidArgument, match="did you mean 'order_id'"):
        build(text)
    with pytest.raises(InvalidArgument, match="does not hold 'B-99'"):
        build(FULL.replace('contains_any, value: ["A-77", "last time"]', "fact_recall, value: B-99"))


def test_published_schemas_are_what_the_code_says() -> None:
    for name, schema in publish.FILES.items():
        published = json.loads((Path(publish.__file__).parent / name).read_text(encoding="utf-8"))
        assert published == json.loads(json.dumps(schema())), "run python -m eval_svc.schema"


def test_the_published_schema_takes_and_refuses_what_the_reader_does() -> None:
    schema = scenario_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    data = yaml.safe_load(FULL.replace("2026-10-02", '"2026-10-02"'))
    jsonschema.validate(data, schema)
    data["turns"][0]["expect"][0]["valu"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


SUITE = """\
schema: 1
id: shop
version: 3
title: The shop
defaults: {trials: 2, tags: [shop], language: en}
scenarios: [a.yaml, more/*.yaml]
"""


def scenario_text(name: str) -> str:
    head = f"schema: 1\nid: {name}\nkind: happy\n"
    return head + "turns:\n  - user: hi\n    expect: [{type: contains_any, value: hello}]\n"


@pytest.fixture
def suite_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "shop"
    (folder / "more").mkdir(parents=True)
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "a.yaml").write_text(scenario_text("a"))
    (folder / "more" / "b.yaml").write_text(scenario_text("b"))
    (folder / "more" / "c.yaml").write_text(scenario_text("c"))
    return folder


def test_a_suite_reads_its_scenarios_with_defaults(suite_folder: Path) -> None:
    suite = read_suite(suite_folder)
    assert [s.id for s in suite.scenarios] == ["a", "b", "c"]
    assert (suite.version, suite.trials) == ("3", 2)
    assert suite.scenarios[0].tags == ("shop",)
    assert suite.scenarios[0].persona.language == "en"
    assert suite.scenarios[0].trials == 2


CHECKED = SUITE.replace(
    "defaults: {trials: 2, tags: [shop], language: en}",
    """\
defaults:
  expect:
    - {type: number, only: true, value: 30, unit: days, id: days}
  forbid:
    - {type: contains_any, value: [rubbish]}""",
)


def test_checks_of_the_suite_are_added_to_every_turn(suite_folder: Path) -> None:
    plain = read_suite(suite_folder)
    more = scenario_text("a") + "  - user: and then?\n    forbid: [{type: handoff}]\n  - user: bye\n"
    (suite_folder / "a.yaml").write_text(more)
    (suite_folder / "suite.yaml").write_text(CHECKED)
    suite = read_suite(suite_folder)
    first, second, third = suite.scenarios[0].turns
    assert [(c.type, c.forbid) for c in first.checks] == [
        ("contains_any", False),
        ("number", False),
        ("contains_any", True),
    ]
    assert [c.type for c in second.checks] == ["number", "handoff", "contains_any"]
    assert [c.id for c in third.checks] == ["days-2", "turns-2-forbid-0-contains-any"]
    assert suite.scenarios[1].turns[0].checks[1].error == "wrong_number"
    assert Suite.from_snapshot(suite.snapshot()).digest == suite.digest
    (suite_folder / "a.yaml").write_text(scenario_text("a"))
    assert read_suite(suite_folder).turns_digest == plain.turns_digest
    before = read_suite(suite_folder).digest
    (suite_folder / "suite.yaml").write_text(CHECKED.replace("value: 30", "value: 31"))
    assert read_suite(suite_folder).digest not in (before, plain.digest)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("only: true", "onli: true", r"suite\.yaml:7: defaults\.expect\[0\]\.onli"),
        ("type: number", "type: numbr", r"suite\.yaml:7: defaults\.expect\[0\]\.type.*did you mean 'number'"),
        ("value: [rubbish]", "error: rubish", r"suite\.yaml:9: defaults\.forbid\[0\]"),
        ("- {type: contains_any, value: [rubbish]}", "rubbish", r"suite\.yaml:(8|9): defaults\.forbid.*a list"),
        ("- {type: contains_any, value: [rubbish]}", "- rubbish", r"suite\.yaml:9: defaults\.forbid\[0\].*a mapping"),
    ],
)
def test_a_wrong_check_of_the_suite_is_told_once_with_its_line(
    suite_folder: Path, old: str, new: str, told: str
) -> None:
    (suite_folder / "suite.yaml").write_text(CHECKED.replace(old, new))
    with pytest.raises(InvalidArgument, match=told) as refused:
        read_suite(suite_folder)
    assert all("suite.yaml" in v.field for v in refused.value.violations)
    assert len({v.field for v in refused.value.violations}) == len(refused.value.violations)


def test_the_published_suite_schema_knows_the_checks_of_every_turn() -> None:
    schema = suite_schema()
    jsonschema.validate(yaml.safe_load(CHECKED), schema)
    for old, new in (("only: true", "onli: true"), ("type: number", "type: numbr")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(CHECKED.replace(old, new)), schema)


def test_a_snapshot_builds_the_same_suite(suite_folder: Path) -> None:
    (suite_folder / "a.yaml").write_text(FULL)
    suite = read_suite(suite_folder)
    again = Suite.from_snapshot(json.loads(json.dumps(suite.snapshot())))
    assert again.digest == suite.digest
    assert again.scenarios[0].memory == suite.scenarios[0].memory


def test_the_digest_changes_with_a_check_and_the_turns_digest_does_not(suite_folder: Path) -> None:
    before = read_suite(suite_folder)
    (suite_folder / "a.yaml").write_text(scenario_text("a").replace("hello", "good day"))
    after = read_suite(suite_folder)
    assert before.digest != after.digest
    assert before.turns_digest == after.turns_digest
    (suite_folder / "a.yaml").write_text(scenario_text("a").replace("user: hi", "user: hey"))
    assert read_suite(suite_folder).turns_digest != before.turns_digest


def test_problems_of_all_files_are_told_at_once(suite_folder: Path) -> None:
    (suite_folder / "a.yaml").write_text("schema: 1\n")
    (suite_folder / "more" / "b.yaml").write_text(scenario_text("c"))
    (suite_folder / "more" / "c.yaml").write_text(scenario_text("c") + "titel: x\n")
    with pytest.raises(InvalidArgument) as error:
        read_suite(suite_folder)
    assert "a.yaml:1: lacks" in error.value.message
    assert "c.yaml:7: titel" in error.value.message


def test_two_scenarios_of_one_id_are_refused(suite_folder: Path) -> None:
    (suite_folder / "more" / "b.yaml").write_text(scenario_text("c"))
    with pytest.raises(InvalidArgument, match=r"suite\.yaml:6: scenarios: two scenarios have the id 'c'"):
        read_suite(suite_folder)


@pytest.mark.parametrize("pattern", ["../x.yaml", "/etc/passwd", "b.yaml"])
def test_scenario_files_outside_or_missing_are_refused(suite_folder: Path, pattern: str) -> None:
    (suite_folder / "suite.yaml").write_text(SUITE.replace("a.yaml", pattern))
    with pytest.raises(InvalidArgument, match=r"suite\.yaml:6: scenarios\[0\]"):
        read_suite(suite_folder)


def test_the_library_finds_by_name_and_path_and_keeps_to_its_roots(suite_folder: Path, tmp_path: Path) -> None:
    library = SuiteLibrary((tmp_path / "root",))
    assert library.find("suites/shop").id == "shop"
    assert library.find("shop").id == "shop"
    assert library.find(str(suite_folder)).id == "shop"
    assert library.find(str(suite_folder / "a.yaml")).scenarios[0].id == "a"
    outside = tmp_path / "outside.yaml"
    outside.write_text(scenario_text("z"))
    with pytest.raises(PermissionDenied, match="suite_roots"):
        library.find(str(outside))
    (suite_folder / "link.yaml").symlink_to(outside)
    with pytest.raises(PermissionDenied):
        library.find(str(suite_folder / "link.yaml"))
    with pytest.raises(NotFound, match="did you mean 'shop'"):
        library.find("suites/shopp")


@pytest.mark.parametrize("pattern", ["link.yaml", "'*.yaml'", "folder/secret.yaml"])
def test_a_link_out_of_the_roots_is_not_followed(suite_folder: Path, tmp_path: Path, pattern: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.yaml").write_text("hunter2\n")
    (suite_folder / "link.yaml").symlink_to(outside / "secret.yaml")
    (suite_folder / "folder").symlink_to(outside)
    (suite_folder / "suite.yaml").write_text(SUITE.replace("a.yaml", pattern))
    library = SuiteLibrary((tmp_path / "root",))
    for name in ("shop", str(suite_folder)):
        with pytest.raises(InvalidArgument, match=r"is outside the folders.*eval\.suite_roots") as error:
            library.find(name)
        assert "hunter2" not in error.value.message
    (outside / "secret.yaml").write_text(scenario_text("z"))
    assert "z" in {s.id for s in SuiteLibrary((tmp_path,)).find(str(suite_folder)).scenarios}


def test_a_folder_that_is_a_link_out_of_the_roots_is_no_suite(suite_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "other"
    root.mkdir()
    (root / "shop").symlink_to(suite_folder)
    library = SuiteLibrary((root,))
    with pytest.raises(PermissionDenied, match="suite_roots"):
        library.find("shop")
    assert [problem for suite, folder, problem in library.installed() if folder.name == "shop" and suite is None]


def test_whether_a_file_outside_the_roots_exists_is_not_told(tmp_path: Path) -> None:
    library = SuiteLibrary((tmp_path,))
    for name in ("/etc/hostname", "/etc/no-such-file", "../nothing"):
        with pytest.raises(PermissionDenied, match="suite_roots"):
            library.find(name)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("hunter2\n", "must be a mapping, not a text"),
        ("- hunter2\n", "must be a mapping, not a list"),
        ("schema: 1\nid: hunter2 hunter2\nkind: hunter2\nturns: hunter2\n", "must be a list, not a text"),
        ("schema: 1\nid: x\nkind: happy\nturns: [hunter2]\n", "must be a mapping, not a text"),
    ],
)
def test_what_stands_in_a_file_is_not_quoted(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InvalidArgument) as error:
        SuiteLibrary((tmp_path,)).find(str(tmp_path / "a.yaml"))
    assert told in error.value.message
    assert "hunter2" not in error.value.message


def test_tags_select_and_an_unknown_tag_is_refused(suite_folder: Path) -> None:
    (suite_folder / "a.yaml").write_text(scenario_text("a") + "tags: [one]\n")
    suite = read_suite(suite_folder)
    assert [s.id for s in suite.select(["one"]).scenarios] == ["a"]
    assert suite.select([]) is suite
    with pytest.raises(InvalidArgument, match="known: one, shop"):
        suite.select(["two"])


def test_a_scenario_that_checks_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="checks nothing"):
        scenario_from_mapping({"schema": 1, "id": "x", "kind": "happy", "turns": [{"user": "hi"}]})


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 5_000 + "a", "? " * 3_000, "a: \ud800"])
def test_what_is_nested_without_end_is_refused_and_ends_nothing(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not valid YAML"):
        parse(text, "f.yaml")
