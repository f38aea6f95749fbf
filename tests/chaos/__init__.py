"""The real daemon killed at every point of its ways, and the ground truth of its centers afterwards.

points.py numbers the points inside the daemon, launcher.py starts it, process.py restarts it after a
kill, sites.py has the centers, story.py what people do meanwhile and what must be true at the end.
`python -m tests.chaos` makes as many kills as it is told (`make chaos`).
"""
