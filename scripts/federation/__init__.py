"""Sites that learn together: the Flower app of `scripts/federate.py`."""
