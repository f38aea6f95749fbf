"""One module per kind of platform, each with a class that implements broker.adapter.Adapter and a
`connect` that builds it from a Connection.

Adapters do not know each other.  What several of them need is in modules that are no platform:
nodes.py (which nodes are taken), http.py (calls over HTTP) with session.py (logins), breaker.py
(when to leave a center alone), pace.py and redaction.py (secrets), values.py (what platforms write),
output.py (logs and results on a shared storage), files.py (what jobs wrote).
"""
