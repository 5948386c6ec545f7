"""Components with one fault each, as seen in the wild, and the subject they are planted in."""
