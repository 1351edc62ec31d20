"""What `plan.py` reads: the nodes as they are, and a record of chats."""
