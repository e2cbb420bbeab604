"""How many numbers a method trains: published counts, and the formula that its equation implies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import sympy

from tdecomp.adapters import CATALOGUE, Grid, Spec, bind, method
from tests.tables import each
from theory.counts import size_of, trainable_count

from .cases import GRIDS, bound, fits

ROBERTA_BASE = {"shape": (768, 768), "heads": 12, "layer": 12}
CLASSIFIER = (768 * 768 + 768) + (768 * 2 + 2)  # two linear layers with bias, two labels
ROBERTA_BASE_SIZE = 124_647_170  # with this classifier


@dataclass(frozen=True)
class Published:
    """A method on the groups of equal weights of a model, and the number it is said to train."""

    method: str
    grids: tuple[Grid, ...]
    rank: int | dict[str, int]
    trainable: int


def roberta(method: str, rank: int | dict[str, int], n_proj: int, trainable: int) -> Published:
    """Some projections of all layers of RoBERTa-base."""
    return Published(method, (Grid.full(**ROBERTA_BASE, proj=n_proj),), rank, trainable)


LLAMA2_7B = (
    Grid.full((4096, 4096), layer=32, proj=4, name="attention"),
    Grid.full((11008, 4096), layer=32, proj=2, name="gate and up"),
    Grid.full((4096, 11008), layer=32, proj=1, name="down"),
)
LLAMA2_7B_QV = (Grid.full((4096, 4096), layer=32, proj=2),)

PUBLISHED = {
    "lotr of its docstring": roberta("lotr", 2, 2, 595_298 - CLASSIFIER),
    # TensLoRA's own count, its Tucker and CP factors at one rank of 4 for all modes
    "lora beside tenslora": roberta("lora", 4, 3, 221_184),
    "tenslora att": roberta("tenslora_att", 4, 3, 123_840),
    "tenslora qkv": roberta("tenslora_qkv", 4, 3, 74_640),
    "tenslora depth": roberta("tenslora_depth", 4, 3, 18_768),
    "tenslora att_qkv": roberta("tenslora_att_qkv", 4, 3, 43_728),
    "tenslora att_depth": roberta("tenslora_att_depth", 4, 3, 11_040),
    "tenslora qkv_depth": roberta("tenslora_qkv_depth", 4, 3, 6_460),
    "tenslora att_qkv_depth": roberta("tenslora_att_qkv_depth", 4, 3, 4_460),
    "tenslora att cp": roberta("tenslora_att_cp", 4, 3, 121_536),
    "tenslora qkv cp": roberta("tenslora_qkv_cp", 4, 3, 73_872),
    "tenslora depth cp": roberta("tenslora_depth_cp", 4, 3, 18_576),
    "tenslora att_qkv cp": roberta("tenslora_att_qkv_cp", 4, 3, 40_656),
    "tenslora att_depth cp": roberta("tenslora_att_depth_cp", 4, 3, 10_272),
    "tenslora qkv_depth cp": roberta("tenslora_qkv_depth_cp", 4, 3, 6_204),
    "tenslora att_qkv_depth cp": roberta("tenslora_att_qkv_depth_cp", 4, 3, 3_436),
    "vera of llama2 7b": Published("vera", LLAMA2_7B, 256, 1_417_216),
    "lora of llama2 7b": Published("lora", LLAMA2_7B_QV, 64, 33_554_432),
    "fourierft of llama2 7b": Published("fourierft", LLAMA2_7B_QV, 1000, 64_000),
    "mora of one matrix": Published("mora", (Grid.full((4096, 4096), layer=1),), 8, 256**2),
    # as many numbers as the arrays of the public code have
    "loretta_rep of one matrix": roberta("loretta_rep", {"r": 8, "t": 5}, 1, 12 * 2 * 580),
    "lorta of q, k, v and o in one tensor": roberta("lorta_public", 1, 4, 860),
    "svft of one matrix": roberta("svft", {}, 1, 12 * (768 * 3 - 2)),
    "more of one matrix": roberta("more", 4, 1, 12 * 4 * 2 * 768),
    "surm of one matrix": roberta("surm", 8, 1, 12 * 2 * 768),
    "cara of vit-b": roberta("cara", 16, 3, 16 * (36 + 768 + 12 + 64 + 1)),
    "quanta of one matrix": Published("quanta", (Grid.full((4096, 4096), layer=1),), {}, 3 * 16**4),
    "rasa of q and v": roberta("rasa", 8, 2, 24 * 8 * 2 * 768 + 24 * (7 + 12)),
    # the tensor (4, 5, 6) of TensLoRA's tests, as `in out layer` of one projection
    "small cp": Published("tenslora_depth_cp", (Grid.full((5, 4), layer=6, proj=1),), 2, 30),
    "small tucker": Published(
        "tenslora_depth", (Grid.full((5, 4), layer=6, proj=1),), {"r": 2, "s": 3, "v": 4}, 71
    ),
}

# Trainable numbers of a method as a formula of the paper's quantities: o, i the sides of a weight;
# L layers, P projections, N weights, H heads, D the size of a head, r a rank, s a second one.
CLOSED_FORMS = {
    "lora": "N r (o + i)",
    "rslora": "N r (o + i)",
    "lora_fa": "N r o",
    "asymmetric": "N r o",
    "nora": "N k (r + s)",
    "lora_mini": "N r (p + q)",
    "nola": "N (k + m)",
    "singlora": "N r max",
    "lori": "N r o",
    "aslora": "P r (g o + i)",
    "reslora": "P m r (o + i)",
    "itl": "L P k (o + task + i)",
    "mica": "N r i",
    "delora": "N r (o + i) + N",
    "uni_lora": "d",
    "sharelora": "N r o + P r i",
    "tied_lora": "N o + P r o + L r + r i",
    "rasa": "N p (o + i + 1) + P m (o + i) + N m",
    "eigenlorax": "N r (k + j)",
    "flora": "L P task r (o + i)",
    "hira": "N r (o + i)",
    "lotr": "r o + N r s + s i",
    "lotr_narrow": "r o + N r s + s i",
    "denselora": "P r o + N r s + P s i",
    "lorta": "r (i + D + H + P + L)",
    "fact_tt": "r x + N bo bi r s + s y",
    "fact_tk": "r x + N bo bi t + r s t + s y",
    "tt_lora": "N (i1 r1 + r1 i2 r2 + r2 i3 r3 + r3 o1 r4 + r4 o2 r5 + r5 o3)",
    "metatt": "i r1 + L r1 r2 + P r2 r3 + r3 o",
    "metatt_heads": "i r1 + L r1 r2 + P r2 r3 + H r3 r4 + r4 D",
    "lora_xs": "N r s",
    "lora_sb": "N r s",
    "lamda": "N r (o + s)",
    "tinylora": "N u",
    "vera": "N (o + r)",
    "pvera": "N (o + both)",
    "aflora": "N (o + r + r o + r i)",
    "svfit": "N r",
    "loldu": "N r",
    "kasa": "N r (o + i + 1)",
    "osf": "N r (o + i + 1)",
    "adamss": "N s (o + k r)",
    "curlora": "N r s",
    "abba": "N (r (o + i) + s (o + i))",
    "flora_core": "N (s o + s r + r i)",
    "cara": "r (1 + N + i + H + D)",
    "wegeft": "2 P r i",
    "ffn_low_rank": "N r (o + i)",
    "pmss": "N r s",
    "glora": "2 N r (o + i)",
    "dota": "N (o1 i1 r1 + r1 o2 i2 r2 + r2 o3 i3)",
}
QUANTITIES = {"out": "o", "in": "i", "layer": "L", "proj": "P", "site": "N"} | {
    "head": "H",
    "hd": "D",
    "long": "max",
}


def symbol(letter: str) -> sympy.Symbol:
    """The quantity that a letter of an equation is the size of."""
    return sympy.Symbol(QUANTITIES.get(letter, letter), positive=True, integer=True)


def formula(text: str) -> sympy.Expr:
    """Read a closed form: juxtaposed names are a product."""
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    products = zip(words, ["+", *words[:-1]], strict=True)
    joined = ""
    for word, before in products:
        times = word not in ("+", ")") and before not in ("+", "(")
        joined += f"{'*' if times else ''}{word}"
    names = {w: sympy.Symbol(w, positive=True, integer=True) for w in words if w.isidentifier()}
    return sympy.sympify(joined, locals=names)


def symbolic_count(spec: Spec) -> sympy.Expr:
    """What the equation says, in the paper's quantities."""
    count = trainable_count(spec)
    return count.subs({size_of(n): symbol(n) for n in QUANTITIES}, simultaneous=True)


