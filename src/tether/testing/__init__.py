"""Public tests for backbones: the contract, a tiny backbone that passes it, broken ones that fail.

``validate_backbone`` is what an adapter's own test suite calls.
"""

from __future__ import annotations

from tether.testing.contract import CHECK_NAMES, CheckResult, ContractReport, validate_backbone
from tether.testing.tiny import TinyBackbone

__all__ = ["CHECK_NAMES", "CheckResult", "ContractReport", "TinyBackbone", "validate_backbone"]
