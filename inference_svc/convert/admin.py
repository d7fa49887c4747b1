"""Models of the registry, load and the operator's changes, between the contract and the service's own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from chatmill.factory.v1 import model_pb2, registry_service_pb2
from chatmill.inference.v1 import inference_service_pb2, serving_admin_service_pb2
from inference_svc.convert.requests import SAMPLING_SCALARS
from inference_svc.entries import CatalogChange, ModelEntry, ModelFile, ModelKind
from inference_svc.overrides import Overrides
from inference_svc.service import LoadReport, ServedModel

_KINDS = {
    model_pb2.MODEL_KIND_BASE: ModelKind.BASE,
    model_pb2.MODEL_KIND_ADAPTER: ModelKind.ADAPTER,
    model_pb2.MODEL_KIND_PROMPT: ModelKind.PROMPT,
    model_pb2.MODEL_KIND_MERGED: ModelKind.MERGED,
    model_pb2.MODEL_KIND_REMOTE: ModelKind.REMOTE,
}


def change_from(message: registry_service_pb2.WatchModelsResponse) -> CatalogChange:
    """A message of the registry."""
    return CatalogChange(tuple(map(entry_from, message.models)), message.snapshot)


def entry_from(model: model_pb2.Model) -> ModelEntry:
    """An entry of the registry."""
    contract, source = model.conversation, model.source
    return ModelEntry(
        name=model.name,
        revision=model.revision,
        kind=_KINDS[model.kind],
        base=model.base,
        files=tuple(ModelFile(a.path, a.sha256, a.size_bytes) for a in model.artifacts),
        aliases=tuple(model.aliases),
        system_prompt=contract.system_prompt,
        examples=tuple((e.user, e.assistant) for e in contract.examples),
        prompt_template=contract.prompt_template,
        stop_tokens=tuple(contract.stop_tokens),
        template_digest=contract.chat_template_digest,
        max_context=contract.max_context,
        sampling_defaults=_defaults_from(json_format.MessageToDict(contract.sampling_defaults)),
        hub_id=source.hub_id,
        base_url=source.base_url,
        remote_name=source.revision,
    )


def _defaults_from(values: Mapping[str, Any]) -> dict[str, object]:
    """Sampling defaults as Transformers' generation_config.json or our own fields write them."""
    whole = {"max_output_tokens", "min_output_tokens", "top_k", "seed"}
    named = {"max_new_tokens": "max_output_tokens", "min_new_tokens": "min_output_tokens"}
    defaults: dict[str, object] = {}
    for key, value in values.items():
        name = named.get(key, key)
        if name in SAMPLING_SCALARS and isinstance(value, int | float) and not isinstance(value, bool):
            defaults[name] = int(value) if name in whole else float(value)
    if values.get("do_sample") is False:
        defaults["temperature"] = 0.0
    stops = values.get("stop_sequences")
    if isinstance(stops, Sequence) and not isinstance(stops, str):
        defaults["stop_sequences"] = tuple(map(str, stops))
    return defaults


def served_to(model: ServedModel) -> inference_service_pb2.ServedModel:
    """A model that can be asked for."""
    return inference_service_pb2.ServedModel(
        model=model.entry.name,
        revision=model.entry.revision,
        aliases=model.entry.aliases,
        loaded=model.loaded,
        engine=model.engine,
        quantization=model.quantization,
        memory_bytes=model.memory_bytes,
        running=model.running,
        max_context=model.max_context,
    )


def load_to(load: LoadReport) -> serving_admin_service_pb2.GetLoadResponse:
    """How busy the service is."""
    return serving_admin_service_pb2.GetLoadResponse(
        running=load.running,
        waiting=load.waiting,
        waiting_tokens=load.waiting_tokens,
        max_waiting=load.max_waiting,
        tokens_per_second=load.tokens_per_second,
        cache_hit_rate=load.cache_hit_rate,
        memory_bytes=load.memory_bytes,
        draining=load.draining,
        refused=load.refused,
    )


def overrides_from(message: serving_admin_service_pb2.Overrides) -> Overrides:
    """The operator's changes."""
    return Overrides(tuple(message.blocked_phrases), tuple(message.forced_fallback_models))


def overrides_to(overrides: Overrides) -> serving_admin_service_pb2.Overrides:
    """The operator's changes."""
    return serving_admin_service_pb2.Overrides(
        blocked_phrases=overrides.blocked_phrases, forced_fallback_models=overrides.forced_fallback
    )
