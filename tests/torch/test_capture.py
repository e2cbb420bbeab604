"""What capture sees against autograd's own gradients and dense moments; the model as it was."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tdecomp import ArgumentError, DataError, SiteError
from tdecomp.stack import Site
from tdecomp.statistics import Statistics
from tdecomp_torch import attach, capture
from tdecomp_torch.capture.gradients import SketchedGradients
from tdecomp_torch.model.inventory import Inventory
from tests.torch.cases import HIDDEN, Fused, Tiny, assert_close, inputs, seeded, tiny
from tests.torch.test_quantised import Eight, four_bits

BATCHES = [inputs(2, 5, HIDDEN, seed=k) for k in range(3)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


class Twice(nn.Module):
    """One module called twice, the same weight in another module, and a convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight
        self.c = nn.Linear(6, 4)
        self.conv = nn.Conv2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(torch.relu_(self.a(torch.tanh(self.a(x)))) + self.b(x))  # (1, 64, 4)
        return self.conv(x.mT.reshape(-1, 4, 8, 8))


def gradients_of(model: nn.Module, batches: list[Tensor]) -> list[dict[str, Tensor]]:
    """Autograd's own gradient by every weight for every batch, (out, in), by module path.

    Of a weight in several modules: what goes through each, by a copy of its own.
    """
    found = []
    for batch in batches:
        dense = copy.deepcopy(model).requires_grad_(True)
        inventory = Inventory(dense)
        for matrix in inventory.matrices.values():
            matrix.module.weight = nn.Parameter(matrix.module.weight.detach().clone())
        loss(dense.eval(), batch).backward()
        found.append(
            {
                path: m.kind.as_matrix(m.module.weight.grad)
                for path, m in Inventory(dense).matrices.items()
                if m.module.weight.grad is not None
            }
        )
    return found


def assert_gradients(found: Statistics, expected: list[dict[str, Tensor]]) -> None:
    for path in found.sites:
        mean = torch.stack([own_of(g, path) for g in expected]).mean(0)
        assert_close(torch.as_tensor(found.gradient_of(path).whole()), mean)


def own_of(gradients: dict[str, Tensor], path: str) -> Tensor:
    """The gradient by a weight, or by its rows of a fused one."""
    if path in gradients:
        return gradients[path]
    module, _, part = path.rpartition(".")
    return gradients[module].chunk(3)["qkv".index(part)]


