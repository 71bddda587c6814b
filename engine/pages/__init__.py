"""Pages store the keys and values of tokens, addressed by position.

layout.py  the bytes of one page                   pool.py   the holders of each page (no storage)
store.py   the bytes, and a slab for each layer    table.py  one request's pages, and `Pages`, which joins all parts
prefix.py  the names of full pages                 page_queue.py  the order in which requests get pages or give them up
"""

from engine.pages.layout import CacheLayout, Entry, PageGroup
from engine.pages.page_queue import PageQueue, PageUser, Precedence
from engine.pages.pool import PagePool
from engine.pages.store import PageStore, Slab
from engine.pages.table import Pages, PageTable, Tables

__all__ = [
    "CacheLayout",
    "Entry",
    "PageGroup",
    "PagePool",
    "PageQueue",
    "PageStore",
    "PageTable",
    "PageUser",
    "Pages",
    "Precedence",
    "Slab",
    "Tables",
]
