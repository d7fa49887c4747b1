"""A service for tests: all four arities, both handler shapes, REQUIRED fields; made from a descriptor at run time.

It stands for any service of the contract without depending on one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "chatmill.probe.v1.ProbeService"
_F = descriptor_pb2.FieldDescriptorProto


def _field(message: Any, name: str, number: int, kind: int, *, required: bool = False, **more: Any) -> None:
    spec = message.field.add(name=name, number=number, type=kind, label=more.pop("label", _F.LABEL_OPTIONAL), **more)
    if required:
        spec.options.Extensions[field_behavior_pb2.field_behavior].append(field_behavior_pb2.REQUIRED)


def _build() -> tuple[Any, Any, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="chatmill/probe/v1/probe.proto",
        package="chatmill.probe.v1",
        syntax="proto3",
        dependency=["google/api/field_behavior.proto"],
    )
    part = file.message_type.add(name="Part")
    _field(part, "role", 1, _F.TYPE_STRING, required=True)
    _field(part, "children", 2, _F.TYPE_MESSAGE, label=_F.LABEL_REPEATED, type_name=".chatmill.probe.v1.Part")
    request = file.message_type.add(name="ProbeRequest")
    _field(request, "name", 1, _F.TYPE_STRING, required=True)
    _field(request, "parts", 2, _F.TYPE_MESSAGE, label=_F.LABEL_REPEATED, type_name=".chatmill.probe.v1.Part")
    entry = request.nested_type.add(name="ByKeyEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    _field(entry, "key", 1, _F.TYPE_STRING)
    _field(entry, "value", 2, _F.TYPE_MESSAGE, type_name=".chatmill.probe.v1.Part")
    _field(
        request,
        "by_key",
        3,
        _F.TYPE_MESSAGE,
        label=_F.LABEL_REPEATED,
        type_name=".chatmill.probe.v1.ProbeRequest.ByKeyEntry",
    )
    request.oneof_decl.add(name="_level")
    _field(request, "level", 4, _F.TYPE_INT32, oneof_index=0, proto3_optional=True)
    _field(request, "main", 5, _F.TYPE_MESSAGE, type_name=".chatmill.probe.v1.Part")
    response = file.message_type.add(name="ProbeResponse")
    _field(response, "text", 1, _F.TYPE_STRING)
    service = file.service.add(name="ProbeService")
    for name, streams_in, streams_out in METHODS:
        service.method.add(
            name=name,
            input_type=".chatmill.probe.v1.ProbeRequest",
            output_type=".chatmill.probe.v1.ProbeResponse",
            client_streaming=streams_in,
            server_streaming=streams_out,
        )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    made = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"chatmill.probe.v1.{name}"))
        for name in ("Part", "ProbeRequest", "ProbeResponse")
    ]
    return made[0], made[1], made[2]


METHODS = [
    ("UnaryUnary", False, False),
    ("UnaryStream", False, True),
    ("WriteStream", False, True),
    ("StreamUnary", True, False),
    ("StreamStream", True, True),
]
Part, ProbeRequest, ProbeResponse = _build()


class ProbeServicer:
    """Each method runs `behave`, which a test replaces; by default it answers what was asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.error_after = 0
        self.count = 3
        self.entered = asyncio.Event()
        self.released = asyncio.Event()
        self.go_on: asyncio.Event | None = None
        self.seen: list[Any] = []
        self.calls = 0

    async def _step(self, index: int) -> None:
        self.entered.set()
        if self.error is not None and index >= self.error_after:
            raise self.error
        if self.go_on is not None and index >= 1:
            await self.go_on.wait()

    async def UnaryUnary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        try:
            self.seen.append(context)
            self.entered.set()
            if self.error is not None:
                raise self.error
            if self.go_on is not None:
                await self.go_on.wait()
            return ProbeResponse(text=request.name)
        finally:
            self.released.set()

    async def UnaryStream(self, request: Any, context: Any) -> Any:
        self.calls += 1
        try:
            self.seen.append(context)
            for index in range(self.count):
                await self._step(index)
                yield ProbeResponse(text=f"{request.name}{index}")
        finally:
            self.released.set()

    async def WriteStream(self, request: Any, context: Any) -> None:
        try:
            for index in range(self.count):
                await self._step(index)
                await context.write(ProbeResponse(text=f"{request.name}{index}"))
        finally:
            self.released.set()

    async def StreamUnary(self, requests: Any, context: Any) -> Any:
        names = []
        try:
            async for request in requests:
                await self._step(len(names))
                names.append(request.name)
            return ProbeResponse(text=",".join(names))
        finally:
            self.released.set()

    async def StreamStream(self, requests: Any, context: Any) -> Any:
        index = 0
        try:
            async for request in requests:
                await self._step(index)
                index += 1
                yield ProbeResponse(text=request.name)
        finally:
            self.released.set()


def add_to_server(servicer: ProbeServicer, server: Any) -> None:
    """As generated code does it."""
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: makers[streams_in, streams_out](
            getattr(servicer, name),
            request_deserializer=ProbeRequest.FromString,
            response_serializer=ProbeResponse.SerializeToString,
        )
        for name, streams_in, streams_out in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class ProbeStub:
    """As generated code does it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        for name, streams_in, streams_out in METHODS:
            arity = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
            method = getattr(channel, arity)(
                f"/{SERVICE}/{name}",
                request_serializer=ProbeRequest.SerializeToString,
                response_deserializer=ProbeResponse.FromString,
                _registered_method=True,
            )
            setattr(self, name, method)
