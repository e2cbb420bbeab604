"""`explore`: every format and budget from a few reads, as separate decompositions find them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tdecomp as td
from tdecomp import linalg
from tdecomp.passes import matrices, stream
from tests.bench.against_tensorly import minilm

NAMES = "layer proj out in"
METHODS = [td.svd, td.tucker2, td.tucker, td.tensor_train]
SIDES = {"in": -1, "out": -2}


@pytest.fixture
def small_is_large(monkeypatch):
    """Exact bases count as dear from a fraction of the usual size on."""
    for module in (stream, matrices, linalg):
        monkeypatch.setattr(module, "is_cheap", lambda shape, width, **_: 4 * width > min(shape))


@pytest.fixture(params=["exact", "sketched"])
def path(request):
    """Both ways to look at a stack."""
    if request.param == "sketched":
        request.getfixturevalue("small_is_large")
    return request.param


def decaying(shape, noise: float, seed: int = 0) -> np.ndarray:
    """Shared bases of decaying strength, and white noise of a relative size."""
    rng = np.random.default_rng(seed)
    *sites, out, in_ = shape
    left = rng.standard_normal((out, 40)) * 0.8 ** np.arange(40)
    x = left @ rng.standard_normal((*sites, 40, 40)) @ rng.standard_normal((40, in_))
    e = rng.standard_normal(shape)
    return (x / np.linalg.norm(x) + noise * e / np.linalg.norm(e)).astype("float32")


def parts(x: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The stacks that share a basis, by the site modes that vary in them."""
    return {
        "layer": [x[:, p] for p in range(x.shape[1])],
        "proj": list(x),
        "layer proj": [x],
    }


def separate(x: np.ndarray, budget: int, methods=METHODS) -> dict[str, td.Fits | None]:
    """Every row of the table by a decomposition of its own; None where there is no rank 1."""
    jobs = {m.__name__: ([x], m, {}) for m in methods}
    for side, mode in SIDES.items():
        for names, stacks in parts(x).items():
            jobs[f"{side} shared over {names}"] = (stacks, td.tucker, {"modes": (mode,)})
    found = {}
    for name, (stacks, method, options) in jobs.items():
        try:
            found[name] = td.decompose(stacks, method, budget=budget, **options)
        except td.ArgumentError:  # below rank 1
            found[name] = None
    return found


def check_rows(found: td.Exploration, x: np.ndarray) -> None:
    for at, budget in enumerate(found.budgets):
        for name, fits in separate(x, budget).items():
            cell = found.row(name).cells[at]
            if fits is None:
                assert cell is None
                continue
            assert cell.n_params <= budget
            assert cell.error == pytest.approx(fits.error, rel=0.01), (budget, name)


@pytest.mark.parametrize(
    "noise", [0.3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0.0, 3.0))]
)
def test_rows_agree_with_separate_decompositions(noise, path):
    x = decaying((3, 2, 200, 180), noise)
    check_rows(td.explore(x, [1500, 4000, 9000], names=NAMES), x)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2])
