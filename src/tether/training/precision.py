"""In which precision a step multiplies matrices."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["precision"]


@contextmanager
def precision(name: Literal["32-true", "tf32", "bf16-mixed"]) -> Iterator[None]:
    """Compute in this precision, inside the block.

    ``bf16-mixed`` is narrower than ``torch.autocast``: linear layers multiply in bfloat16, and give
    single precision back. Geometry, sums over neighbours and energies stay as they are, and no
    backbone has to know of it (under autocast, TensorNet fails: it adds up both kinds). Forces
    are right to a per cent, see `tests/unit/test_precision.py`.

    Parameters
    ----------
    name : {"32-true", "tf32", "bf16-mixed"}
        ``tf32`` changes nothing on a CPU.

    Yields
    ------
    None
    """
    if name == "bf16-mixed":
        with _Bfloat16Layers():
            yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = before or name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class _Bfloat16Layers(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.nn.functional.linear or kwargs:
            return func(*args, **(kwargs or {}))
        narrow: list[Any] = [value if value is None else value.bfloat16() for value in args]
        return func(*narrow).to(args[0].dtype)
