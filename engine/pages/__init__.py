"""Pages: where the keys and values of tokens live, by position.

layout.py  what one page holds, byte by byte       pool.py   who holds which page (no storage)
store.py   the bytes, and a slab for each layer    table.py  one request's pages, and `Pages`, which joins all
line.py    who gets pages next, and who gives them up
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
