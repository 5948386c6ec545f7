"""Checks of the installed code against its privacy claim."""
