"""Representation collapse: pure functions of feature arrays, each with unit, source and null."""
