"""The mesh as a recipe sees it: one stub per service, and streams of events that survive a broken connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from chatmill.config import SERVICES, Config
from chatmill.dataset.v1 import DatasetAdminServiceStub, DatasetServiceStub
from chatmill.errors import Unavailable
from chatmill.eval.v1 import EvalServiceStub
from chatmill.factory.v1 import FactoryServiceStub, RegistryServiceStub
from chatmill.inference.v1 import InferenceServiceStub
from chatmill.runtime.channel import connect, connect_service

if TYPE_CHECKING:
    from chatmill.dataset.v1.dataset_service_pb2_grpc import DatasetAdminServiceAsyncStub, DatasetServiceAsyncStub
    from chatmill.eval.v1.eval_service_pb2_grpc import EvalServiceAsyncStub
    from chatmill.factory.v1.factory_service_pb2_grpc import FactoryServiceAsyncStub
    from chatmill.factory.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from chatmill.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

FOREVER = math.inf
"""Timeout of calls that last as long as the work does."""
FIRST_DELAY = 0.25
"""Seconds before the first attempt to reach a service that was lost; doubles up to 5 s."""
NOWHERE = "127.0.0.1:1"
"""Target of channels that nobody calls."""
PATIENCE = 90.0
"""Seconds to go on trying to reach a service that was there before; a restart with its start-up fits."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """A stub of every service, on our own channels, so that calls raise `ChatmillError`s."""

    datasets: DatasetServiceAsyncStub
    dataset_admin: DatasetAdminServiceAsyncStub
    factory: FactoryServiceAsyncStub
    registry: RegistryServiceAsyncStub
    inference: InferenceServiceAsyncStub
    evals: EvalServiceAsyncStub


@asynccontextmanager
async def connected(config: Config, services: Iterable[str] = SERVICES) -> AsyncIterator[Mesh]:
    """The mesh that `config` points to; nothing is dialled before the first call.

    Args:
        config: says where the services are.
        services: those that will be called; calls of the others go nowhere.

    Raises:
        Unavailable: reason `SERVICE_NOT_FOUND`, if a service is on a port of the system's choice and not running here.
    """
    wanted = set(services)
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(
                connect_service(name, config) if name in wanted else connect(NOWHERE, config)
            )
            for name in SERVICES
        }
        yield Mesh(
            DatasetServiceStub(channels["dataset"]),
            DatasetAdminServiceStub(channels["dataset"]),
            FactoryServiceStub(channels["factory"]),
            RegistryServiceStub(channels["factory"]),
            InferenceServiceStub(channels["inference"]),
            EvalServiceStub(channels["eval"]),
        )


class Event(Protocol):
    """What the event messages of all jobs have in common."""

    @property
    def sequence(self) -> int:
        """Counts up from 1 within the job."""

    def HasField(self, field_name: Any) -> bool:  # noqa: N802 - protobuf's name
        """Whether the field is set."""


E = TypeVar("E", bound=Event)


@dataclass(slots=True)
class Followed(Generic[E]):
    """A job's events from the first to the last, whatever happens to the connection.

    Attributes:
        service: name of the service, for messages.
        start: opens the stream that starts the job (or attaches to it, by its request id).
        watch: opens the stream of a running job, by its name, behind a sequence number.
        resource: name of the field of the starting stream's messages that holds the job itself.
        broken: told each time the stream breaks, in words.
        name: the job's name, once it is known.
        sequence: number of the newest event seen.
        patience: seconds to go on trying while the service is away.
    """

    service: str
    start: Callable[[], AsyncIterable[Any]]
    watch: Callable[[str, int], AsyncIterable[Any]]
    resource: str
    broken: Callable[[str], None]
    name: str = ""
    sequence: int = 0
    patience: float = PATIENCE

    async def events(self) -> AsyncIterator[E]:
        """The events, each once, in order; ends with the one that has `finished`.

        Raises:
            Unavailable: the service stayed away for longer than `patience` seconds.
        """
        now = asyncio.get_running_loop().time
        away_since: float | None = None
        delay = FIRST_DELAY
        while True:
            began = now()
            try:
                async for event in self._stream():
                    away_since, delay = None, FIRST_DELAY
                    yield event
                    if event.HasField("finished"):
                        return
                reason = "the stream ended before the work did"
            except Unavailable as error:
                reason = error.message
            if away_since is None or now() - began > 10:  # a stream that lived that long was no failed attempt
                away_since = now()
            if now() - away_since >= self.patience:
                raise Unavailable(
                    f"the {self.service} service stayed away for {self.patience:.0f} s ({reason}). "
                    + (f"{self.name} is not lost: run the same command again." if self.name else "Is it running?")
                )
            self.broken(f"lost the {self.service} service, trying again ({reason})")
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def _stream(self) -> AsyncIterator[E]:
        """One connection's worth of new events."""
        stream = self.watch(self.name, self.sequence) if self.name else self.start()
        async for message in stream:
            if self.resource in message.DESCRIPTOR.fields_by_name and message.HasField(self.resource):
                self.name = getattr(message, self.resource).name
            elif message.HasField("event") and message.event.sequence > self.sequence:
                self.sequence = message.event.sequence
                yield message.event
