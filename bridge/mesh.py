"""The mesh as the bridge sees it: stubs over our own channels, each opened when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatmill.config import Config
from chatmill.eval import v1 as eval_v1
from chatmill.inference import v1 as inference_v1
from chatmill.runtime.channel import Channel, connect_service

if TYPE_CHECKING:  # the async stubs exist for type checkers only
    from chatmill.eval.v1.eval_service_pb2_grpc import EvalServiceAsyncStub
    from chatmill.eval.v1.human_eval_service_pb2_grpc import HumanEvalServiceAsyncStub
    from chatmill.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub


class Mesh:
    """The services that the bridge talks to. Calls raise ChatmillErrors; so does asking for one that isn't there.

    Args:
        config: where they are.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._channels: dict[str, Channel] = {}

    def _channel(self, service: str) -> Channel:
        if service not in self._channels:
            self._channels[service] = connect_service(service, self._config)
        return self._channels[service]

    @property
    def inference(self) -> InferenceServiceAsyncStub:
        """Answers."""
        return inference_v1.InferenceServiceStub(self._channel("inference"))

    @property
    def people(self) -> HumanEvalServiceAsyncStub:
        """Keeps what people say."""
        return eval_v1.HumanEvalServiceStub(self._channel("eval"))

    @property
    def evaluations(self) -> EvalServiceAsyncStub:
        """Scores models."""
        return eval_v1.EvalServiceStub(self._channel("eval"))

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
