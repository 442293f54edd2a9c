"""Many clients at once, for as long as wanted: `python tests/load`."""
