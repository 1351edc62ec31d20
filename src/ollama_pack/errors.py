"""Every error that the pack raises on purpose, and the base of them all.

Each part defines its own in `<part>/errors.py`, so that a plugin carries only those that it can raise.

PackError
├── AliasTableError             a row of an alias table cannot be used
├── AliasUnavailableError       an alias matched, but none of its models can answer this user
├── ChatBodyError               a chat body holds what cannot be put into Ollama's form
├── NodeTableError              a row of the `nodes` valve cannot be used
├── RoutingError                a request cannot be given to a node
│   ├── NoNodeError                 none has the model
│   └── QueueFullError              too many wait already
└── NodeError                   a node did not do what it was asked
    ├── RetryableNodeError          another node may do it
    │   ├── NodeUnreachableError        no connection
    │   ├── NodeTimeoutError            a limit ran out
    │   ├── NodeBusyError               its queue is full
    │   ├── NodeFaultError              it failed, talked garbage or hung up
    │   └── ModelNotFoundError          it does not have the model
    └── RequestRefusedError         it will not take this request, and no other node would
"""


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""
