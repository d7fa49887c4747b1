"""The two gRPC services: convert in, call the core, convert out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from chatmill.inference.v1 import (
    CancelGenerationRequest,
    CancelGenerationResponse,
    CompleteRequest,
    CompleteResponse,
    CountTokensRequest,
    CountTokensResponse,
    DrainRequest,
    DrainResponse,
    GenerateRequest,
    GenerateResponse,
    GetLoadRequest,
    GetLoadResponse,
    GetOverridesRequest,
    GetOverridesResponse,
    InferenceServiceServicer,
    ListServedModelsRequest,
    ListServedModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    ServingAdminServiceServicer,
    UnloadModelRequest,
    UnloadModelResponse,
    UpdateOverridesRequest,
    UpdateOverridesResponse,
)
from chatmill.randomness import random_bytes
from chatmill.runtime import Context
from chatmill.runtime.identity import PRINCIPAL, REQUEST_ID
from inference_svc import convert
from inference_svc.events import ChatRequest
from inference_svc.service import Inference


class InferenceServicer(InferenceServiceServicer):
    """Answers."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._pipeline = inference.pipeline

    async def Generate(self, request: GenerateRequest, context: Context) -> AsyncIterator[GenerateResponse]:
        """Stream a reply."""
        async with aclosing(self._pipeline.generate(_request(request, context))) as events:
            sequence = 0
            async for event in events:
                yield GenerateResponse(event=convert.event_to(event, sequence))
                sequence += 1

    async def Complete(self, request: CompleteRequest, context: Context) -> CompleteResponse:
        """A reply in one piece."""
        return convert.complete_to(await self._pipeline.complete(_request(request, context)))

    async def CancelGeneration(self, request: CancelGenerationRequest, context: Context) -> CancelGenerationResponse:
        """End a request that runs in another call."""
        self._pipeline.cancel(request.request_id)
        return CancelGenerationResponse()

    async def CountTokens(self, request: CountTokensRequest, context: Context) -> CountTokensResponse:
        """Tokens of a prompt."""
        messages = convert.messages_from(request.messages, "messages")
        count, limit = await self._pipeline.count_tokens(request.model, messages, tuple(request.facts))
        return CountTokensResponse(prompt_tokens=count, max_context=limit)

    async def ListServedModels(self, request: ListServedModelsRequest, context: Context) -> ListServedModelsResponse:
        """The models that can be asked for."""
        return ListServedModelsResponse(served_models=[convert.served_to(m) for m in self._inference.served()])


class ServingAdminServicer(ServingAdminServiceServicer):
    """Runs the serving."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def LoadModel(self, request: LoadModelRequest, context: Context) -> LoadModelResponse:
        """Bring a model into memory."""
        name, size = await self._inference.load(request.model)
        return LoadModelResponse(model=name, memory_bytes=size)

    async def UnloadModel(self, request: UnloadModelRequest, context: Context) -> UnloadModelResponse:
        """Take a model out of memory."""
        await self._inference.models.unload(request.model)
        return UnloadModelResponse()

    async def Drain(self, request: DrainRequest, context: Context) -> DrainResponse:
        """Refuse new requests, or take them again."""
        seconds = convert.seconds_from(request.max_wait)
        return DrainResponse(remaining=await self._inference.drain(seconds, resume=request.resume))

    async def GetLoad(self, request: GetLoadRequest, context: Context) -> GetLoadResponse:
        """How busy the service is."""
        return convert.load_to(self._inference.report())

    async def GetOverrides(self, request: GetOverridesRequest, context: Context) -> GetOverridesResponse:
        """The operator's changes."""
        return GetOverridesResponse(overrides=convert.overrides_to(self._inference.overrides.current))

    async def UpdateOverrides(self, request: UpdateOverridesRequest, context: Context) -> UpdateOverridesResponse:
        """Replace the operator's changes."""
        self._inference.overrides.update(convert.overrides_from(request.overrides))
        return UpdateOverridesResponse(overrides=convert.overrides_to(self._inference.overrides.current))


def _request(request: GenerateRequest | CompleteRequest, context: Context) -> ChatRequest:
    # all calls that serve one evaluation carry the same id in their metadata, so by itself it names no generation
    request_id = request.request_id or f"{REQUEST_ID.get()}-{random_bytes()[:4].hex()}"
    return convert.request_from(request.spec, request_id, PRINCIPAL.get(), context.time_remaining())
