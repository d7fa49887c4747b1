"""All layers of a small decoder in one call that does not hold the interpreter.

Dispatching a layer's operations from Python costs as much as computing them for a few rows, and each takes the
interpreter anew: while the event loop takes a burst of calls, the engine's thread waits for it over a hundred times a
prefill. `layers.c` makes a step one operation. Its products are oneDNN's, as torch packs them, called through the C
interface that torch keeps for compiled models; LoRA adapters are added row by row. ADR 0018 has the reasons. This
module knows no request.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inference_svc.engines.rows import between, native
from inference_svc.engines.rows.adapters import Mix, Stack
from inference_svc.engines.rows.bell import Bell
from inference_svc.engines.rows.products import Product
from inference_svc.engines.rows.store import RowStore

log = logging.getLogger(__name__)

MOST_MODULES = 3
MOST_RANK = 256
"""Highest rank of an adapter that `layers.c` takes; both as there."""

_pointer, _size = ctypes.c_void_p, ctypes.c_int64


class Layer(Protocol):
    """A decoder layer: weights of its norms (None for heads without) and its four products."""

    norm_in: Tensor
    norm_out: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    products: tuple[Product, Product, Product, Product]


class _Torch(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("from_blob", "data", "drop", "linear")),
        *((name, ctypes.c_int32) for name in ("type", "device")),
    ]


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("weight", "bias")),
        *((name, _size) for name in ("inputs", "outputs", "modules")),
        ("sizes", _size * MOST_MODULES),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("norm_in", "norm_out", "q_norm", "k_norm")),
        ("products", _Product * 4),
        *((name, _pointer) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("torch", _Torch),
        ("layers", ctypes.POINTER(_Layer)),
        ("count", _size),
        ("norm", _pointer),
        ("head", _Product),
        *((name, _size) for name in ("width", "inner", "heads", "kv_heads", "size", "columns")),
        *((name, _pointer) for name in ("cos", "sin")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
        ("bell", _pointer),
    ]


class _Adapted(ctypes.Structure):
    _fields_ = [("a", _pointer), ("b", _pointer)]


class _Mix(ctypes.Structure):
    _fields_ = [("products", ctypes.POINTER(_Adapted)), ("places", _pointer), ("adapters", _size), ("rank", _size)]


class _Place(ctypes.Structure):
    _fields_ = [
        *((name, _size) for name in ("rows", "length", "start", "width")),
        *((name, _pointer) for name in ("slots", "positions")),
    ]


class _Work(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in ("x", "normal", "mixed", "inner")]


_TORCH = {
    "from_blob": "aoti_torch_create_tensor_from_blob",
    "data": "aoti_torch_get_data_ptr",
    "drop": "aoti_torch_delete_tensor_object",
    "linear": "aoti_torch_cpu__linear_pointwise",
}
"""What `layers.c` calls of torch's C interface (torch/csrc/inductor/aoti_torch/c)."""
_NUMBERS = {
    torch.float32: "aoti_torch_dtype_float32",
    torch.bfloat16: "aoti_torch_dtype_bfloat16",
    "cpu": "aoti_torch_device_type_cpu",
}
"""What tells its numbers of types and devices, which are not part of it."""


@functools.cache
def _interface() -> ctypes.CDLL:
    """Torch's library, with that interface.

    Raises:
        OSError: this build of torch hasn't got it.
    """
    library = native.torch_library()
    missing = [name for name in (*_TORCH.values(), *_NUMBERS.values()) if not hasattr(library, name)]
    if missing or not hasattr(getattr(torch._C, "_aoti", None), "unsafe_alloc_void_ptr_from_tensor"):
        raise OSError(f"torch {torch.__version__} has no {', '.join(missing) or 'handles of tensors'}")
    return library


