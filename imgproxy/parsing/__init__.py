"""Strict readers of JSON documents and typed access to their fields."""
