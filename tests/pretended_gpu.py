"""A GPU where there is none: tensors of the CPU that say they are on one, and refuse the company that it refuses.

What runs on it puts no tensor on the wrong device and reads none past torch. Kernels, graphs, compilation and
hooks of the backward are not pretended.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ASKS = {
    torch.Tensor.device.__get__: lambda is_on_gpu: GPU if is_on_gpu else CPU,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: bool,  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda is_on_gpu: not is_on_gpu,  # type: ignore[attr-defined]
}
PAST_TORCH = {torch.Tensor.data_ptr, torch.Tensor.numpy, torch.Tensor.__array__}
BETWEEN_DEVICES = {
    torch.Tensor.copy_,
    torch.Tensor.__getitem__,
    torch.Tensor.data.__set__,  # type: ignore[attr-defined]
    torch._has_compatible_shallow_copy_type,
}


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(func, args, kwargs or {})


class PretendedGpu(TorchFunctionMode):
    """While it is entered, torch has a GPU."""

    def __enter__(self) -> Any:
        # Parameters are moved by new ones: to give an old one other data leaves its class as it is.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return carry_out(func, args, kwargs or {})


class MixedDevices(RuntimeError):
    """A GPU would not do it."""


def carry_out(func: Any, args: tuple, kwargs: dict) -> Any:
    """Return what a function of torch gives, on the device on which it would lie."""
    with torch._C.DisableTorchFunction():
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        is_on_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        if func in ASKS:
            return ASKS[func](is_on_gpu)
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return moved(func, *args, **kwargs)
        check_company(func, args, tensors, is_on_gpu)
        wanted = kwargs.get("device")
        if wanted is not None:
            is_on_gpu, kwargs = is_gpu(wanted), kwargs | {"device": CPU}
        return placed(func(*args, **kwargs), is_on_gpu)


def check_company(func: Any, args: tuple, tensors: list[torch.Tensor], is_on_gpu: bool) -> None:
    """Raise MixedDevices where tensors of both devices meet, but for single numbers and places in a GPU's tensor."""
    if not is_on_gpu:
        return
    name = getattr(func, "__name__", str(func))
    if func in PAST_TORCH:
        raise MixedDevices(f"{name} of a tensor on the GPU")
    if func == torch.Tensor.__setitem__:
        tensors = [args[0], *(part for part in args[2:] if isinstance(part, torch.Tensor))]
    elif func == torch.Tensor.__getitem__:
        tensors = [args[0]]
        if not isinstance(args[0], OnGpu):
            raise MixedDevices("places on the GPU in a tensor on the CPU")
    elif func in BETWEEN_DEVICES:
        return
    if any(not isinstance(tensor, OnGpu) and tensor.dim() for tensor in tensors):
        raise MixedDevices(f"{name} of tensors on both devices: {[tuple(tensor.shape) for tensor in tensors]}")


def moved(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return a tensor on another device, and in another type where that is asked for."""
    if func != torch.Tensor.to:
        return tensor.as_subclass(OnGpu if func == torch.Tensor.cuda else torch.Tensor)
    like = [value for value in args if isinstance(value, torch.Tensor)] or [tensor]
    places = [value for value in [*args, kwargs.get("device")] if is_place(value)]
    is_on_gpu = is_gpu(places[0]) if places else isinstance(like[0], OnGpu)
    others = [CPU if is_place(value) else value for value in args]
    on_cpu = kwargs | ({"device": CPU} if "device" in kwargs else {})
    return tensor.to(*others, **on_cpu).as_subclass(OnGpu if is_on_gpu else torch.Tensor)


def is_place(value: Any) -> bool:
    return isinstance(value, str | int | torch.device) and not isinstance(value, bool)


def is_gpu(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def placed(found: Any, is_on_gpu: bool) -> Any:
    """Return tensors as they lie on a device; anything else as it is."""
    if isinstance(found, torch.Tensor):
        if is_on_gpu:
            return found if isinstance(found, OnGpu | torch.nn.Parameter) else found.as_subclass(OnGpu)
        return found.as_subclass(torch.Tensor) if isinstance(found, OnGpu) else found
    if isinstance(found, tuple | list) and not isinstance(found, torch.Size):
        return pytree.tree_map_only(torch.Tensor, lambda tensor: placed(tensor, is_on_gpu), found)
    return found
