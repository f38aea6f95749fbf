"""The pure core: domain types and decisions.

Nothing in here reads a clock, draws a random number, logs, touches a file, a socket or a database.
`now` comes in with the snapshot, ties end with the id, and the same input gives the same output.
"""
