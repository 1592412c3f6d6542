"""The optional packages of the extra `splits`."""

from __future__ import annotations

from importlib.util import find_spec

from tether.errors import TetherError

__all__ = ["require"]


def require(package: str, purpose: str) -> None:
    """Say what to install where an optional package is missing.

    Parameters
    ----------
    package : str
        Import name.
    purpose : str
        What needs it.

    Raises
    ------
    TetherError
        When it is not installed.
    """
    if find_spec(package) is None:
        raise TetherError(
            f"{purpose} needs the package {package}",
            expected="it to be installed",
            fix="pip install 'tether[splits]'",
        )
