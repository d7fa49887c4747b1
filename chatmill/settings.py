"""Resolves a tree of frozen dataclasses from flags, the environment, one YAML file and defaults, in that order.

Every value keeps where it came from, so that a wrong one can be reported with its file and line, and `describe` can say
what holds and why. Documentation of an option is its line under `Attributes:` in the dataclass's docstring; `manual`
prints them all. This module knows no option of Chatmill; `chatmill.config` has those.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from chatmill import located_yaml
from chatmill.errors import FieldViolation, InvalidArgument, NotFound
from chatmill.plugins import nearest, parse_parameters

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Option:
    """One leaf of the tree.

    Attributes:
        key: dotted path as in the file, for example `mesh.security.cert_file`.
        hint: its type.
        default: its default, before paths are made absolute.
        doc: its line in the docstring of its dataclass.
    """

    key: str
    hint: Any
    default: Any
    doc: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the values came from.

    Attributes:
        file: the file that was read, or None.
        origins: option key to `flag`, the name of a variable, `file:line` or `default`.
        ignored: variables that begin like ours but are no option, with the nearest one.
    """

    file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """Raw values of one source, by dotted key.

    Attributes:
        values: key to raw value; texts for the environment and flags.
        origins: key to a short description, for example `chatmill.yaml:12`.
        base: folder that relative paths of this layer start from.
        textual: whether the values are texts that still have to be read as their option's type.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    base: Path
    textual: bool = False


def options(cls: type[Any], prefix: str = "") -> Iterator[Option]:
    """All leaves of the dataclass tree `cls`, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    docs = attribute_docs(cls)
    for spec in dataclasses.fields(cls):
        if spec.metadata.get("option", True):
            key, hint = f"{prefix}{spec.name}", hints[spec.name]
            if dataclasses.is_dataclass(hint):
                yield from options(typing.cast(type[Any], hint), f"{key}.")
            else:
                factory = spec.default_factory
                default = spec.default if factory is dataclasses.MISSING else factory()
                yield Option(key, hint, default, docs.get(spec.name, ""))


def attribute_docs(cls: type[Any]) -> dict[str, str]:
    """Field name to its text under `Attributes:` in the docstring of `cls`; continued lines are joined."""
    _, _, section = (cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r"\s+(\w+): (.*)", line)
        if entry and len(line) - len(line.lstrip()) == 8:
            name = entry[1]
            found[name] = entry[2].strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def file_layer(cls: type[Any], path: Path) -> Layer:
    """The layer of one YAML file, for the dataclass tree `cls`.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`: unreadable, not YAML, not a mapping, or a key given twice.
    """
    try:
        document = located_yaml.read(path)
    except (NotFound, InvalidArgument) as error:
        raise _invalid(error.message) from error
    except OSError as error:
        raise _invalid(f"{path}: can't be read: {error.strerror}") from error
    if not isinstance(document.data, dict | None):
        raise _invalid(f"{path}:{document.line(())}: must be a mapping of sections, for example `factory:`")
    leaves = {option.key for option in options(cls)}
    values = dict(_flattened(document.data or {}, (), leaves))
    return Layer(
        {".".join(location): value for location, value in values.items()},
        {".".join(location): f"{path}:{document.line(location)}" for location in values},
        path.absolute().parent,
    )


