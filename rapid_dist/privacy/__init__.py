"""Mechanisms, their cost and their ledger. Knows no model and no data."""
