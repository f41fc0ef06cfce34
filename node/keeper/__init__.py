"""What keeps content alive after a put: who is promised what, who is told what we hold.

Knows the store's tables and the DHT; must not know files, HTTP or sockets.
"""

from .announcer import Announcer
from .catalogue import Catalogue, CatalogueEntry
from .promises import Dropped, Promises
from .releaser import Releaser, Round

__all__ = ["Announcer", "Catalogue", "CatalogueEntry", "Dropped", "Promises", "Releaser", "Round"]
