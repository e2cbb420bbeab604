"""Collections of adapters: what each member adds to the weights, as products that are not formed.

Everything is a pure function on pairs of factors; the cost of none depends on ``out · in``.
"""

from tdecomp.collections.collection import Collection as Collection
from tdecomp.collections.collection import CollectionMember as CollectionMember
from tdecomp.collections.collection import collect as collect
from tdecomp.collections.pair import AdapterPair as AdapterPair
from tdecomp.collections.pair import PairSvd as PairSvd

__all__ = ["AdapterPair", "Collection", "CollectionMember", "PairSvd", "collect"]
