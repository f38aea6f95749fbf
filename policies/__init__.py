"""Placement policies, one per file: frozen dataclasses whose fields are their keys in policy.toml.

A policy has any of the methods of broker.core.policy.Policy.  Policies do not know each other, and
like the core they are pure: no clock, no randomness, no input or output.
"""
