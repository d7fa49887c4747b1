"""Between the contract's messages and the factory's own types; the only module that sees both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import status_pb2

from chatmill import access_points
from chatmill.common.v1 import job_pb2, message_pb2
from chatmill.dataset.v1 import dataset_pb2
from chatmill.errors import InvalidArgument
from chatmill.factory.v1 import model_pb2, training_job_pb2
from chatmill.runtime.status import to_status
from factory_svc import checks
from factory_svc.entry import Contract, DataRecord, Entry, Evaluation, Source, TrainingRecord
from factory_svc.examples import Item, ToolCall, Turn
from factory_svc.jobs import Event, EventKind, Job, JobSpec, State
from factory_svc.methods import TrainingMethod
from factory_svc.methods.parameters import ParameterDescription, describe
from factory_svc.registry import Snapshot
from factory_svc.worker import error_from_dict

_ROLES = {
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_TOOL: "tool",
}


# --- jobs ---


def job_id(name: str) -> str:
    """The id in `trainingJobs/{id}`. Raises InvalidArgument."""
    collection, _, found = name.partition("/")
    if collection != "trainingJobs" or not found or "/" in found:
        raise InvalidArgument.field("name", f"{name!r} is not a training job's name; use trainingJobs/ID")
    return found


def spec_from(message: training_job_pb2.TrainingSpec) -> JobSpec:
    """The request's spec."""
    return JobSpec(
        base=message.base,
        dataset=message.dataset,
        model_id=message.model_id,
        method=message.method,
        parameters=struct_to_dict(message.parameters, "spec.parameters"),
        system_prompt=message.system_prompt,
        languages=tuple(message.languages),
        seed=message.seed,
        tool_messages="skip" if message.skip_tool_messages else "include",
        labels=dict(message.labels),
    )


def spec_to(spec: JobSpec) -> training_job_pb2.TrainingSpec:
    """The spec as the contract shows it."""
    return training_job_pb2.TrainingSpec(
        base=spec.base,
        dataset=spec.dataset,
        model_id=spec.model_id,
        method=spec.method,
        parameters=dict_to_struct(spec.parameters),
        system_prompt=spec.system_prompt,
        languages=spec.languages,
        seed=spec.seed,
        skip_tool_messages=spec.tool_messages == "skip",
        labels=spec.labels,
    )


def state_to(state: State) -> job_pb2.JobState.ValueType:
    """A state."""
    return job_pb2.JobState.Value(f"JOB_STATE_{state}")


def state_from(state: job_pb2.JobState.ValueType) -> State | None:
    """A state, or None if it is unset. Raises InvalidArgument for a number that is none."""
    if state not in job_pb2.JobState.values():
        raise InvalidArgument.field("state", f"{state} is not a state; use a JobState or leave it unset")
    name = job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
    return None if name == "UNSPECIFIED" else State(name)


def job_to(job: Job) -> training_job_pb2.TrainingJob:
    """A job."""
    return training_job_pb2.TrainingJob(
        name=job.name,
        state=state_to(job.state),
        spec=spec_to(job.spec),
        progress=progress_to(job.progress) if job.progress else None,
        model=job.model,
        error=error_to(job.error) if job.error else None,
        create_time=time_to(job.created),
        start_time=time_to(job.started),
        end_time=time_to(job.ended),
        last_sequence=job.last_sequence,
    )


def error_to(error: Mapping[str, Any]) -> status_pb2.Status:
    """Why a job failed, as the rich status that a call would have ended with."""
    return to_status(error_from_dict(error))


def progress_to(progress: Mapping[str, Any]) -> training_job_pb2.TrainingProgress:
    """A progress."""
    return training_job_pb2.TrainingProgress(
        step=progress["step"],
        total_steps=progress["total_steps"],
        loss=progress["loss"] or 0.0,
        tokens_per_second=progress["tokens_per_second"] or 0.0,
        seconds_left=progress["seconds_left"] or 0.0,
        phase=progress["phase"],
        note=progress["note"],
    )


