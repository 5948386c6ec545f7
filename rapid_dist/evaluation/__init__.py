"""Fidelity, diversity, usefulness and memorisation of generated images."""
