"""Splits: pure functions from arrays to named index sets."""
