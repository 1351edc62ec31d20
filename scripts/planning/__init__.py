"""What `plan.py` is made of: the nodes as they are, the demand, and its replay in virtual time."""
