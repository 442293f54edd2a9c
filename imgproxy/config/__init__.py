"""What the containers-*(5) configuration files say: pure."""
