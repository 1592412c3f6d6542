"""`CompiledLoss`: a task's loss together with its gradients, as one compiled function.

Forces are derivatives, and their loss is differentiated again: a second derivative, which
``torch.compile`` does not take. Splitting the traced forward pass into the two halves of a training
graph is no way out: Inductor's (torch 2.13) gives other forces than the same graph run plainly.
Here the loss *and* its gradients are traced to one list of plain operations, which is compiled as
an inference is: nothing is left to differentiate. The first step of each kind is checked against
the plain one.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from tether.errors import TetherError
from tether.tasks.denoising import DenoisingTask
from tether.tasks.forcefield import ForceFieldTask
from tether.tasks.property import PropertyTask
from tether.training.flat import flatten, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.tasks.task import Task
    from tether.training.flat import Like

__all__ = [
    "CompiledLoss",
    "attach_gradients",
    "can_compile",
    "find_compiler",
]

#: Largest relative distance between compiled and plain gradients of the first step, single
#: precision. Rounding gives 1e-5.
TOLERANCE = 1e-3
#: Of structures, atoms and pairs in a batch that is compiled; smaller ones are computed plainly.
SMALLEST_SIZE = 2
#: See `_own_sizes`. Inductor of torch 2.11 cannot take a slice under it.
_OBLIVIOUS = {"backed_size_oblivious": True} if torch.__version__ >= "2.13" else {}


def find_compiler() -> str:
    """The C++ compiler that Inductor calls.

    Returns
    -------
    str
        Its path.

    Raises
    ------
    TetherError
        When there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise TetherError(
        "there is no C++ compiler to compile the training step with",
        expected="g++ or clang++, or its name in the environment variable CXX",
        fix="install one, or set training.compile=false",
    )


def can_compile(task: Task) -> bool:
    """Whether the loss is a function of weights and batch alone, with no teacher in it.

    Parameters
    ----------
    task : Task
        Any.

    Returns
    -------
    bool
        True for properties, the force field and denoising, whose noise comes with the batch.
    """
    return isinstance(task, (PropertyTask, ForceFieldTask, DenoisingTask))