def test_rows_agree_on_real_weights(layers, path):
    x = minilm().astype("float32")[:layers]
    found = td.explore(x, [x.size // 128, x.size // 32], names=NAMES)
    check_rows(found, x)


def test_several_stacks_share_a_budget(path):
    xs = [decaying((3, 2, 120, 180), 0.3), 0.2 * decaying((3, 1, 180, 120), 1.0, seed=1)]
    found = td.explore(xs, [3000, 8000], names=NAMES)
    for method in METHODS:
        for cell, budget in zip(found.row(method.__name__).cells, found.budgets, strict=True):
            fits = td.decompose(xs, method, budget=budget)
            assert cell.n_params <= budget
            assert cell.error == pytest.approx(fits.error, rel=0.01)
            assert len(cell.ranks) == 2


def test_one_matrix_may_take_all(path):
    """The sketches are widened where an even share was not enough."""
    x = 1e-3 * decaying((3, 2, 200, 180), 3.0)
    x[1, 1] += decaying((200, 180), 0.1)
    check_rows(td.explore(x, [6000], names=NAMES), x)


def test_what_only_all_together_show(small_is_large):
    """A direction below the noise of every matrix, but not of all of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 5, 200, 180))
    shared = np.linalg.qr(rng.standard_normal((180, 3)))[0].T
    x += 18 / np.sqrt(200) * rng.standard_normal((6, 5, 200, 3)) @ shared
    budget = 3 * (30 * 200 + 180)
    found = td.explore(x.astype("float32"), budget, names=NAMES)
    fit = td.tucker(x, modes=(-1,), budget=budget)
    cell = found.row("in shared over layer proj").cells[0]
    assert cell.error == pytest.approx(fit.error, rel=4e-5)


def confirmed(found: td.Exploration, budget: int) -> list[str]:
    at = found.budgets.index(budget)
    return [row.name for row in found.rows if row.cells[at] and row.cells[at].confirmed]


def test_winner_and_runner_up_are_confirmed_and_in_order(path):
    found = td.explore(decaying((3, 2, 120, 100), 0.3), names=NAMES)
    for at, winner in enumerate(found.winners):
        first, second = (found.row(n).cells[at] for n in (winner.name, winner.runner_up))
        assert winner.budget == found.budgets[at]
        assert (first.error, second.error) == (winner.error, winner.runner_up_error)
        assert first.error <= second.error * 1.001
        assert sorted(confirmed(found, winner.budget)) == sorted([winner.name, winner.runner_up])
        others = [row.cells[at].error for row in found.rows if row.cells[at]]
        assert winner.error <= 1.001 * min(others)


PLANTED = {
    "svd": ("svd", lambda r: r((4, 3, 90, 2)) @ r((4, 3, 2, 80)), 12 * 2 * 171),
    "one basis per layer": (
        "in shared over proj",
        lambda r: r((4, 3, 90, 2)) @ r((4, 1, 2, 80)),
        4 * 2 * (3 * 90 + 80),
    ),
    "one basis per projection": (
        "out shared over layer",
        lambda r: r((1, 3, 90, 2)) @ r((4, 3, 2, 80)),
        3 * 2 * (4 * 80 + 90),
    ),
    "one basis": (
        "out shared over layer proj",
        lambda r: r((90, 3)) @ r((4, 3, 3, 80)),
        3 * (12 * 80 + 90),
    ),
    "both sides": (
        "tucker2",
        lambda r: r((90, 5)) @ r((4, 3, 5, 5)) @ r((5, 80)),
        12 * 25 + 5 * 170,
    ),
    "all modes": (
        "tucker",
        lambda r: np.einsum("la,pb,abrs,or,is->lpoi", r((4, 2)), r((3, 1)), r((2, 1, 5, 5)),
                            r((90, 5)), r((80, 5))),
        8 + 3 + 50 + 5 * 170,
    ),
    "train": (
        "tensor_train",
        lambda r: np.einsum("la,apb,boc,ci->lpoi", r((4, 2)), r((2, 3, 3)), r((3, 90, 3)),
                            r((3, 80))),
        8 + 18 + 810 + 240,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("winner", "make", "budget"), PLANTED.values(), ids=PLANTED)
def test_what_is_planted_wins(winner, make, budget):
    rng = np.random.default_rng(0)
    x = make(rng.standard_normal).astype("float32")
    found = td.explore(x, budget, names=NAMES)
    assert found.winners[0].name == winner
    assert found.winners[0].error < 1e-5
    assert found.row(winner).cells[0].n_params <= budget
    assert found.winners[0].runner_up_error > 0.01


def test_zero():
    found = td.explore(np.zeros((3, 2, 20, 16)), names=NAMES)
    assert found.energy == 0
    assert all(c.error == 0 and c.n_params == 0 for row in found.rows for c in row.cells)
    assert all(w.error == 0 for w in found.winners)


def test_a_zero_stack_beside_another():
    x = decaying((3, 2, 60, 50), 0.3)
    both, alone = td.explore([x, 0 * x], 900, names=NAMES), td.explore(x, 900, names=NAMES)
    for one, other in zip(both.rows, alone.rows, strict=True):
        assert one.cells[0].error == pytest.approx(other.cells[0].error, rel=0.01)


@pytest.mark.parametrize(
    "shape", [(40, 30), (1, 1, 40, 30), (5, 1, 30), (5, 30, 1), (1, 1)], ids=str
)
def test_few_modes(shape):
    x = decaying(shape, 0.5) + np.float32(1)
    found = td.explore(x, x.size + 1)
    shared = [row.name for row in found.rows if "shared" in row.name]
    assert bool(shared) == (shape[0] == 5)
    assert [row.name for row in found.rows if row.name not in shared] == [
        m.__name__ for m in METHODS
    ]
    assert found.winners[0].error < 1


def test_formats_are_chosen():
    x = decaying((3, 2, 24, 20), 0.3)
    found = td.explore(x, 500, names=NAMES, formats=[td.cp, td.svd])
    assert [row.name for row in found.rows] == ["svd", "cp"]
    cp = td.decompose([x], td.cp, budget=500)
    assert found.row("cp").cells[0].n_params == cp.n_params
    assert found.row("cp").cells[0].error == pytest.approx(cp.error, rel=0.01)


def test_default_budgets_are_fractions_that_fit():
    x = decaying((3, 2, 24, 20), 0.3)
    found = td.explore(x, names=NAMES)
    assert found.n_numbers == x.size == 2880
    assert found.budgets == (45, 90, 180)
    assert all(any(row.cells[at] for row in found.rows) for at in range(3))


@pytest.mark.parametrize(
    ("budgets", "text"),
    [
        (40, "budget 40 is below rank 1: the smallest possible is 45"),
        ([40, 4000], "budget 40 is below rank 1: the smallest possible is 45"),
        (0, "budget 0 must be a positive"),
        ([float("nan")], "budget nan must be a positive"),
        (["60k"], "budget '60k' must be a positive"),
        (True, "budget True must be a positive"),
        ([], "names no budget"),
    ],
)
def test_bad_budgets(budgets, text):
    with pytest.raises(td.ArgumentError, match=text):
        td.explore(decaying((24, 20), 0.3), budgets, formats=[td.svd])


@pytest.mark.parametrize(
    "formats",
    ["svd", td.svd, [], [td.mpo], ["svd"]],
    ids=["a name", "a function", "none", "mpo", "names"],
)
def test_bad_formats(formats):
    with pytest.raises(td.ArgumentError, match="formats.*td.svd"):
        td.explore(decaying((24, 20), 0.3), formats=formats)


def test_bad_data():
    with pytest.raises(td.ArgumentError, match="nothing to explore"):
        td.explore([])
    with pytest.raises(td.ArgumentError, match="not a LowRank"):
        td.explore(td.svd(np.eye(3), rank=1).tensor)
    with pytest.raises(td.DataError, match="two or more modes"):
        td.explore(np.ones(3))
    with pytest.raises(td.ArgumentError, match="names"):
        td.explore(np.ones((3, 3)), names="layer out in")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad, path):
    x = decaying((2, 200, 180), 0.3)
    x[1, 100, 7] = bad
    with pytest.raises(td.DataError, match="NaN or Inf"):
        td.explore(x)


class Counted:
    """A stack that counts the reads of every slice."""

    def __init__(self, x: np.ndarray):
        flat = {
            f"h.{i}.{p}.weight": m
            for i, row in enumerate(x)
            for p, m in zip("qk", row, strict=True)
        }
        (stack,) = td.Stack.from_arrays(flat)
        self.reads: dict[str, int] = {}
        self.stack = replace(stack, read=lambda site: self._read(stack, site))

    def _read(self, stack: td.Stack, site: td.Site) -> np.ndarray:
        self.reads[site.path] = self.reads.get(site.path, 0) + 1
        return stack.read(site)


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_reads(noise, path):
    """At most three times those of one decomposition, and as many as it says."""
    x = decaying((3, 2, 200, 180), noise)
    one, all_ = Counted(x), Counted(x)
    td.tucker2(one.stack, rank=8)
    found = td.explore(all_.stack)
    assert set([*all_.reads.values()][1:]) == {found.passes}  # the first shows the library too
    assert found.passes <= 3 * min(one.reads.values())


def test_a_large_stack_is_never_whole_in_memory(small_is_large):
    counted = Counted(decaying((3, 2, 200, 180), 0.3))
    object.__setattr__(counted.stack, "dense", None)
    direct = td.explore(decaying((3, 2, 200, 180), 0.3), 4000, names=NAMES)
    assert td.explore(counted.stack, 4000).winners == direct.winners


def test_calls_can_be_typed():
    x = decaying((3, 2, 40, 30), 0.3)
    found = td.explore(x, 900, names=NAMES)
    for row in found.rows:
        places = {"td": td, "stacks": [x]}
        for names, stacks in parts(x).items():
            places[f"stacks_shared_over_{names.replace(' ', '_')}"] = stacks
        fits = eval(row.call(900), places)
        assert row.cells[0].error == pytest.approx(fits.error, rel=0.01)


def test_torch_gives_the_same():
    torch = pytest.importorskip("torch")
    x = decaying((3, 2, 60, 50), 0.3)
    here, there = td.explore(x, 900, names=NAMES), td.explore(torch.asarray(x), 900, names=NAMES)
    for one, other in zip(here.rows, there.rows, strict=True):
        assert one.cells[0].error == pytest.approx(other.cells[0].error, rel=1e-4)


def test_complex_and_double():
    x = decaying((3, 2, 60, 50), 0.3) * (1 + 1j)
    real = td.explore(x.real.astype("float64"), 900, names=NAMES, formats=[td.svd, td.tucker2])
    both = td.explore(x, 900, names=NAMES, formats=[td.svd, td.tucker2])
    for one, other in zip(real.rows, both.rows, strict=True):
        assert one.cells[0].error == pytest.approx(other.cells[0].error, rel=1e-3)


def test_progress_ends_at_one_and_inputs_stay():
    x = decaying((3, 2, 60, 50), 0.3)
    before, seen = x.copy(), []
    td.explore(x, 900, names=NAMES, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert (x == before).all()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_scales(scale, path):
    x = decaying((3, 2, 120, 100), 0.3)
    plain = td.explore(x, 3000, names=NAMES)
    scaled = td.explore(x * np.float32(scale), 3000, names=NAMES)
    for one, other in zip(plain.rows, scaled.rows, strict=True):
        assert one.cells[0].error == pytest.approx(other.cells[0].error, rel=1e-3)
