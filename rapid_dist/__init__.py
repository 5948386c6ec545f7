"""Differentially private image generators, trained on Ray by retrieval-augmented diffusion."""

__version__ = "0.1.0"
