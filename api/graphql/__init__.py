"""GraphQL: every operation of the registry as a field, over HTTP and WebSocket.

`types.py` makes the schema; `parsing.py` reads a document, `limits.py` weighs it, `asking.py` answers it, in a
`context.py`; `http.py` and `socket.py` are the two ways in.
"""

from graphql import print_schema


def documents() -> dict[str, str]:
    """The files under docs/contracts/ that this door writes, by path: the schema in GraphQL's own language."""
    from api.graphql.asking import graph

    return {"docs/contracts/schema.graphql": print_schema(graph().schema) + "\n"}
