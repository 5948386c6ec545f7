"""Stages that see public data only; cannot import the room that holds private examples."""