@pytest.mark.parametrize("case", PUBLISHED.values(), ids=[n.replace(" ", "_") for n in PUBLISHED])
def test_published_counts(case):
    spec = method(case.method)
    found = sum(bind(spec, grid, case.rank).n_trainable for grid in case.grids)
    assert found == case.trainable


def test_all_parameters_of_roberta_with_lotr():
    lotr = bind(method("lotr"), Grid.full(**ROBERTA_BASE, proj=2), 2)
    assert lotr.n_trainable + CLASSIFIER == 595_298
    assert lotr.n_trainable + ROBERTA_BASE_SIZE == 124_650_338


# The public tables of LoTR and, beside it, of LoRA count 1536 = 2 * 768 more at every rank: not of
# the adapter, since both have it (the size is that of the last classifier weight).
@pytest.mark.parametrize(
    ("name", "rank", "listed"),
    [
        pytest.param(name, rank, listed, id=f"{name}_{rank}")
        for name, table in {
            "lotr": {1: 3096, 2: 4704, 4: 8064, 8: 15360},
            "lora": {1: 38400, 2: 75264, 4: 148992, 8: 296448},
        }.items()
        for rank, listed in table.items()
    ],
)
def test_tables_of_lotr(name, rank, listed):
    assert bind(method(name), Grid.full(**ROBERTA_BASE, proj=2), rank).n_trainable == listed - 1536


