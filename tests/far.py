"""A second device that computes on the CPU and, as a GPU does, refuses tensors of two devices in
one operation.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta:0")  # a name that torch knows without a machine for it
TELLS = {"aten::_local_scalar_dense", "aten::equal"}  # these give plain values
CROSSES = {"aten::copy_", "aten::_to_copy"}  # these carry from one device to another
# a GPU's tensor takes indices of the CPU
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Far(Tensor):
    """A tensor of the far device: a shell around the one that holds its values."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Far":
        laid = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = Tensor._make_wrapper_subclass(cls, raw.size(), **laid, device=FAR)
        made.raw = raw
        return made  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """While this is on, tensors can be made there and moved there and back; it counts who came."""

    moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = carried(func, args, kwargs or {})
        self.moved += isinstance(out, Far)
        return out


def carried(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on what the shells hold; its result in a shell if it belongs there."""
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = [tensor for tensor in tensors if isinstance(tensor, Far)]
    # a number goes anywhere
    near = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.ndim]
    if far and near and name not in CROSSES and not (name in INDEXED and isinstance(args[0], Far)):
        raise RuntimeError(f"{name}: tensors on two devices")
    asked = kwargs.get("device")
    plain_args, plain = tree_map(
        lambda leaf: leaf.raw if isinstance(leaf, Far) else leaf, (args, kwargs)
    )
    if asked == FAR:
        plain = plain | {"device": "cpu"}
    out = func(*plain_args, **plain)
    if name in TELLS:
        return out
    if func._schema.is_mutable and name.endswith("_"):
        return args[0]
    there = asked == FAR if asked is not None else bool(far)
    return tree_map(lambda leaf: Far(leaf) if there and isinstance(leaf, Tensor) else leaf, out)
