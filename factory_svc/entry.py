"""What the registry keeps of a model version, as plain data and as YAML.

The fields follow what a replication needs: identity, base, files with digests, the conversation contract, data,
training, environment, run, scores. It knows neither where the registry lies nor how entries come to be.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from chatmill.errors import InvalidArgument

SCHEMA_VERSION = 1
Kind = Literal["base", "adapter", "prompt", "merged", "remote"]

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"models/(?P<id>[^/]+)(?:/versions/(?P<version>[0-9]+)|/aliases/(?P<alias>[^/]+))?")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed resource name.

    Attributes:
        model_id: the id.
        version: the version, or None.
        alias: the alias, or None; at most one of the two is set, none of them means the newest version.
    """

    model_id: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, name: str, *, field_name: str = "name") -> ModelName:
        """The parts of `models/{id}`, `models/{id}/versions/{n}` or `models/{id}/aliases/{alias}`.

        Raises:
            InvalidArgument: `name` has another form.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgument.field(
                field_name,
                f"{name!r} is not a model name; use models/ID, models/ID/versions/N or models/ID/aliases/ALIAS",
            )
        version = match["version"]
        return cls(match["id"], int(version) if version else None, match["alias"])


def check_id(value: str, field_name: str) -> str:
    """`value` if it may be an id or an alias.

    Raises:
        InvalidArgument: it may not; says what may.
    """
    if not _ID.fullmatch(value):
        raise InvalidArgument.field(
            field_name,
            f"{value!r} must be lower-case letters, digits and hyphens, at most 63, begin with a letter and not end "
            "with a hyphen",
        )
    return value


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a model.

    Attributes:
        path: relative to the artifact root, or absolute for a folder that was registered where it lies.
        sha256: of its bytes, lower-case hexadecimal.
        bytes: its size.
        media_type: what it is, for example `application/vnd.safetensors`.
    """

    path: str
    sha256: str
    bytes: int
    media_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Contract:
    """How a conversation is put to the model.

    Attributes:
        chat_template_digest: SHA-256 (hexadecimal) of the chat template's text; empty if there is none.
        stop_tokens: tokens that end a turn, as text.
        system_prompt: used when a request has no system message.
        system_prompt_digest: SHA-256 of it.
        examples: for a prompt model, exchanges `{user, assistant}` that precede the conversation.
        max_context: tokens of context.
        sampling_defaults: sampling that applies where a request is silent.
        prompt_template: how a user turn is rendered; empty means as it is.
    """

    chat_template_digest: str = ""
    stop_tokens: tuple[str, ...] = ()
    system_prompt: str = ""
    system_prompt_digest: str = ""
    examples: tuple[dict[str, str], ...] = ()
    max_context: int = 0
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    prompt_template: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where weights came from that were not made here.

    Attributes:
        kind: `folder`, `hub` or `remote`.
        location: the folder, the hub id or the base URL.
        revision: commit of the hub repository, or the model's name at the access point.
    """

    kind: Literal["folder", "hub", "remote"]
    location: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class DataRecord:
    """What a model was trained on.

    Attributes:
        dataset: `datasets/{id}`.
        dataset_digest: digest of the dataset.
        split: the split that was used.
        languages: the languages that were asked for; empty means all.
        items: conversations in the split.
        examples_digest: SHA-256 of the training examples as they were written for the worker.
        examples_seen: conversations trained on.
        truncated: conversations cut to fit.
        dropped: conversations left out, by reason.
        changed: conversations kept and changed, by reason.
        trained_tokens: tokens that the loss saw, per pass.
        masked_tokens: tokens that were only context, per pass.
    """

    dataset: str = ""
    dataset_digest: str = ""
    split: str = "train"
    languages: tuple[str, ...] = ()
    items: int = 0
    examples_digest: str = ""
    examples_seen: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    trained_tokens: int = 0
    masked_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """How a model was trained.

    Attributes:
        job: `trainingJobs/{id}`.
        method: name of the method.
        parameters: every parameter with the value that held.
        seed: the seed.
        loss_on: which tokens the loss saw: `assistant` or `all`; empty for a prompt.
        precision: `fp32` or `bf16`; empty for a prompt.
        steps: optimiser steps.
        epochs: passes.
        first_loss: mean loss of the first report.
        final_loss: mean loss over the last tenth of the steps.
        tokens: tokens seen over all passes.
        started: when the work began.
        finished: when it ended.
        seconds: wall seconds of the loop.
        notes: what the training wanted to be known.
    """

    job: str = ""
    method: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    loss_on: str = ""
    precision: str = ""
    steps: int = 0
    epochs: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    tokens: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A score of a version.

    Attributes:
        evaluation: `evaluations/{id}`.
        suite: id of the suite.
        suite_digest: digest of its content.
        pass_rate: share of scenarios passed, 0 to 1.
        pass_rate_low: lower end of the 95% interval.
        pass_rate_high: upper end of the 95% interval.
        verdict: against the baseline, in words; empty without one.
        gate_passed: whether the gate passed; None without a gate.
        when: when it ended.
    """

    evaluation: str
    suite: str = ""
    suite_digest: str = ""
    pass_rate: float = 0.0
    pass_rate_low: float = 0.0
    pass_rate_high: float = 0.0
    verdict: str = ""
    gate_passed: bool | None = None
    when: datetime | None = None