MODELS = {
    "tiny": (lambda: tiny(), BATCHES),
    "fused": (lambda: seeded(Fused).double(), BATCHES),
    "twice": (lambda: seeded(Twice).double(), [inputs(1, 64, 6, seed=k) for k in range(3)]),
}
TAGGED = ["inner", "outer"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gradients", ["whole", 64])
def test_gradients_and_moments_are_those_of_autograd(name, gradients):
    make, batches = MODELS[name]
    model = make().requires_grad_(False)
    options = {} if name != "twice" else {"targets": ["a", "b", "c", "conv"]}
    found = capture(
        model, batches, loss=loss, gradients=gradients, outputs=True, fisher=True, **options
    )
    expected = gradients_of(model, batches)
    assert_gradients(found, expected)
    for path, site in found.sites.items():
        squares = torch.stack([own_of(g, path) ** 2 for g in expected]).mean(0)
        assert_close(torch.as_tensor(site.fisher[1]), squares)
        assert np.linalg.eigvalsh(site.outputs).min() > -1e-12
    assert found.losses == pytest.approx([float(loss(model.eval(), b)) for b in batches])


def dense_moments(model: nn.Module, paths: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums of ``x xᵀ`` and ``δ δᵀ`` over all calls and batches, by hooks of torch."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    calls: list[tuple[str, Tensor, Tensor]] = []
    model = copy.deepcopy(model).requires_grad_(True).eval()

    def seen(module: nn.Module, args: tuple[Tensor], output: Tensor, *, path: str) -> Tensor:
        output.retain_grad()
        calls.append((path, args[0].detach(), output))
        return output.clone()  # which what follows may change in place

    for path in paths:
        model.get_submodule(path).register_forward_hook(partial(seen, path=path))
    for batch in BATCHES if isinstance(model, Tiny) else MODELS["twice"][1]:
        loss(model, batch).backward()
    for path, x, output in calls:
        x, delta = x.reshape(-1, x.shape[-1]), output.grad.reshape(-1, output.shape[-1])
        inner, outer = found.get(path, (0.0, 0.0))
        found[path] = inner + x.T @ x, outer + delta.T @ delta
    return found


@pytest.mark.parametrize("name", ["tiny", "twice"])
def test_moments_are_sums_over_all_tokens_of_all_calls(name):
    make, batches = MODELS[name]
    options = {"targets": ["a", "b", "c"]} if name == "twice" else {}
    found = capture(make(), batches, loss=loss, inputs="whole", outputs=True, **options)
    expected = dense_moments(make(), found.sites)
    for path, site in found.sites.items():
        inner, outer = expected[path]
        assert_close(torch.as_tensor(found.inputs_of(path).whole), inner)
        assert_close(torch.as_tensor(site.outputs), outer)
        assert site.tokens == found.inputs_of(path).tokens


def test_gradients_that_are_being_accumulated_go_on_as_if_nothing_was():
    """Half of the batches, a look at the model, the other half: the step is that without a look."""
    steps = []
    for look in (False, True):
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for k, batch in enumerate(BATCHES):
            loss(model, batch).backward()
            if look and k == 1:
                capture(model, BATCHES[:1], loss=loss, gradients=2, inputs="whole")
        optimizer.step()
        steps.append([p.detach().clone() for p in model.parameters()])
    assert all(a.equal(b) for a, b in zip(*steps, strict=True))


def test_inputs_are_shared_by_those_that_read_one_tensor():
    model = tiny()
    found = capture(model, BATCHES, inputs="whole")
    of = {path: site.input for path, site in found.sites.items()}
    for k in (0, 1):
        one = {of[f"layers.{k}.self_attn.{p}_proj"] for p in "qkv"}
        assert len(one) == 1
        assert of[f"layers.{k}.self_attn.o_proj"] not in one
    assert len(found.inputs) == 4
    x = torch.cat(BATCHES).reshape(-1, HIDDEN)  # what the first layer reads
    own = found.inputs_of("layers.0.self_attn.q_proj")
    assert own.tokens == len(x)
    assert_close(torch.as_tensor(own.second_moment()), x.T @ x / len(x))
    assert_close(torch.as_tensor(own.mean), x.mean(0))
    with_gradients = capture(model, BATCHES, inputs="whole", gradients=2, loss=loss)
    for key, one in with_gradients.inputs.items():
        assert_close(torch.as_tensor(one.whole), torch.as_tensor(found.inputs[key].whole))


def test_masked_tokens_count_for_no_moment_and_gradients_stay_those_of_the_loss():
    model = tiny()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batches = [{"x": x, "attention_mask": mask} for x in BATCHES]
    of_batch = lambda model, batch: loss(model, batch["x"])
    found = capture(model, batches, loss=of_batch, gradients="whole", inputs="whole")
    own = found.inputs_of("layers.0.self_attn.q_proj")
    x = torch.cat([b[mask.bool()] for b in BATCHES])
    assert own.tokens == len(x) == 21
    assert_close(torch.as_tensor(own.whole), x.T @ x)
    assert_gradients(found, gradients_of(model, BATCHES))


class Tagger(nn.Module):
    """A class for every token, or for every example, as models of transformers give them."""

    def __init__(self, *, of_tokens: bool = True):
        super().__init__()
        self.inner, self.outer, self.of_tokens = nn.Linear(6, 5), nn.Linear(5, 4), of_tokens

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        hidden = torch.tanh(self.inner(x))
        if not self.of_tokens:
            weights = torch.ones_like(x[..., :1]) if attention_mask is None else attention_mask
            hidden = (hidden * weights.reshape(*x.shape[:2], 1)).sum(1)
        return SimpleNamespace(logits=self.outer(hidden))


def test_no_label_is_drawn_where_tokens_are_padding():
    """Padded batches give what the same tokens without padding give."""
    model = seeded(Tagger).double()
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    x = inputs(2, 3, 4, 6)
    padded = [{"x": own, "attention_mask": mask} for own in x]
    tokens = [{"x": own[mask.bool()][None]} for own in x]
    options: dict[str, Any] = {"labels": "model", "gradients": "whole", "targets": TAGGED}
    found, expected = (capture(model, batches, **options) for batches in (padded, tokens))
    assert found.losses == pytest.approx(expected.losses)
    for path, site in found.sites.items():
        other = expected.sites[path]
        assert_close(*(torch.as_tensor(s.gradient.whole()) for s in (site, other)))
    assert np.abs(found.gradient_of("inner").whole()).max() > 1e-3
    nothing = [{"x": x[0], "attention_mask": 0 * mask}]
    with pytest.raises(ArgumentError, match="leaves no token of a batch"):
        capture(model, nothing, **options)


def test_one_label_is_drawn_for_every_example_whatever_its_mask():
    model = seeded(partial(Tagger, of_tokens=False)).double()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    batch = {"x": inputs(3, 4, 6), "attention_mask": mask}
    (value,) = capture(model, [batch], labels="model", gradients=2, targets=TAGGED).losses
    rows = model(**batch).logits.log_softmax(1).detach()
    picks = itertools.product(range(4), repeat=3)
    means = [-float(sum(rows[k, c] for k, c in enumerate(pick))) / 3 for pick in picks]
    assert min(abs(value - mean) for mean in means) < 1e-5


def test_few_directions_hold_the_second_moment_up_to_their_bound():
    model = tiny()
    whole = capture(model, BATCHES, inputs="whole").inputs_of("layers.0.self_attn.q_proj")
    few = capture(model, BATCHES, inputs=3).inputs_of("layers.0.self_attn.q_proj")
    gap = np.linalg.eigvalsh(whole.whole - few.directions.T @ few.directions)
    assert gap.min() > -1e-10
    assert 0 < gap.max() <= few.lost * (1 + 1e-10)
    assert np.allclose(few.squares, np.diagonal(whole.whole))
    assert np.isclose(np.trace(few.second_moment()), np.trace(whole.second_moment()))


@pytest.mark.parametrize(("falls", "passes"), [(0.6, 2), (0.8, 3)])
def test_sketches_hold_the_energy_of_the_best_rank(falls, passes):
    """A gradient each of whose singular values is `falls` times the last."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(60, 50, bias=False)).double()
    s = falls ** np.arange(50)
    u, v = (np.linalg.qr(rng.standard_normal((n, 50)))[0] for n in (50, 60))
    gradient = torch.as_tensor((u * s) @ v.T)
    linear = lambda model, batch: (model[0](torch.eye(60).double()).T * gradient).sum() * batch
    ones = [torch.tensor(1.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)]
    found = capture(model, ones, loss=linear, gradients=8, inputs=None, passes=passes)
    kept = np.linalg.norm(found.gradient_of("0").svd(8)[1]) ** 2
    assert kept >= (1 - 1e-3) * np.sum((2 * s[:8]) ** 2)
    assert found.gradient_of("0").rank == 18


def test_no_more_is_held_than_the_sketches_of_a_pass():
    """Bases of one side, sums of the other: k columns of each, twice as many in the last pass."""
    weight: dict[str, Any] = {"index": (), "transpose": False, "labels": (), "role": ""}
    sites = [Site(tensor=str(k), shape=(300, 200), **weight) for k in range(5)]
    state = SketchedGradients(sites, 8, 4, seed=0)
    x, delta = inputs(6, 200).float(), inputs(6, 300).float()

    def held() -> int:
        found = [*state.tests, *state.sums, *itertools.chain(*state.before)]
        return sum({id(own): own.numel() for own in found if own is not None}.values())

    for number, widths in enumerate([(8, 8), (8, 8), (16, 8), (16, 16)]):
        for site in range(5):
            state.add(site, x, delta)
        assert held() == 5 * (300 * widths[0] + 200 * widths[1]), number
        state.finish(number, lambda tensor: None)
    for site in range(5):
        assert_close(torch.as_tensor(state.found(site, 1).whole()), delta.T @ x)
    assert held() == 0


# -- circumstances ---------------------


def checkpointed(model: Any, *, reentrant: bool) -> Any:
    model.around = partial(checkpoint, use_reentrant=reentrant)
    return model


def test_checkpointing_changes_nothing():
    found = capture(
        checkpointed(tiny(), reentrant=False), BATCHES, loss=loss, gradients="whole", inputs="whole"
    )
    plain = capture(tiny(), BATCHES, loss=loss, gradients="whole", inputs="whole")
    assert_gradients(found, gradients_of(tiny(), BATCHES))
    assert found.inputs.keys() == plain.inputs.keys()
    assert all(own.tokens == 30 for own in found.inputs.values())


class Filling(Tiny):
    """Layers that fill a cache where the configuration says so, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.config.use_cache, self.fills = True, 0
        self.around = self._around

    def _around(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.fills += self.config.use_cache
        return layer(x)


def _counted(count: Iterator[int], tensor: Tensor) -> Tensor:
    next(count)
    return tensor


def test_layers_that_are_computed_again_show_the_same_and_hold_less():
    model, saved = seeded(Filling).double(), {}
    options: dict[str, Any] = {"loss": loss, "gradients": "whole", "inputs": "whole"}
    model.layers[1].forward = own = partial(type(model.layers[1]).forward, model.layers[1])
    for again in (False, True):
        count = itertools.count()
        hooks = partial(_counted, count), lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            found = capture(model, BATCHES, checkpoint=again, **options)
        saved[again] = next(count)
        assert_gradients(found, gradients_of(tiny(), BATCHES))
        assert all(one.tokens == 30 for one in found.inputs.values())
        assert "forward" not in vars(model.layers[0])
        assert vars(model.layers[1])["forward"] is own
        assert model.config.use_cache
    assert model.fills == len(BATCHES) * len(model.layers)  # none while it was checkpointed
    assert saved[True] < saved[False] / 2
    with pytest.raises(ArgumentError, match="numbered layers"):
        capture(seeded(Tagger).double(), BATCHES, targets=TAGGED, checkpoint=True, **options)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "plain"])
def test_checkpointing_without_a_graph_is_refused(tracked):
    model = checkpointed(tiny(), reentrant=True).requires_grad_(tracked)
    batches = [x.requires_grad_(tracked) for x in inputs(1, 2, 5, HIDDEN)]
    with pytest.raises(SiteError, match="use_reentrant=False"):
        capture(model, batches, loss=loss, gradients=2)


def test_half_precision_and_autocast_are_close():
    exact = gradients_of(tiny(), BATCHES)
    half = [x.bfloat16() for x in BATCHES]
    autocast = lambda model, x: loss_in_autocast(model, x.float())
    for model, batches, how in (
        (tiny(torch.bfloat16), half, loss),
        (tiny(torch.float32), half, autocast),
    ):
        found = capture(model, batches, loss=how, gradients="whole")
        for path in found.sites:
            g = torch.stack([own[path] for own in exact]).mean(0)
            gap = torch.as_tensor(found.gradient_of(path).whole()) - g
            assert gap.norm() < 0.1 * g.norm()


def loss_in_autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss(model, x)


@pytest.mark.parametrize("pack", [Eight, four_bits])
def test_quantised_weights_are_looked_at(pack):
    first, last = seeded(lambda: nn.Linear(64, 64)), seeded(lambda: nn.Linear(64, 4))
    packed = pack(first)
    model, batches = nn.Sequential(packed, nn.Tanh(), last), [inputs(5, 64).float()]
    found = capture(model, batches, loss=loss, gradients="whole", targets=["0", "2"])
    with torch.no_grad():
        first.weight.copy_(Inventory(model).matrices["0"].kind.stored(packed))
    assert_gradients(found, gradients_of(nn.Sequential(first, nn.Tanh(), last), batches))


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    mine = BATCHES[:2] if rank == 0 else BATCHES[2:] * 2
    found = capture(
        tiny(),
        mine,
        loss=loss,
        gradients=64,
        inputs="whole",
        outputs=True,
        reduce=torch.distributed.all_reduce,
    )
    all_of_them = BATCHES[:2] + BATCHES[2:] * 2
    assert_gradients(found, gradients_of(tiny(), all_of_them))
    assert all(own.tokens == 40 for own in found.inputs.values())
    Path(folder, f"done-{rank}").touch()
    while not Path(folder, f"done-{1 - rank}").exists():
        pass
    os._exit(0)


@pytest.mark.slow
def test_two_processes_see_all_batches(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    assert {p.name for p in tmp_path.glob("done-*")} == {"done-0", "done-1"}


def test_statistics_of_two_halves_add_up():
    options: dict[str, Any] = {"loss": loss, "outputs": True, "fisher": True, "inputs": "whole"}
    one, other = (
        capture(tiny(), batches, gradients=64, **options) for batches in (BATCHES[:1], BATCHES[1:])
    )
    both, whole = one + other, capture(tiny(), BATCHES, gradients="whole", **options)
    assert_gradients(both, gradients_of(tiny(), BATCHES))
    assert both.losses == whole.losses
    for path, site in both.sites.items():
        assert_close(torch.as_tensor(site.outputs), torch.as_tensor(whole.sites[path].outputs))
        assert_close(torch.as_tensor(site.fisher[1]), torch.as_tensor(whole.sites[path].fisher[1]))
    for key, own in both.inputs.items():
        assert own.tokens == whole.inputs[key].tokens
    with pytest.raises(ArgumentError, match="another weight"):
        _ = one + capture(seeded(Tiny, 5).double(), BATCHES, gradients=64, **options)
    with pytest.raises(ArgumentError, match="does not know"):
        _ = one + capture(tiny(), BATCHES, gradients=64, targets=["q_proj"], **options)


# -- the model as it was ---------------------


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "gradients": {n: p.grad for n, p in model.named_parameters()},
        "values": {n: p.detach().clone() for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def broken(model: nn.Module, batch: Tensor) -> Tensor:
    found = loss(model, batch)
    return found * float("nan") if batch is not None and float(batch.sum()) < -5 else found


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = tiny().train()
    model.layers[1].eval()
    model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    kept = torch.ones_like(model.head.weight)
    model.head.weight.grad = kept
    before = state_of(model)
    if fails:
        bad = [BATCHES[0], BATCHES[1] - 100]
        with pytest.raises(DataError, match="batch 1: the loss is nan"):
            capture(model, bad, loss=broken, gradients=2)
    else:
        capture(model, BATCHES, loss=loss, gradients=2, dropout=True)
    after = state_of(model)
    assert after.pop("random").equal(before.pop("random"))
    values = before.pop("values")
    assert all(value.equal(values[n]) for n, value in after.pop("values").items())
    assert after == before or after["gradients"]["head.weight"] is kept
    assert after["flags"] == before["flags"]
    assert after["modes"] == before["modes"]
    assert after["hooks"] == before["hooks"]


def test_dropout_is_off_unless_asked_for():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)).double().train()
    batch = [inputs(4, 6)]
    plain = capture(model, batch, loss=loss, gradients="whole")
    assert_gradients(plain, gradients_of(model, batch))
    dropped = capture(model, batch, loss=loss, gradients="whole", dropout=True)
    assert not np.allclose(dropped.gradient_of("2").whole(), plain.gradient_of("2").whole())


# -- what cannot be looked at ---------------------


def unused(model: nn.Module, batch: Tensor) -> Tensor:
    return model.layers[0](batch).sum()


REFUSED = [
    ({"batches": []}, ArgumentError, "batches is empty"),
    ({"batches": {"x": 1}}, ArgumentError, "a DataLoader or a list"),
    ({"loss": lambda m, b: m(b)}, ArgumentError, r"must be a scalar tensor, got \(2, 5, 3\)"),
    ({"loss": None}, ArgumentError, "give loss="),
    ({"labels": "model", "loss": None}, ArgumentError, "loss="),
    ({"labels": "drawn"}, ArgumentError, "'given' or 'model'"),
    ({"loss": unused}, SiteError, r"no gradient reached layers\.1\.self_attn\.q_proj and 3 more"),
    ({"loss": lambda m, b: m(b).detach().sum()}, SiteError, "no gradient reaches any"),
    ({"gradients": 0}, ArgumentError, "gradients=0 must be a whole number"),
    ({"gradients": None, "inputs": None}, ArgumentError, "looks at nothing"),
    ({"passes": 1}, ArgumentError, "passes=1"),
    ({"targets": ["nothing"]}, SiteError, "nothing"),
    ({"inputs": 4, "reduce": lambda t: None}, ArgumentError, "cannot be added up by reduce"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_say_what_to_do(options, error, text):
    options = {"batches": BATCHES, "loss": loss, "gradients": 2, **options}
    with pytest.raises(error, match=text):
        capture(tiny(), options.pop("batches"), **options)


def test_an_embedding_is_refused_by_name():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))

    with pytest.raises(SiteError, match="words is an embedding"):
        capture(Words(), [torch.tensor([1, 2])], targets=["words"], loss=loss, gradients=2)


def test_a_gradient_that_is_not_finite_names_batch_and_weight():
    def root(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * 0).sum().sqrt()  # the slope of the root at 0 is infinite

    with pytest.raises(DataError, match=r"batch 0: the gradient that reaches \S+ is not finite"):
        capture(tiny(), BATCHES, loss=root, gradients=2)


def test_an_adapter_that_is_on_the_model_is_seen_through():
    model = tiny()
    adapter = attach(model, "lora", rank=2, alpha=1.0)
    found = capture(model, BATCHES, loss=loss, gradients="whole")
    assert_gradients(found, gradients_of(tiny(), BATCHES))  # it is zero as yet
    assert all(p.grad is None for p in adapter.factors().values())
