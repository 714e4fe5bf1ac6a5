"""From a request to its tokens: the loop, what it is made of, and who drives it."""
