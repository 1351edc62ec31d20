"""What a plan can be asked for."""

USUAL_CONTEXT = 8192
LEAST_CONTEXT, MOST_CONTEXT, MOST_USERS = 256, 2**22, 10**6