@dataclass(frozen=True, slots=True)
class Replication:
    """Whether the entry alone was shown to give the model again.

    Attributes:
        verdict: `unverified`, `exact`, `within tolerance` or `not replicable`.
        reason: why.
        verified: when.
    """

    verdict: Literal["unverified", "exact", "within tolerance", "not replicable"] = "unverified"
    reason: str = ""
    verified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model; immutable but for `evaluations` and `replication`.

    Attributes:
        model_id: the id.
        version: counts from 1.
        kind: what kind of thing it is.
        revision: digest over everything that decides what the model says.
        base: `models/{id}/versions/{n}` that it stands on; empty for a base.
        base_revision: `revision` of that version.
        artifacts: its files.
        conversation: how a conversation is put to it.
        source: where weights came from that were not made here.
        data: what it was trained on.
        training: how it was trained.
        environment: versions of libraries, device, commit.
        parameter_count: weights, of the adapter alone for an adapter.
        evaluations: scores, newest last.
        replication: whether it was rebuilt from this entry.
        created: when it was registered.
        created_by: who registered it.
        license: SPDX expression.
        description: a sentence.
        labels: free.
        shipped: it comes with Chatmill and is not written to the registry file.
    """

    model_id: str
    version: int
    kind: Kind
    revision: str = ""
    base: str = ""
    base_revision: str = ""
    artifacts: tuple[Artifact, ...] = ()
    conversation: Contract = field(default_factory=Contract)
    source: Source | None = None
    data: DataRecord | None = None
    training: TrainingRecord | None = None
    environment: dict[str, str] = field(default_factory=dict)
    parameter_count: int = 0
    evaluations: tuple[Evaluation, ...] = ()
    replication: Replication = field(default_factory=Replication)
    created: datetime | None = None
    created_by: str = ""
    license: str = ""
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    shipped: bool = False

    @property
    def name(self) -> str:
        """Resource name, `models/{id}/versions/{n}`."""
        return f"models/{self.model_id}/versions/{self.version}"

    def with_revision(self) -> Entry:
        """The entry with `revision` computed from what decides what the model says."""
        decisive = {
            "kind": self.kind,
            "base": self.base_revision,
            "artifacts": sorted((a.path.rpartition("/")[2], a.sha256) for a in self.artifacts),
            "conversation": asdict(self.conversation),
            "source": asdict(self.source) if self.source and not self.artifacts else None,
        }
        text = json.dumps(decisive, sort_keys=True, ensure_ascii=False)
        return replace(self, revision=hashlib.sha256(text.encode()).hexdigest())


def to_yaml_data(entry: Entry) -> dict[str, Any]:
    """The entry for YAML: without id and version (the keys above it) and without what is empty."""
    data: dict[str, Any] = _plain(entry)
    for key in ("model_id", "version", "shipped"):
        data.pop(key, None)
    return data


def from_yaml_data(model_id: str, version: int, data: Mapping[str, Any], where: str) -> Entry:
    """The entry that stands in YAML.

    Raises:
        InvalidArgument: a key is unknown or a value has the wrong type; names the place.
    """
    try:
        entry = _build(Entry, {**data, "model_id": model_id, "version": version}, where)
    except TypeError as error:
        raise InvalidArgument(f"{where}: {error}", reason="INVALID_REGISTRY") from None
    return entry if entry.revision else entry.with_revision()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, _plain(getattr(value, f.name))) for f in fields(value))
        return {name: found for name, found in pairs if not (found is None or found in ("", [], {}))}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


T = TypeVar("T")


def _build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    hints = get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise InvalidArgument(f"{where}: unknown key {unknown[0]!r}.", reason="INVALID_REGISTRY")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    options = [a for a in get_args(hint) if a is not type(None)] if type(None) in get_args(hint) else [hint]
    target = options[0]
    if value is None:
        return None
    if is_dataclass(target) and isinstance(target, type):
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"{where}: expected keys and values.", reason="INVALID_REGISTRY")
        return _build(target, value, where)
    if get_origin(target) is tuple:
        item = get_args(target)[0]
        return tuple(_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if get_origin(target) is Literal and value not in get_args(target):
        raise InvalidArgument(
            f"{where}: {value!r} is none of {', '.join(map(repr, get_args(target)))}.", reason="INVALID_REGISTRY"
        )
    if target is float and isinstance(value, int):
        return float(value)
    return value
