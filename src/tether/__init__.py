"""Tether: adapt pretrained 3D atomistic models without letting them forget their physics."""

from __future__ import annotations

__version__ = "0.1.0"