class Layers:
    """The layers and the head of a decoder. Nothing here checks that positions lie within the states: that is the
    scheduler's, which reserves them.

    Args:
        library: `layers.c`, compiled for the precisions of the weights and of the states.
        layers: at least one; all products packed.
        norm: weight of the last norm.
        head: product that gives the logits.
        heads: of the queries.
        kv_heads: of keys and values.
        size: of a head, a multiple of 4, `between.MOST_SIZE` at most.
        epsilon: of all norms.
        scale: of the scores of attention.

    Raises:
        OSError: torch's C interface can't be had.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Product,
        *,
        heads: int,
        kv_heads: int,
        size: int,
        epsilon: float,
        scale: float,
    ) -> None:
        interface = _interface()
        self._run = library.run_step
        self._run.argtypes, self._run.restype = [*[_pointer] * 5, _size, _pointer], ctypes.c_int32
        self._model = model = _Model()
        for field, name in _TORCH.items():
            setattr(model.torch, field, ctypes.cast(getattr(interface, name), _pointer))
        model.torch.type = getattr(interface, _NUMBERS[norm.dtype])()
        model.torch.device = getattr(interface, _NUMBERS["cpu"])()
        handles: list[int] = []
        # Not when the interpreter ends: a step may still be running then, on a thread that nobody waits for.
        weakref.finalize(self, _drop, interface, handles).atexit = False
        # The memory itself, whatever becomes of the parameters.
        self._kept: list[Tensor] = []
        self._products: list[Product] = [*(product for layer in layers for product in layer.products), head]
        self._layers = (_Layer * len(layers))()
        model.layers, model.count = self._layers, len(layers)
        for own, layer in zip(self._layers, layers, strict=True):
            for name in ("norm_in", "norm_out", "q_norm", "k_norm"):
                setattr(own, name, self._keep(getattr(layer, name)))
            for place, product in zip(own.products, layer.products, strict=True):
                _describe(place, product, handles)
        _describe(model.head, head, handles)
        model.norm = self._keep(norm)
        model.width, model.inner = norm.shape[0], layers[0].products[-1].shape[1]
        model.heads, model.kv_heads, model.size = heads, kv_heads, size
        model.epsilon, model.scale = epsilon, scale
        self._stack: tuple[weakref.ref[Stack], Any] | None = None

    def _keep(self, weight: Tensor | None) -> int | None:
        if weight is None:
            return None
        self._kept.append(weight.detach().contiguous())
        return self._kept[-1].data_ptr()

    def use(self, store: RowStore, cos: Tensor, sin: Tensor) -> None:
        """Work on these states from now on.

        Args:
            store: whose memory does not move before the next call of this.
            cos: float32 [columns, size].
            sin: the same, negative in its first half.
        """
        self._tables = cos, sin
        self._model.columns, self._model.cos, self._model.sin = store.columns, cos.data_ptr(), sin.data_ptr()
        for own, keys, values in zip(self._layers, store.keys, store.values, strict=True):
            own.keys, own.values = keys.data_ptr(), values.data_ptr()

    def ring(self, bell: Bell) -> None:
        """Ring it whenever a step begins."""
        self._bell = bell
        self._model.bell = ctypes.addressof(bell.cell)
        bell.taken = True

    @staticmethod
    def takes(mix: Mix | None) -> bool:
        """Whether these adapters can be added here."""
        return mix is None or mix.stack.rank <= MOST_RANK

    def decode(self, x: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """Logits [rows, vocabulary] of one new token for each of the first rows of the store.

        Args:
            x: [rows, width of the model] embeddings; changed.
            positions: int64 [rows] column of the new token.
            width: rows whose position is not below it are passed over, and their result says nothing.
            mix: adapters of the rows.
        """
        positions = positions.contiguous()
        return self._step(x, _Place(len(x), 1, 0, width, None, positions.data_ptr()), mix, None)

    def prefill(self, x: Tensor, slots: Tensor, length: int, start: int, last: Tensor, mix: Mix | None) -> Tensor:
        """Logits [rows, vocabulary] of the last token of each row of a chunk of prompts.

        Args:
            x: [at least rows * length, width of the model] embeddings; changed.
            slots: int64 [rows] in the store.
            length: tokens of each row.
            start: column of their first.
            last: int64 [rows] last token of each row that is meant, counted from the first.
            mix: adapters of the rows.
        """
        slots, last = slots.contiguous(), last.contiguous()
        return self._step(x, _Place(len(slots), length, start, 0, slots.data_ptr(), None), mix, last)

    def _step(self, x: Tensor, place: _Place, mix: Mix | None, last: Tensor | None) -> Tensor:
        tokens, model = len(x), self._model
        rooms = (x.shape[1], model.heads * model.size, model.inner)
        buffers = [x, *(x.new_empty(tokens, room) for room in rooms)]
        logits = x.new_empty(place.rows, model.head.outputs)
        failed = self._run(
            ctypes.byref(model),
            ctypes.byref(place),
            None if mix is None else ctypes.byref(self._mix(mix)),
            ctypes.byref(_Work(*(buffer.data_ptr() for buffer in buffers))),
            None if last is None else last.data_ptr(),
            tokens,
            logits.data_ptr(),
        )
        if failed:
            raise RuntimeError("torch failed in a step of the model; what it said is on standard error.")
        return logits

    def _mix(self, mix: Mix) -> _Mix:
        stack = mix.stack
        if self._stack is None or self._stack[0]() is not stack:
            adapted = (_Adapted * len(self._products))()
            for own, product in zip(adapted, self._products, strict=True):
                if (found := stack.matrices(product.names, product.sizes)) is not None:
                    own.a, own.b = (matrix.data_ptr() for matrix in found)
            self._stack = weakref.ref(stack), adapted
        return _Mix(self._stack[1], mix.places.data_ptr(), len(stack.places), stack.rank)


def _describe(own: _Product, product: Product, handles: list[int]) -> None:
    """Fill in what `layers.c` has to know of a product."""
    assert product.packed is not None
    tensors = [product.packed] if product.bias is None else [product.packed, product.bias]
    for name, tensor in zip(("weight", "bias"), tensors, strict=False):
        handles.append(_handle(tensor))
        setattr(own, name, handles[-1])
    own.outputs, own.inputs = product.shape
    own.modules = len(product.sizes)
    own.sizes[: len(product.sizes)] = product.sizes


def _handle(tensor: Tensor) -> int:
    """A handle of torch's C interface, to be dropped."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = _pointer, [ctypes.py_object, ctypes.c_char_p]
    return int(get(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor), None))


def _drop(interface: ctypes.CDLL, handles: list[int]) -> None:
    for handle in handles:
        getattr(interface, _TORCH["drop"])(ctypes.c_void_p(handle))


def made(
    dtype: torch.dtype, states: torch.dtype, layers: Sequence[Layer], norm: Tensor, head: Product, **shape: Any
) -> Layers | None:
    """`Layers` for weights of one precision and states of another, or None where they can't be had, and the log says
    why. For the rest see there."""
    try:
        return Layers(between.library(dtype, states), layers, norm, head, **shape)
    except OSError as error:
        log.warning("%s: small models take longer for a step than they could", error)
        return None
