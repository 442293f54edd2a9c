"""What the RFCs of HTTP and its authentication schemes say."""
