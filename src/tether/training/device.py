"""Where a model is trained: the CPU, or an accelerator that torch knows."""

from __future__ import annotations

import torch

from tether.errors import TetherError

__all__ = ["device_name", "find_device"]


def find_device(name: str) -> torch.device:
    """The device of that name.

    Parameters
    ----------
    name : str
        ``auto``: a CUDA device where there is one, else the CPU; or a name that torch knows, as
        ``cpu``, ``cuda`` or ``cuda:1``.

    Returns
    -------
    torch.device
        Usable here.

    Raises
    ------
    TetherError
        For a device that torch does not know, or that is not in this machine.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise TetherError(
            f"`training.device` is {name!r}",
            expected="auto, cpu, cuda or cuda:<number>",
            fix="set training.device=auto",
        )
    n_found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_found:
        raise TetherError(
            f"`training.device` is {name!r}, and torch finds {n_found} CUDA devices",
            expected="one that is there",
            fix="set training.device=cpu, or install a torch that was built for CUDA",
        )
    return device


def device_name(device: torch.device) -> str:
    """What provenance says of a device.

    Parameters
    ----------
    device : torch.device
        From `find_device`.

    Returns
    -------
    str
        As torch calls it, with the model of an accelerator: ``cuda (NVIDIA H100 80GB HBM3)``.
    """
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )
