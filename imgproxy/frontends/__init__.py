"""What is spoken with clients, one front-end for each protocol."""
