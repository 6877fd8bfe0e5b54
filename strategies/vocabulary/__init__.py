"""Vocabularies as bytes, and the pieces that several of them share.

Model. Every model's vocabulary is a table id → bytes. For models with one tokenizer a *piece* is a token. For others the pieces
are the byte strings that are tokens in all of them, plus the 256 single bytes, plus one virtual END. Every token is a fixed
sequence of pieces (its *spelling*: greedy longest match from the left), the same function of its bytes for everybody.

Invariants. The bytes of a token are the bytes of its spelling, joined. A token that is a piece is spelled by itself. Control
and padding ids have an empty spelling; all end ids of a model are spelled END. Piece ids are in byte order, so that a tie
between equal scores can be broken by the smaller id.

Cost. Building the tables for a quarter of a million tokens takes some tenths of a second, once per model and per set of
models. With a folder to keep them in (`keep_in`) the next process reads them in a quarter of that time. Spellings are worked out when first
asked for and remembered.
"""

from strategies.vocabulary.inventory import Continuing, Inventory, Speller, forget_inventories, inventory_of
from strategies.vocabulary.shelf import keep_in, keeping_in
from strategies.vocabulary.table import Table, table_of

__all__ = [
    "Continuing",
    "Inventory",
    "Speller",
    "Table",
    "forget_inventories",
    "inventory_of",
    "keep_in",
    "keeping_in",
    "table_of",
]
