"""The only room that ever holds a private example."""
