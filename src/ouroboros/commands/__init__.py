"""What the command line can do, one file a command; ``options`` has what they share, ``process`` the plumbing."""
