"""Weights that come inside third parties' packages: one pinned file each, kept as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch

from tether.errors import TetherError
from tether.serialization import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from tether.backbones.protocol import Backbone, LevelErrors

__all__ = ["Checkpoint", "Published", "converted_weights", "copy_weights", "find_package"]

#: Of the tensors in converted files; counted up where our networks name or shape them otherwise,
#: so that what an older version has converted is not taken for ours.
LAYOUT = 2

C = TypeVar("C")
B = TypeVar("B", bound="Backbone")


@dataclass(frozen=True)
class Checkpoint(Generic[C]):
    """One published weight file.

    Attributes
    ----------
    path : str
        Under the package's folder.
    sha256 : str
        Of the one file that may be opened.
    level_of_theory : str
        Of the training labels.
    config : object
        Size of the network.
    elements : tuple of int, optional
        Of the training structures; default: all that the network has room for.
    errors : LevelErrors, optional
        On the authors' test set.
    """

    path: str
    sha256: str
    level_of_theory: str
    config: C
    elements: tuple[int, ...] | None = None
    errors: LevelErrors | None = None


@dataclass(frozen=True)
class Published(Generic[C, B]):
    """A backbone's published weights, in the files of a third party's package.

    Attributes
    ----------
    backbone : str
        Name of the backbone and of the extra that installs the package.
    module : str
        Import name of the package.
    package : str
        Distribution and version that brings the files, as ``"chgnet==0.4.2"``.
    licence : str
        Of the weights, kept beside them.
    checkpoints : mapping of str to Checkpoint
        By the package's names; the first is the default.
    network : callable
        From the size of the network to one with random weights.
    convert : callable
        From the content of a file, and the size of the network, to tensors under our names.
    """

    backbone: str
    module: str
    package: str
    licence: str
    checkpoints: Mapping[str, Checkpoint[C]]
    network: Callable[[C], B]
    convert: Callable[[io.BytesIO, C], dict[str, Tensor]]

    def checkpoint(self, name: str) -> Checkpoint[C]:
        """One of the checkpoints.

        Raises
        ------
        TetherError
            For an unknown name.
        """
        if name not in self.checkpoints:
            default = next(iter(self.checkpoints))
            raise TetherError(
                f"checkpoint {name!r} of backbone {self.backbone!r}",
                expected=f"one of {', '.join(self.checkpoints)}",
                fix=f"set backbone.options.checkpoint={default!r}, or leave it out",
            )
        return self.checkpoints[name]

    def file(self, name: str, *, cache: Path | None = None) -> Path:
        """A checkpoint as safetensors, converted once.

        Parameters
        ----------
        name : str
            One of `checkpoints`.
        cache : Path, optional
            Folder of the converted file; default ``~/.cache/tether``.

        Returns
        -------
        Path
            The safetensors file.

        Raises
        ------
        TetherError
            When the package is not installed, or its file is not the one that is pinned here.
        """
        checkpoint = self.checkpoint(name)
        distribution, _, version = self.package.partition("==")
        minor = version.rpartition(".")[0]
        folder = find_package(
            self.module, distribution=f"{distribution} {minor}", extra=self.backbone
        )
        return converted_weights(
            folder / checkpoint.path,
            lambda content: self.convert(content, checkpoint.config),
            name=f"{self.backbone}-{name}",
            sha256=checkpoint.sha256,
            package=self.package,
            licence=self.licence,
            cache=cache,
        )

    def load(self, name: str, *, cache: Path | None = None) -> B:
        """The backbone with a checkpoint's weights, in single precision on the CPU.

        Parameters
        ----------
        name : str
            One of `checkpoints`.
        cache : Path, optional
            Folder of the converted file.

        Returns
        -------
        Backbone
            Its `BackboneSpec` says which weights it has.

        Raises
        ------
        TetherError
            See `file`.
        """
        checkpoint = self.checkpoint(name)
        path = self.file(name, cache=cache)
        backbone = self.network(checkpoint.config)
        backbone.spec = replace(
            backbone.spec,
            checkpoint=f"{name} ({self.package.replace('==', ' ')})",
            sha256=checkpoint.sha256,
            licence=self.licence,
            elements=checkpoint.elements or backbone.spec.elements,
            level_of_theory=checkpoint.level_of_theory,
            errors=checkpoint.errors,
        )
        tensors = cast("torch.nn.Module", backbone).state_dict()
        copy_weights(tensors, path, package=self.package)
        return backbone


def find_package(module: str, *, distribution: str, extra: str) -> Path:
    """Folder of an installed package, found without importing it.

    Parameters
    ----------
    module : str
        Import name.
    distribution : str
        Name and version for the error, as ``"chgnet 0.4"``.
    extra : str
        Of tether, that installs it.

    Returns
    -------
    Path
        The package's folder.

    Raises
    ------
    TetherError
        When it is not installed.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise TetherError(
            f"backbone `{extra}` needs the package {distribution.split(maxsplit=1)[0]}, "
            "which is not installed",
            expected=distribution,
            fix=f"pip install 'tether[{extra}]'",
        )
    return Path(found.submodule_search_locations[0])


def converted_weights(
    source: Path,
    convert: Callable[[io.BytesIO], dict[str, Tensor]],
    *,
    name: str,
    sha256: str,
    package: str,
    licence: str,
    cache: Path | None = None,
) -> Path:
    """A package's weight file as safetensors, converted once.

    Parameters
    ----------
    source : Path
        Inside the installed package.
    convert : callable
        From the content of the file to tensors.
    name : str
        Start of the converted file's name.
    sha256 : str
        Of the one file that may be opened.
    package : str
        Distribution and version that brings it, as ``"chgnet==0.4.2"``.
    licence : str
        Of the weights, kept beside them.
    cache : Path, optional
        Folder of the converted file; default ``~/.cache/tether``.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    TetherError
        When the file is not the one whose sha256 is pinned: it is then not opened.
    """
    target = (
        cache or Path.home() / ".cache" / "tether"
    ) / f"{name}-{sha256[:12]}-{LAYOUT}.safetensors"
    if target.exists():
        return target
    try:
        content = source.read_bytes()
    except OSError as error:
        raise TetherError(
            f"{source} cannot be read ({error.strerror})",
            expected=f"the file of {package}",
            fix=f"pip install '{package}'",
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise TetherError(
            f"{source} has sha256 {digest[:12]}…",
            expected=f"{sha256[:12]}…, the file of {package.replace('==', ' ')}",
            fix=f"pip install '{package}' (an unknown pickle is never opened)",
        )
    tensors = convert(io.BytesIO(content))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(target, tensors, metadata={"source_sha256": sha256, "licence": licence})
    return target


def copy_weights(
    tensors: dict[str, Tensor], path: Path, *, package: str, fix: str | None = None
) -> None:
    """Copy a file into a network; both must hold the same tensors.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Of the network, by name; written in place.
    path : Path
        From `converted_weights`, or of a backbone of our own.
    package : str
        Distribution and version that brings the weights.
    fix : str, optional
        What to do where they differ; default: install that package, and convert again.

    Raises
    ------
    TetherError
        When names or shapes differ.
    """
    loaded = load_tensors(path)
    common = tensors.keys() & loaded.keys()
    misfits = {name for name in common if tensors[name].shape != loaded[name].shape}
    unknown = sorted((tensors.keys() ^ loaded.keys()) | misfits)
    if unknown:
        raise TetherError(
            f"weights and network differ in {len(unknown)} tensors, for example {unknown[0]}",
            expected=f"the tensors of {package.replace('==', ' ')}",
            fix=fix or f"pip install '{package}' and delete {path.parent}",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(loaded[name])
