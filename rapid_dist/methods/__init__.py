"""One file a paper, saying which parts it puts together."""
