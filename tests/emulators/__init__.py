"""Servers that behave like the platforms of the centers, written from their documents."""
