"""A broker between people who have AI jobs and computing centers that have accelerators.

Read one job's way in this order: api/trainjob.py, store/, inventory.py, mirror.py, cycle.py,
core/scheduler.py, dispatch.py, track.py.  The README draws it.
"""

__version__ = "0.1.0"
