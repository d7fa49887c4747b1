"""Turns what a worker left behind into a registry entry."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

from factory_svc.digests import text_sha256
from factory_svc.entry import Artifact, Contract, DataRecord, Entry, Kind, TrainingRecord
from factory_svc.jobs import Job
from factory_svc.model_files import list_artifacts, parameter_count, read_contract
from factory_svc.prepare import Prepared
from factory_svc.task import TrainingOutcome


def make_entry(
    job: Job,
    outcome: TrainingOutcome,
    base: Entry | None,
    prepared: Prepared,
) -> Entry:
    """The entry of a finished job, still without its version.

    Args:
        job: the job.
        outcome: what the worker reported; its files lie in `outcome.output`.
        base: what was trained on, or None.
        prepared: the data.
    """
    artifacts = () if outcome.kind == "prompt" else list_artifacts(outcome.output, ".")
    return Entry(
        model_id=job.spec.model_id,
        version=0,
        kind=cast(Kind, outcome.kind),
        base=base.name if base is not None else "",
        base_revision=base.revision if base is not None else "",
        artifacts=artifacts,
        conversation=_contract(job, outcome, base, artifacts),
        data=_data(job, outcome, prepared),
        training=_training(job, outcome),
        environment=outcome.environment,
        parameter_count=parameter_count(outcome.output) if artifacts else 0,
        created_by=job.name,
        license=base.license if base is not None else "",
        labels=job.spec.labels,
    )


def _contract(job: Job, outcome: TrainingOutcome, base: Entry | None, artifacts: tuple[Artifact, ...]) -> Contract:
    """A full model speaks by its own files, everything else as its base does; the system prompt is the job's."""
    own = read_contract(outcome.output) if base is None and artifacts else Contract()
    found = own if base is None else base.conversation
    system = outcome.prompt.get("system_prompt", "") or job.spec.system_prompt
    return replace(
        found,
        system_prompt=system,
        system_prompt_digest=text_sha256(system) if system else "",
        examples=tuple(outcome.prompt.get("examples", ())),
    )


def _data(job: Job, outcome: TrainingOutcome, prepared: Prepared) -> DataRecord:
    c, examples = outcome.data, prepared.counters
    left_out = {"longer than max_length": c.dropped_over_length, "no assistant token": c.dropped_no_target}
    return DataRecord(
        dataset=prepared.dataset.name,
        dataset_digest=prepared.dataset.digest,
        languages=job.spec.languages,
        items=examples.read,
        examples_digest=prepared.digest,
        examples_seen=c.examples_trained,
        truncated=c.truncated,
        dropped={**dict(examples.dropped), **{reason: n for reason, n in left_out.items() if n}},
        changed=dict(examples.changed),
        trained_tokens=c.target_tokens,
        masked_tokens=c.masked_tokens,
    )


def _training(job: Job, outcome: TrainingOutcome) -> TrainingRecord:
    return TrainingRecord(
        job=job.name,
        method=job.spec.method,
        parameters=outcome.parameters,
        seed=job.spec.seed,
        loss_on=str(outcome.parameters.get("loss_on", "")),
        precision=outcome.precision,
        steps=outcome.steps,
        epochs=round(outcome.epochs, 4),
        first_loss=outcome.first_loss,
        final_loss=outcome.final_loss,
        tokens=outcome.tokens_trained,
        started=job.started,
        finished=datetime.now(UTC).replace(microsecond=0),
        seconds=outcome.seconds,
        notes=outcome.notes,
    )