@each("name", CLOSED_FORMS)
def test_the_equation_implies_the_closed_form(name):
    assert sympy.expand(symbolic_count(method(name)) - formula(CLOSED_FORMS[name])) == 0


@each("name", CATALOGUE)
def test_the_sizes_of_the_letters_give_the_count(name):
    count = symbolic_count(method(name))
    for grid in (grid for grid in GRIDS if fits(name, grid)):
        b = bound(name, grid)
        whole = {"out": b.grid.shape[0], "in": b.grid.shape[1], "site": b.grid.n_sites}
        sizes = {symbol(n): size for n, size in {**whole, **b.sizes}.items()}
        assert count.subs(sizes) == b.n_trainable, grid


# Letters that a grid and a rank of 2 fix: computed here, not by `bind`.
@each("name", CLOSED_FORMS)
@pytest.mark.parametrize("shape", [(24, 36), (36, 24)], ids=["24x36", "36x24"])
def test_closed_forms_on_a_grid(name, shape):
    sizes = {"o": shape[0], "i": shape[1], "max": 36, "L": 4, "P": 3, "N": 12, "H": 4}
    sizes |= {"D": shape[0] // 4, "task": 1, "m": 4, "g": 2, "u": 64, "k": 2, "j": 2}
    sizes |= {"x": shape[0], "y": shape[1], "bo": 1, "bi": 1}  # neither side goes into the other
    sizes |= dict.fromkeys(("r", "s", "t", "p", "q", "r1", "r2", "r3", "r4", "r5"), 2)
    parts = {24: (2, 3, 4), 36: (3, 3, 4)}
    sizes |= {f"o{k + 1}": n for k, n in enumerate(parts[shape[0]])}
    sizes |= {f"i{k + 1}": n for k, n in enumerate(parts[shape[1]])}
    own = {"nola": {"k": 512, "m": 512}, "aslora": {"g": 4}, "uni_lora": {"d": 256}}
    own |= {"rasa": {"p": 1, "m": 4}}
    own |= {"adamss": {"k": 5, "s": 1}, "pvera": {"both": 4}}
    sizes |= own.get(name, {})
    expected = formula(CLOSED_FORMS[name]).subs(
        {sympy.Symbol(n, positive=True, integer=True): size for n, size in sizes.items()}
    )
    assert bind(method(name), Grid.full(shape, heads=4, layer=4, proj=3), 2).n_trainable == expected


def test_rank_above_the_size_of_a_mode_is_reported():
    b = bind(method("tenslora_qkv_depth"), Grid.full((8, 6), layer=3, proj=2), 4)
    assert b.redundant == ("u", "v")


def test_the_clusters_that_are_left_hold_a_quarter_of_lora():
    grid = Grid.full((768, 768), layer=12, proj=2)
    lora, aslora = bind(method("lora"), grid, 8), bind(method("aslora"), grid, 8)
    (assign,) = (f for f in aslora.factors if f.clusters is not None)
    left = assign.clusters({**aslora.numbers, "step": 10**6})
    assert bind(method("aslora"), grid, {"r": 8, "g": left}).n_trainable == lora.n_trainable / 4


def test_heads_along_the_input_turn_the_factors():
    grid = Grid.full((24, 36), heads=4, layer=4, proj=2)
    turned = bind(method("lorta"), replace(grid, heads_in=True), 3)
    assert turned.shapes["a"] == (24, 3)
    assert turned.shapes["b"] == (36 // 4, 3)


def test_two_sizes_of_weights_share_the_bases_of_vera():
    sizes = {"out": 11008, "in": 11008, "r": 4}
    shapes = [bind(method("vera"), grid, 4, sizes=sizes).shapes for grid in LLAMA2_7B]
    assert {shape["up"] for shape in shapes} == {(11008, 4)}
    assert {shape["down"] for shape in shapes} == {(4, 11008)}
    assert math.prod(shapes[0]["b"]) == 4 * 32 * 4096
