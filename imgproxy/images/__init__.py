"""Images: which manifest is chosen, whether the policy accepts it, and what may be read."""
