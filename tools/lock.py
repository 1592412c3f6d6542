"""Prints constraints.txt: the exact version of everything in the environment that runs this.

``make lock`` runs it in a fresh environment that holds this package, its extras and nothing else.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions

__all__ = ["constraints", "main"]

HEADER = """\
# Exact versions that the tests and the demo are run with; `make lock` rewrites this file.
# pyproject.toml has the ranges that the package accepts.
"""
# The package itself, and what every virtual environment starts with.
UNPINNED = frozenset({"tether", "pip", "setuptools", "wheel"})


def constraints(versions: dict[str, str]) -> str:
    """Text of a constraints file.

    Parameters
    ----------
    versions : dict of str to str
        Installed version by distribution name.

    Returns
    -------
    str
        A header and one sorted ``name==version`` line for each distribution. Names are
        normalised, and a local build tag ("2.13.0+cpu") is dropped: the index decides on it.
    """
    pins = {
        re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0]
        for name, version in versions.items()
    }
    lines = [f"{name}=={pins[name]}\n" for name in sorted(pins.keys() - UNPINNED)]
    return HEADER + "".join(lines)


def main() -> None:
    """Print the constraints of the running environment."""
    print(constraints({each.name: each.version for each in distributions()}), end="")


if __name__ == "__main__":
    main()
