"""Measures and controls that stand beside every result."""