class CompiledLoss:
    """The loss of a task; its gradients are computed with it and handed over in the backward pass.

    Traced and compiled at its first call, and again when other weights move or a batch is of
    another kind: periodic, charged, differently labelled. Sizes may change freely.

    Parameters
    ----------
    model : AdaptedModel
        Whose parameters the gradients are of; changed in place between calls.
    task : Task
        See `can_compile`.
    """

    def __init__(self, model: AdaptedModel, task: Task) -> None:
        self.model, self.task = model, task
        self._compiled: dict[Any, _Compiled] = {}

    def __call__(self, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Loss of a batch.

        Parameters
        ----------
        graph : Graph
            A batch of the task's stream, or a share of one.
        counts : Tensor, optional
            See `Task.loss`.

        Returns
        -------
        Tensor
            Scalar; can be differentiated once with respect to the parameters that move.

        Raises
        ------
        TetherError
            When the backbone cannot be traced, or what was compiled gives another result.
        """
        moving = [p for p in self.model.parameters() if p.requires_grad]
        tensors, like = flatten(graph, self.model.heads)
        given = [] if counts is None else [counts]
        # The compiler takes a size of 0 or 1 for a constant: the last batch of an epoch may have a
        # single structure, a share of a batch none, and atoms alone have no pairs.
        if any(tensor.shape[0] < SMALLEST_SIZE for tensor in tensors):
            return self.task.loss(self.model, graph, *given)
        key = (like, len(given), tuple(map(id, moving)))
        if key not in self._compiled:
            self._compiled[key] = self._checked(graph, given, moving)
        compiled = self._compiled[key]
        loss, gradients = compiled([*tensors, *given])
        return attach_gradients(loss, gradients, compiled.parameters)

    def _compile(
        self, like: Like, tensors: list[Tensor], given: list[Tensor], moving: Sequence[nn.Parameter]
    ) -> _Compiled:
        from torch.fx.experimental.proxy_tensor import make_fx

        used: list[nn.Parameter] = []

        def loss_and_gradients(*tensors: Tensor) -> list[Tensor]:
            # The counts of a larger batch stand behind the tensors of the graph.
            graph, counts = unflatten(tensors, like), tensors[-len(given) :] if given else ()
            loss = self.task.loss(self.model, graph, *counts)
            found = torch.autograd.grad(loss, moving, allow_unused=True)
            # A weight that the loss does not know keeps no gradient at all, as after backward().
            used[:] = [p for p, gradient in zip(moving, found, strict=True) if gradient is not None]
            return [loss, *(gradient for gradient in found if gradient is not None)]

        trace = make_fx(
            loss_and_gradients,
            decomposition_table={torch.ops.aten.slice_backward.default: _slice_backward},
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )
        try:
            with _TwiceDifferentiable(), _own_sizes():
                traced = trace(*tensors, *given)
        except Exception as error:
            raise self._refusal(str(error).splitlines()[0]) from error
        # `len(tensor)` in a backbone makes a number of what should stay a size.
        sized = [node for node in traced.graph.nodes if node.op == "placeholder"][: len(tensors)]
        if any(_is_fixed(node) for node in sized):
            raise self._refusal("a size of the first batch would be taken for that of all")
        return _Compiled(torch.compile(traced, dynamic=True, fullgraph=True), tuple(used))

    def _refusal(self, reason: str) -> TetherError:
        return TetherError(
            f"the {self.task.name} loss of {self.model.backbone.spec.name!r} cannot be traced: "
            f"{reason}",
            expected="a backbone whose operations do not depend on the values of a batch",
            fix="set training.compile=false",
        )

    def _checked(
        self, graph: Graph, given: list[Tensor], moving: Sequence[nn.Parameter]
    ) -> _Compiled:
        # On its own labels a pretrained model has no error, and the gradient of none is noise.
        graph = replace(
            graph,
            batch=replace(
                graph.batch,
                labels={name: _shifted(label) for name, label in graph.batch.labels.items()},
                atom_labels={
                    name: _shifted(label) for name, label in graph.batch.atom_labels.items()
                },
            ),
        )
        # Before the trace: what a backbone computes once and keeps is then no part of it.
        plain = self.task.loss(self.model, graph, *given)
        known = torch.autograd.grad(plain, moving, allow_unused=True)
        wanted = [gradient for gradient in known if gradient is not None]
        tensors, like = flatten(graph, self.model.heads)
        compiled = self._compile(like, tensors, given, moving)
        loss, gradients = compiled([*tensors, *given])
        right = plain.item()
        pairs = [(loss, plain.detach()), *zip(gradients, wanted, strict=True)]
        scale = sum(float(value.square().sum()) for _, value in pairs) ** 0.5
        distance = sum(float((found - value).square().sum()) for found, value in pairs) ** 0.5
        if not distance <= TOLERANCE * scale:
            raise TetherError(
                f"the compiled {self.task.name} step is wrong: its loss is {loss.item():.6g} where "
                f"{right:.6g} is right, its gradients are off by {distance / scale:.2g}",
                expected=f"agreement to {TOLERANCE:g}",
                fix="set training.compile=false, and report the versions of `tether doctor`",
            )
        return compiled


@dataclass(frozen=True)
class _Compiled:
    """What computes a loss and its gradients, and with respect to which parameters."""

    function: Callable[..., list[Tensor]]
    parameters: tuple[nn.Parameter, ...]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad(), _own_sizes(**_OBLIVIOUS):
            loss, *gradients = self.function(*tensors)
        return loss, gradients


def attach_gradients(
    loss: Tensor, gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """A loss whose backward pass hands over gradients that are already known.

    Parameters
    ----------
    loss : Tensor
        Scalar, without a graph of its own.
    gradients, parameters : sequence of Tensor
        What each parameter receives, times what comes from behind the loss.

    Returns
    -------
    Tensor
        The same value.
    """
    attached: Tensor = _Attached.apply(loss, gradients, *parameters)  # type: ignore[no-untyped-call]
    return attached


class _Attached(torch.autograd.Function):
    """Puts gradients that are already known behind a loss."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *_parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        return None, None, *(gradient * outputs[0] for gradient in ctx.gradients)


class _TwiceDifferentiable(TorchFunctionMode):
    """Operations whose second derivative torch cannot trace for any size, by others that it can."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in {torch.abs, torch.Tensor.abs, torch.Tensor.__abs__} and not kwargs:
            (value,) = args
            return torch.where(value < 0, -value, value)
        return func(*args, **(kwargs or {}))


def _slice_backward(gradient: Tensor, *slice_of: Any) -> Any:
    """That of a slice which takes everything: Inductor (torch 2.13) cannot for any size.

    Indexing with ``[:, None]`` or ``[:, 0]`` makes one along the first dimension.
    """
    _sizes, _dim, *taken = slice_of
    return gradient.clone() if taken == [0, sys.maxsize, 1] else NotImplemented


def _shifted(label: Tensor) -> Tensor:
    return label + torch.linspace(-1.0, 1.0, label.numel()).to(label).view_as(label)


def _is_fixed(placeholder: torch.fx.Node) -> bool:
    size = placeholder.meta["val"].shape[0]
    return not isinstance(size, torch.SymInt) or size.node.maybe_as_int() is not None


def _own_sizes(**settings: bool) -> Any:
    """No size is taken for another; with ``backed_size_oblivious`` none for a small or large one.

    Without that, Inductor (torch 2.13) sums in another way beyond 4096 terms and compiles anew for
    each side of it: minutes for each combination of atoms, pairs and angles.
    """
    from torch.fx.experimental import _config

    return _config.patch(use_duck_shape=False, **settings)  # type: ignore[attr-defined]
