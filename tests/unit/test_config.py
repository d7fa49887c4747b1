from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chatmill import config, settings
from chatmill.config import Config
from chatmill.errors import InvalidArgument


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "chatmill.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path | None = None, env: dict[str, str] | None = None, **overrides: str) -> str:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    with pytest.raises(InvalidArgument) as caught:
        config.load(path, env or {}, dotted)
    assert caught.value.reason == "INVALID_CONFIG"
    return caught.value.message


def test_defaults_are_those_of_the_dataclasses(tmp_path: Path) -> None:
    loaded = config.load(None, {})
    assert [loaded.address(s)[1] for s in (*config.SERVICES, "bridge")] == [50051, 50052, 50053, 50054, 8080]
    assert loaded.home == tmp_path / "chatmill-home"
    assert loaded.dataset.roots == (tmp_path,)
    assert loaded.inference.quantization == "nf4"
    assert loaded.provenance.file is None


def test_flag_beats_environment_beats_file_beats_default() -> None:
    write("factory: {port: 1}\ndataset: {port: 1}\neval: {port: 1}\n")
    loaded = config.load(None, {"CHATMILL_FACTORY__PORT": "2", "CHATMILL_DATASET__PORT": "2"}, {"factory.port": "3"})
    ports = [loaded.factory.port, loaded.dataset.port, loaded.eval.port, loaded.inference.port]
    assert ports == [3, 2, 1, 50053]
    origins = loaded.provenance.origins
    assert origins["factory.port"] == "flag"
    assert origins["dataset.port"] == "CHATMILL_DATASET__PORT"
    assert origins["eval.port"] == "chatmill.yaml:3"
    assert origins["inference.port"] == "default"


def test_the_file_may_be_named_by_argument_or_variable() -> None:
    write("mesh: {home: a}", "one.yaml")
    write("mesh: {home: b}", "two.yaml")
    assert config.load(None, {"CHATMILL_CONFIG": "two.yaml"}).home.name == "b"
    assert config.load(Path("one.yaml"), {"CHATMILL_CONFIG": "two.yaml"}).home.name == "a"


def test_paths_start_from_where_they_are_written(tmp_path: Path) -> None:
    path = write("mesh: {home: state}\ndataset: {roots: [data, /abs, ~/mine]}\n", "deep/er/chatmill.yaml")
    loaded = config.load(path, {"CHATMILL_FACTORY__ROOTS": "models,/other"})
    assert loaded.home == tmp_path / "deep/er/state"
    assert loaded.dataset.roots == (tmp_path / "deep/er/data", Path("/abs"), Path.home() / "mine")
    assert loaded.factory.roots == (tmp_path / "models", Path("/other"))


def test_the_home_has_a_short_variable_and_key(tmp_path: Path) -> None:
    assert config.load(None, {"CHATMILL_HOME": "x"}).home == tmp_path / "x"
    assert config.load(None, {"CHATMILL_MESH__HOME": "y"}).home == tmp_path / "y"
    assert config.load(None, {}, {"home": "z"}).home == tmp_path / "z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factory:\n  prot: 1\n", "factory.prot: unknown option; did you mean 'factory.port'? (chatmill.yaml:2)"),
        ("factroy: {port: 1}", "factroy.port: unknown option; did you mean 'factory.port'? (chatmill.yaml:1)"),
        ("\nfactory: 7", "factory: is a section; it must be a mapping of options (chatmill.yaml:2)"),
        ("factory: {port: many}", "factory.port: must be a whole number, not 'many' (chatmill.yaml:1)"),
        ("factory: {port: 70000}", "port must be between 0 (any free one) and 65535"),
        ("inference: {quantization: int4}", "must be one of 'nf4', 'int8', 'none', not 'int4' (chatmill.yaml:1)"),
        ("dataset:\n  roots:\n    - 5\n", "dataset.roots: must be a path, not 5 (chatmill.yaml:2)"),
        ("dataset: {roots: here}", "dataset.roots: must be a list"),
        ("mesh: {security: {cert_file: a}}", "cert_file and key_file belong together"),
        ("mesh: {security: {mtls: true}}", "mtls needs cert_file, key_file and ca_file"),
        ("mesh: {keepalive: {ping_seconds: 5}}", "min_ping_seconds must not exceed ping_seconds"),
        ("- a list", "must be a mapping of sections"),
        ("factory: {port: 1", "chatmill.yaml:1: is not valid YAML"),
        ("factory: {port: 1}\nfactory: {port: 2}", "chatmill.yaml:2: factory: is given twice"),
    ],
)
def test_mistakes_in_the_file_name_the_key_and_the_line(text: str, message: str) -> None:
    assert message in refused(write(text))


