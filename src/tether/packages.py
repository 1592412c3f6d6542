"""Optional packages, each brought by an extra."""

from __future__ import annotations

from importlib.util import find_spec

from tether.errors import TetherError

__all__ = ["require"]


def require(module: str, purpose: str, *, extra: str, package: str = "") -> None:
    """Say what to install where an optional package is missing.

    Parameters
    ----------
    module : str
        Import name.
    purpose : str
        What needs it.
    extra : str
        Of tether, that installs it.
    package : str, optional
        Name of the distribution; default `module`.

    Raises
    ------
    TetherError
        When it is not installed.
    """
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of the package that a submodule is in
        found = None
    if found is None:
        raise TetherError(
            f"{purpose} needs the package {package or module}",
            expected="it to be installed",
            fix=f"pip install 'tether[{extra}]'",
        )
