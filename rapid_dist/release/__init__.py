"""What leaves the trust boundary: bundle, registry, report."""