def test_all_mistakes_are_told_at_once() -> None:
    message = refused(write("factory: {port: x}\neval: {concurrency: y}\n"))
    assert "factory.port" in message
    assert "eval.concurrency" in message


def test_a_file_that_is_not_there_is_named() -> None:
    assert "nowhere.yaml: there is no such file" in refused(Path("nowhere.yaml"))


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "factory:\n", "mesh: {security: {}}\n"])
def test_empty_files_and_sections_mean_the_defaults(text: str) -> None:
    assert config.load(write(text), {}) == config.load(None, {}, look=False)


def test_mistakes_in_variables_and_flags() -> None:
    assert "CHATMILL_FACTORY__PRT: no such option; did you mean 'CHATMILL_FACTORY__PORT'?" in refused(
        env={"CHATMILL_FACTORY__PRT": "1"}
    )
    assert "(CHATMILL_EVAL__CONCURRENCY)" in refused(env={"CHATMILL_EVAL__CONCURRENCY": "lots"})
    assert "factory.prt: unknown option; did you mean 'factory.port'? (flag)" in refused(factory__prt="1")


def test_a_variable_that_kubernetes_sets_is_ignored_and_shown() -> None:
    loaded = config.load(None, {"CHATMILL_FACTORY_PORT": "tcp://10.0.0.1:50052", "OTHER": "x"})
    assert loaded.factory.port == 50052
    assert "ignored environment variable CHATMILL_FACTORY_PORT" in config.describe(loaded)


def test_texts_are_read_as_the_type_of_their_option() -> None:
    loaded = config.load(
        None,
        {
            "CHATMILL_MESH__SECURITY__MTLS": "false",
            "CHATMILL_MESH__METRICS_PORT": "none",
            "CHATMILL_MESH__GRACE_SECONDS": "2",
            "CHATMILL_INFERENCE__ENGINE": "123",
            "CHATMILL_MESH__PEERS__EVAL": "10.0.0.1:50054",
        },
    )
    assert loaded.mesh.security.mtls is False
    assert loaded.mesh.metrics_port is None
    assert loaded.mesh.grace_seconds == 2.0
    assert loaded.inference.engine == "123"
    assert loaded.mesh.peers.eval == "10.0.0.1:50054"


def test_describe_shows_every_option_with_its_origin() -> None:
    write("factory: {port: 7}")
    text = config.describe(config.load(None, {"CHATMILL_HOME": "x"}))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert text.startswith("file: chatmill.yaml\n")
    assert set(lines) == {"file:", *(option.key for option in settings.options(Config))}
    assert lines["factory.port"].split() == ["factory.port", "7", "chatmill.yaml:1"]
    assert lines["mesh.home"].endswith("CHATMILL_HOME")


def test_every_option_has_a_meaning_in_the_manual_and_none_is_made_up() -> None:
    for option in settings.options(Config):
        assert option.doc.endswith("."), f"{option.key} lacks its line under Attributes:"
        assert f"`{option.key}` | `{config.env_name(option.key)}`" in config.manual()
    for section in _sections(Config):
        documented = set(settings.attribute_docs(section))
        fields = {f.name for f in dataclasses.fields(section)}
        assert documented <= fields, f"{section.__name__} documents {documented - fields}, which it does not have"


def _sections(root: type) -> list[type]:
    found = []
    for spec in dataclasses.fields(root):
        factory = spec.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory) and spec.metadata.get("option", True):
            found += [factory, *_sections(factory)]
    return found


def test_no_option_holds_a_secret_itself() -> None:
    for option in settings.options(Config):
        name = option.key.rsplit(".", 1)[1]
        if any(word in name.split("_") for word in ("token", "key", "password", "secret")):
            assert name.endswith(("_file", "_root")), f"{option.key} must be the path of a file or a folder"
