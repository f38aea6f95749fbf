"""The queue API over HTTP: T/AI 123.8 and the broker's own paths.

It reads and writes the store and the data directory; it knows no adapter and calls no center.
"""
