"""What pays now: measured costs of a model's forwards, for whoever decides how much to draft."""
