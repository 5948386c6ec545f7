"""What images there are, and on which side of the trust boundary each one stands."""
