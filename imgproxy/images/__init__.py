"""Images: which manifest is chosen, what the policy says, what may be had."""
