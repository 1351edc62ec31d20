"""How much each user may use in a day, a week or a month.

One chat, in order:

1. `table.py` reads the rows of the budget table once, and says which of them hold for a user.
2. `period.py` says when the day, week or month began in the site's time zone, and when it ends.
3. Before the chat, an estimate is *reserved* in a store; a store holds a counter per user or per group.
4. After the chat, what was really used is *settled*: the reservation goes and the use is added, in one step.
   A reservation that nobody settles expires, as its worker has died.
5. `store_sqlite.py` is for the workers of one machine, `store_redis.py` for any number of replicas.
"""
