"""The protocols that clients use, one front-end for each."""