def event_to(event: Event, job: Job) -> training_job_pb2.TrainingEvent:
    """An event; `job` is what a final one shows."""
    message = training_job_pb2.TrainingEvent(sequence=event.sequence, time=time_to(event.time))
    if event.kind is EventKind.STATE:
        message.state = state_to(State(event.payload["state"]))
    elif event.kind is EventKind.PROGRESS:
        message.progress.CopyFrom(progress_to(event.payload))
    elif event.kind is EventKind.WARNING:
        message.warning = event.payload["text"]
    else:
        message.finished.CopyFrom(job_to(job))
    return message


def method_to(name: str, method: TrainingMethod) -> training_job_pb2.TrainingMethod:
    """An installed method."""
    return training_job_pb2.TrainingMethod(
        method=name,
        description=method.summary,
        parameters=[_parameter_to(p) for p in describe(method.parameters)],
    )


def _parameter_to(parameter: ParameterDescription) -> training_job_pb2.TrainingParameter:
    bounds = [
        f"at least {parameter.minimum:g}" if parameter.minimum is not None else "",
        f"at most {parameter.maximum:g}" if parameter.maximum is not None else "",
    ]
    span = " and ".join(b for b in bounds if b)
    return training_job_pb2.TrainingParameter(
        name=parameter.name,
        type=parameter.type,
        description=f"{parameter.meaning} ({span})" if span else parameter.meaning,
        default_json=parameter.default_json,
    )


# --- models ---


def model_to(entry: Entry, snapshot: Snapshot) -> model_pb2.Model:
    """A version with the aliases that point to it."""
    return model_pb2.Model(
        name=entry.name,
        kind=model_pb2.ModelKind.Value(f"MODEL_KIND_{entry.kind.upper()}"),
        base=entry.base,
        revision=entry.revision,
        # The hub's files are not on this machine; `source` says where they are.
        artifacts=[
            model_pb2.Artifact(path=a.path, sha256=a.sha256, size_bytes=a.bytes)
            for a in entry.artifacts
            if not a.path.startswith("hf://")
        ],
        conversation=_contract_to(entry.conversation),
        source=_source_to(entry.source) if entry.source else None,
        data=_data_to(entry.data) if entry.data else None,
        training=_training_to(entry.training, entry.environment) if entry.training else None,
        aliases=snapshot.aliases_of(entry),
        evaluations=[_evaluation_to(e) for e in entry.evaluations],
        parameter_count=entry.parameter_count,
        create_time=time_to(entry.created),
        license=entry.license,
        description=entry.description,
        labels=entry.labels,
    )


def source_from(message: model_pb2.ModelSource) -> Source:
    """Where a model lies. Raises InvalidArgument if no place is named, or one that can't be."""
    place = message.WhichOneof("place")
    if place == "folder":
        return Source("folder", message.folder)
    if place == "hub_id":
        return Source("hub", message.hub_id, message.revision)
    if place == "base_url":
        try:
            access_points.check_url(message.base_url)
        except ValueError as error:
            raise InvalidArgument.field("source.base_url", str(error)) from None
        return Source("remote", message.base_url, message.revision)
    raise InvalidArgument.field("source", "must name a folder, a hub id or a base URL")


def evaluation_from(message: model_pb2.EvaluationRecord) -> Evaluation:
    """A score. Raises InvalidArgument if it can't be one."""
    score = Evaluation(
        evaluation=message.evaluation,
        suite=message.suite,
        suite_digest=message.suite_digest,
        pass_rate=message.pass_rate,
        pass_rate_low=message.pass_rate_low,
        pass_rate_high=message.pass_rate_high,
        verdict=message.verdict,
        gate_passed=message.gate_passed if message.HasField("gate_passed") else None,
        when=time_from(message.end_time, "record.end_time") if message.HasField("end_time") else None,
    )
    return checks.evaluation(score, "record")


