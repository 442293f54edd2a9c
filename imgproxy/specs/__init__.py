"""What specifications say: pure functions and values."""
