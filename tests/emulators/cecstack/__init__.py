"""An emulated CECSTACK AI Space, written from its OpenAPI document (5.3.0).

What belongs here: behaviour that the document states, and switches for what it leaves open.  What
does not: anything that the adapter decides; nothing here is imported by it, nor the other way round.
"""

from tests.emulators.cecstack.desk import Site
from tests.emulators.cecstack.server import Cecstack

__all__ = ["Cecstack", "Site"]
