"""SevenNet: our forward pass is the package's, to rounding, and passes the contract."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.io import read

from tether.backbones import sevennet_weights
from tether.backbones.load import load_backbone
from tether.backbones.sevennet import Sevennet
from tether.backbones.weights import find_package
from tether.errors import TetherError
from tether.structures import AtomBatch, from_ase
from tether.testing import validate_backbone
from tether.testing.structures import (
    beta_brass,
    ethanol,
    rattled,
    silicon,
    skewed_silicon,
    sodium_chloride,
    water,
)