def _flattened(
    data: Mapping[str, Any], parents: tuple[str, ...], leaves: Collection[str]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Locations and values of what is not a section; a leaf may be a mapping itself."""
    for key, value in data.items():
        location = (*parents, key)
        if isinstance(value, dict) and value and ".".join(location) not in leaves:
            yield from _flattened(value, location, leaves)
        else:
            yield location, value


def environment_layer(
    cls: type[Any],
    env: Mapping[str, str],
    prefix: str,
    *,
    shorthands: Mapping[str, str],
    others: Collection[str],
) -> tuple[Layer, tuple[str, ...]]:
    """The layer of the environment, and the variables that look like ours but name no option.

    Args:
        cls: root dataclass.
        env: the environment.
        prefix: what our variables begin with.
        shorthands: variable to key, beside the regular ones.
        others: variables with the prefix that mean something else.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, for a variable with two underscores that names no option.
    """
    values: dict[str, str] = {}
    ignored: list[str] = []
    keys = {env_name(prefix, option.key): option.key for option in options(cls)} | dict(shorthands)
    for name in sorted(name for name in env if name.startswith(prefix) and name not in others):
        if name in keys:
            values[name] = env[name]
        elif "__" in name:
            raise _invalid(f"environment variable {name}: no such option{nearest(name, keys)}")
        else:
            # Kubernetes sets CHATMILL_FACTORY_PORT and the like for a Service of that name, so these can't be errors
            ignored.append(f"{name}{nearest(name, keys)}")
    by_key = {keys[name]: name for name in values}
    return Layer({key: values[name] for key, name in by_key.items()}, by_key, Path.cwd(), textual=True), tuple(ignored)


def resolve(cls: type[C], layers: list[Layer], *, extra: Mapping[str, Any] | None = None) -> tuple[C, dict[str, str]]:
    """Build `cls` from layers, the first of which wins.

    Args:
        cls: root dataclass.
        layers: strongest first; defaults are added below the last one, with paths from the working directory.
        extra: values for fields of `cls` that are not options.

    Returns:
        The configuration, and for every option the description of where its value came from.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, one violation per wrong key with its origin and the nearest valid key.
    """
    known = {option.key: option for option in options(cls)}
    defaults = {key: option.default for key, option in known.items()}
    layers = [*layers, Layer(defaults, dict.fromkeys(defaults, "default"), Path.cwd())]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in reversed(layers):
        for key, value in layer.values.items():
            if value in (None, {}) and any(name.startswith(f"{key}.") for name in known):
                continue  # an empty section in the file: `factory:` with nothing under it
            origins[key] = layer.origins[key]
            merged[key] = (
                value if key not in known else _anchored(known[key].hint, _raw(layer, known[key], value), layer)
            )
    problems = [FieldViolation(key, _unknown(key, known)) for key in merged if key not in known]
    if not problems:
        try:
            return parse_parameters(cls, {**_nested(merged), **(extra or {})}, field=""), origins
        except InvalidArgument as error:
            problems = list(error.violations)
    located = [FieldViolation(p.field, p.description + _where(p.field, origins)) for p in problems]
    raise InvalidArgument(
        "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in located),
        violations=located,
        reason="INVALID_CONFIG",
    )


def _unknown(key: str, known: Collection[str]) -> str:
    if any(name.startswith(f"{key}.") for name in known):
        return "is a section; it must be a mapping of options"
    return f"unknown option{nearest(key, known)}"


def _where(key: str, origins: Mapping[str, str]) -> str:
    key = re.sub(r"\[\d+\].*", "", key)
    return f" ({origins[key]})" if key in origins else ""


def _raw(layer: Layer, option: Option, value: Any) -> Any:
    """A text from the environment or a flag as YAML would have given it; texts and paths stay as they are typed."""
    if not layer.textual or not isinstance(value, str):
        return value
    kinds = set(_kinds(option.hint))
    if type(None) in kinds and value in ("", "null", "none"):
        return None
    if kinds & {tuple, list} and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    if kinds <= {str, Path, type(None)}:
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _kinds(hint: Any) -> Iterator[type]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            yield from _kinds(argument)
    elif origin is typing.Literal:
        yield from map(type, typing.get_args(hint))
    else:
        yield origin or hint


def _anchored(hint: Any, value: Any, layer: Layer) -> Any:
    """Paths made absolute from the folder of their layer, with `~` expanded; everything else as it is."""
    if isinstance(value, list | tuple):
        inner = (typing.get_args(hint) or (Any,))[0]
        return [_anchored(inner, item, layer) for item in value]
    if Path in set(_kinds(hint)) and isinstance(value, str | Path) and str(value):
        return (layer.base / Path(value).expanduser()).resolve()
    return value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


def env_name(prefix: str, key: str) -> str:
    """The variable that overrides the option `key`."""
    return prefix + key.upper().replace(".", "__")


def describe(config: object, provenance: Provenance) -> str:
    """Every resolved value and where it came from, one per line, under the file that was read."""
    rows = []
    for option in options(type(config)):
        value: Any = config
        for part in option.key.split("."):
            value = getattr(value, part)
        rows.append((option.key, _shown(value), provenance.origins.get(option.key, "default")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows]
    lines.extend(f"ignored environment variable {text}" for text in provenance.ignored)
    return "\n".join([f"file: {provenance.file or 'none'}", *lines])


def manual(cls: type[Any], prefix: str) -> str:
    """All options of `cls` as a Markdown table: key, variable, default, meaning."""
    lines = ["| option | environment | default | meaning |", "| --- | --- | --- | --- |"]
    lines.extend(f"| `{o.key}` | `{env_name(prefix, o.key)}` | `{_shown(o.default)}` | {o.doc} |" for o in options(cls))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(_shown(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="INVALID_CONFIG")
