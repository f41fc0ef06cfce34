"""What keeps content alive after a put: who is promised what, who is told what we hold.

Knows the store's tables and the DHT; must not know files, HTTP or sockets.
"""

from .announcer import Announcer
from .catalogue import Catalogue, CatalogueEntry
from .catch_up import catch_up
from .collector import Collector
from .promises import Dropped, Promises
from .put_journal import PutJournal
from .releaser import Releaser, Round

__all__ = [
    "Announcer",
    "Catalogue",
    "CatalogueEntry",
    "Collector",
    "Dropped",
    "Promises",
    "PutJournal",
    "Releaser",
    "Round",
    "catch_up",
]
