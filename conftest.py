"""Set-up that the tests and the doctests share."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Spare the examples in docstrings their two commonest imports."""
    doctest_namespace["np"] = np
    doctest_namespace["torch"] = torch