def _evaluation_to(score: Evaluation) -> model_pb2.EvaluationRecord:
    return model_pb2.EvaluationRecord(
        evaluation=score.evaluation,
        suite=score.suite,
        suite_digest=score.suite_digest,
        pass_rate=score.pass_rate,
        pass_rate_low=score.pass_rate_low,
        pass_rate_high=score.pass_rate_high,
        verdict=score.verdict,
        gate_passed=score.gate_passed,
        end_time=time_to(score.when),
    )


def _contract_to(contract: Contract) -> model_pb2.ConversationContract:
    return model_pb2.ConversationContract(
        chat_template_digest=contract.chat_template_digest,
        stop_tokens=contract.stop_tokens,
        system_prompt=contract.system_prompt,
        examples=[model_pb2.PromptExample(user=e["user"], assistant=e["assistant"]) for e in contract.examples],
        max_context=contract.max_context,
        sampling_defaults=dict_to_struct(contract.sampling_defaults),
        prompt_template=contract.prompt_template,
    )


def _source_to(source: Source) -> model_pb2.ModelSource:
    message = model_pb2.ModelSource(revision=source.revision)
    setattr(message, {"folder": "folder", "hub": "hub_id", "remote": "base_url"}[source.kind], source.location)
    return message


def _data_to(data: DataRecord) -> model_pb2.TrainingData:
    return model_pb2.TrainingData(
        dataset=data.dataset,
        dataset_digest=data.dataset_digest,
        item_count=data.items,
        example_count=data.examples_seen,
        truncated_count=data.truncated,
        dropped=data.dropped,
        trained_token_count=data.trained_tokens,
        masked_token_count=data.masked_tokens,
    )


def _training_to(record: TrainingRecord, environment: Mapping[str, str]) -> model_pb2.TrainingRecord:
    return model_pb2.TrainingRecord(
        training_job=record.job,
        method=record.method,
        parameters=dict_to_struct(record.parameters),
        seed=record.seed,
        final_loss=record.final_loss or 0.0,
        seconds=record.seconds,
        steps=record.steps,
        environment=environment,
    )


# --- items ---


def item_from(message: dataset_pb2.Item) -> Item:
    """A conversation of the dataset service."""
    return Item(
        name=message.name,
        turns=tuple(_turn_from(m) for m in message.messages),
        facts=tuple(message.facts),
        human_intervention_idx=message.human_intervention_idx if message.HasField("human_intervention_idx") else None,
        human_intervention_reason=message.human_intervention_reason,
        language=message.language,
    )


def _turn_from(message: message_pb2.Message) -> Turn:
    calls = tuple(ToolCall(call.name, call.arguments_json) for call in message.tool_calls)
    return Turn(_ROLES.get(message.role, "user"), message.content, calls)


# --- well-known types ---


def struct_to_dict(struct: struct_pb2.Struct, field: str) -> dict[str, Any]:
    """A Struct as plain data; whole numbers become ints, which JSON and Struct don't tell apart.

    Raises:
        InvalidArgument: a number in it is not finite, or a value is unset.
    """
    try:
        plain: dict[str, Any] = json_format.MessageToDict(struct)
    except (json_format.SerializeToJsonError, ValueError):  # which of the two depends on how deep the value lies
        raise InvalidArgument.field(field, "every value must be set, and every number finite") from None
    return {key: _whole(value) for key, value in plain.items()}


def dict_to_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """Plain data as a Struct."""
    struct = struct_pb2.Struct()
    struct.update(json.loads(json.dumps(dict(values))))
    return struct


def time_to(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    """A moment."""
    if time is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp


def time_from(stamp: timestamp_pb2.Timestamp, field: str) -> datetime:
    """A moment, in UTC. Raises InvalidArgument if there is no such moment."""
    try:
        moment: datetime = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.field(
            field, "must be a moment of the years 1 to 9999, with 0 to 999,999,999 nanoseconds"
        ) from None
    return moment


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_whole(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _whole(v) for k, v in value.items()}
    return value
