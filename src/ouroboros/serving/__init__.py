"""Many requests at once: the scheduler, the caches that they leave to each other, and the engine around both."""
