"""The knowledge base of public trajectories. Knows no privacy and no cluster."""
