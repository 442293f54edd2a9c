"""HTTP and its authentication schemes, as the RFCs define them."""
