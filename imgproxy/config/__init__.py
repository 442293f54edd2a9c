"""The containers-*(5) configuration files: pure parsers, and the decisions that follow."""
