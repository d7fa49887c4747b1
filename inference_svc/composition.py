"""Puts the service together from its configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

import chatmill
from chatmill import access_points
from chatmill.config import Config, InferenceSettings
from chatmill.errors import InvalidArgument
from chatmill.imports import import_bitsandbytes
from chatmill.plugins import parse_parameters
from inference_svc.admission import Admission, AdmissionSettings
from inference_svc.artifacts import ArtifactStore
from inference_svc.attempt import Collaborators
from inference_svc.engines.base import ENGINES, Engine
from inference_svc.entries import ModelEntry, ModelKind, RegistrySource
from inference_svc.fallback import Chain, Fallbacks
from inference_svc.models import MakeEngine, ModelStore
from inference_svc.moderation.base import ModeratorEnvironment
from inference_svc.moderation.policy import Moderation, build
from inference_svc.overrides import FILE_NAME, OverridesFile
from inference_svc.pipeline import Pipeline
from inference_svc.service import Inference

ENGINE_MODULES = ("inference_svc.engines.rows.engine", "inference_svc.engines.openai.engine")
MODERATOR_MODULES = tuple(f"inference_svc.moderation.{name}" for name in ("judge", "leak", "personal", "words"))
"""Modules whose import registers what is built in."""


def compose(config: Config, registry: RegistrySource, make_engine: MakeEngine | None = None) -> Inference:
    """The service.

    Args:
        config: the whole configuration.
        registry: where the models come from.
        make_engine: makes engines; the configured plug-in without it.

    Raises:
        InvalidArgument: on `moderators` or `fallbacks`: an entry is wrong.
        NotFound: an engine or a moderator is not installed.
    """
    for module in MODERATOR_MODULES:
        importlib.import_module(module)
    settings, home = config.inference, config.home.resolve()
    overrides = OverridesFile(home / FILE_NAME)
    models = ModelStore(
        ArtifactStore(home / "artifacts", _roots(config), Path(HF_HUB_CACHE)),
        make_engine or engine_maker(settings),
        quantization=settings.quantization,
        memory_budget=settings.memory_budget_mib and settings.memory_budget_mib << 20,
        max_adapters=settings.max_adapters,
    )
    admission = Admission(
        AdmissionSettings(
            settings.max_queue,
            settings.max_queue_tokens,
            settings.max_queue_seconds,
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.rate_storage,
        )
    )

    async def ask(model: str, prompt: str) -> str:
        return await pipeline.ask(model, prompt)

    rules = build(settings.moderators, ModeratorEnvironment(overrides, ask, _reader(config)))
    collaborators = Collaborators(
        models,
        admission,
        Moderation(rules, client_may_relax=settings.client_may_relax_moderation),
        None if settings.flush_interval_ms is None else settings.flush_interval_ms / 1000,
        settings.blocked_reply,
    )
    chains = [parse_parameters(Chain, c, field=f"fallbacks[{i}]") for i, c in enumerate(settings.fallbacks)]
    fallbacks = Fallbacks(chains, settings.breaker_failures, settings.breaker_seconds, overrides.forced)
    pipeline = Pipeline(collaborators, fallbacks)
    return Inference(pipeline, models, admission, overrides, registry, settings.preload)


def engine_maker(settings: InferenceSettings) -> MakeEngine:
    """Makes the configured engine, or the upstream one for remote models."""
    import_bitsandbytes()
    for module in ENGINE_MODULES:
        importlib.import_module(module)
    local = ENGINES.get(settings.engine)
    values = {
        "quantization": settings.quantization,
        "device": settings.device,
        "threads": settings.threads,
        "max_rows": settings.max_rows,
        "max_adapters": settings.max_adapters,
        "context_length": settings.context_length,
        "prefix_cache_tokens": settings.prefix_cache_tokens,
    }
    key_file = str(settings.remote_key_file) if settings.remote_key_file else ""

    def make(entry: ModelEntry) -> tuple[str, Engine]:
        if entry.kind is ModelKind.REMOTE:
            remote = ENGINES.get("openai")
            known = access_points.is_among(entry.base_url, settings.remote_trusted_hosts)
            parameters = {
                "base_url": entry.base_url,
                "model": entry.remote_name,
                "key_file": key_file if known else "",
            }
            return "openai", remote(parse_parameters(remote.Parameters, parameters))
        return settings.engine, local(parse_parameters(local.Parameters, values))

    return make


def _roots(config: Config) -> list[Path]:
    shipped = Path(chatmill.__file__).resolve().parent.parent / "factory_svc" / "base_models"
    return [config.home.resolve(), shipped, *config.inference.roots, *config.factory.roots]


def _reader(config: Config) -> Callable[[str], str]:
    roots = [config.home.resolve(), *config.inference.roots, Path.cwd()]

    def read(path: str) -> str:
        found = Path(path).expanduser().resolve()
        if not any(found.is_relative_to(root.resolve()) for root in roots):
            raise InvalidArgument.field(
                "moderators", f"{found} lies outside the home folder, inference.roots and the working directory"
            )
        try:
            return found.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument.field("moderators", f"{found} can't be read: {error}") from error

    return read
