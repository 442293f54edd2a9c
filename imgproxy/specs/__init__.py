"""Formats and protocols as their specifications define them: pure functions and values."""
