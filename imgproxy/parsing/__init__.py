"""Strict parsing of JSON documents, and typed access to their fields."""
