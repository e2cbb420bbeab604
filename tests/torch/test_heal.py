"""Healing: decomposed factors learn from the tuned model's outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tdecomp import ArgumentError, DataError, SiteError, jobs
from tdecomp.files import Factors, load_factors, save_factors
from tdecomp.files.factors import FACTORS
from tdecomp_torch import apply, attach, factors, heal
from tests.torch.cases import HIDDEN, inputs, seeded, tiny

BATCHES = [{"x": inputs(24, 6, HIDDEN, seed=k, dtype=torch.float32)} for k in range(8)]


class Classifier(nn.Module):
    """`tiny` with an output like those of transformers."""

    def __init__(self):
        super().__init__()
        self.body = tiny(torch.float32)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * self.body(x))


def model() -> Classifier:
    return seeded(Classifier)


def neighbour() -> Classifier:
    found = model()
    with torch.no_grad():
        for k, (name, p) in enumerate(found.named_parameters()):
            if "proj" in name:
                p.add_(0.3 * inputs(*p.shape, seed=k, dtype=torch.float32))
    return found


METHODS = [
    ("svd", dict(budget=300)),
    ("tucker2", dict(rank=2)),
    ("tucker", dict(rank=2)),
    ("cp", dict(rank=3)),
    ("tensor_train", dict(rank=2)),
    ("interpolative", dict(rank=3)),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("pair")
    for name, made in (("base", model()), ("tuned", neighbour())):
        state = {n: p.detach().contiguous() for n, p in made.named_parameters()}
        save_file(state, folder / f"{name}.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


def decomposed(files: tuple[Path, Path], out: Path, method: str = "svd", **how) -> Factors:
    jobs.decompose(*files, out, method=method, **(how or dict(budget=300)))
    return load_factors(out)


def distance(made: nn.Module, batches=BATCHES) -> float:
    """Mean divergence from the tuned model, written out."""
    total = []
    for batch in batches:
        with torch.no_grad():
            ours, theirs = (m(**batch).logits.reshape(-1, 3) for m in (made, neighbour()))
        p, q = theirs.double().softmax(1), ours.double().softmax(1)
        total.append(float((p * (p / q).log()).sum(1).mean()))
    return float(np.mean(total))


@pytest.mark.parametrize(("method", "how"), METHODS)
def test_outputs_come_closer_and_the_file_is_as_true_as_any(tmp_path, files, method, how):
    before = decomposed(files, tmp_path / "out", method, **how)
    base, tuned = model(), neighbour()
    found = heal(base, tuned, before, BATCHES, steps=30, rate=1e-2)
    healed = found.factors
    held_out = BATCHES[-2:]
    assert found.before == pytest.approx(distance(apply(model(), before), held_out), rel=1e-4)
    assert found.after == pytest.approx(distance(apply(model(), healed), held_out), rel=1e-4)
    assert found.after < found.before
    assert found.kept_step > 0
    for old, new in zip(before.parts, healed.parts, strict=True):
        assert type(old.tensor) is type(new.tensor)
        assert old.tensor.rank == new.tensor.rank
        assert old.group == new.group
    (tmp_path / "out2").mkdir()
    save_factors(tmp_path / "out2" / FACTORS, healed)
    report = jobs.verify(tmp_path / "out2", *files)
    assert report.agrees
    assert report.measured > jobs.verify(tmp_path / "out", *files).measured * (1 - 1e-6)


def test_the_gradient_is_that_of_the_dense_model(tmp_path, files):
    """One step of plain descent is too: the first step of Adam is the sign of the gradient."""
    before = decomposed(files, tmp_path / "out", "tucker2", rank=2)
    two = [BATCHES[0], BATCHES[1]]
    found = heal(model(), neighbour(), before, two, steps=1, rate=1e-4, validation=0.5)
    assert found.train_batches == found.validation_batches == 1
    dense = {n: p.detach().clone() for n, p in model().named_parameters()}
    arrays = []
    for part in before.parts:
        own = {n: torch.tensor(a).requires_grad_() for n, a in part.tensor.arrays.items()}
        arrays.append(own)
        spelled = torch.einsum("or,lprs,is->lpoi", *(own[k] for k in spelling(own)))
        for k, site in enumerate(part.group.sites):
            matrix = spelled.reshape(-1, *site.shape)[k]
            dense[site.tensor] = dense[site.tensor] + matrix
    ours = torch.func.functional_call(model(), dense, (BATCHES[0]["x"],)).logits
    theirs = neighbour()(**BATCHES[0]).logits.detach()
    p = theirs.reshape(-1, 3).softmax(1)
    loss = (p * (p.log() - ours.reshape(-1, 3).log_softmax(1))).sum(1).mean()
    assert found.losses[0] == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    if found.kept_step:
        for part, own in zip(found.factors.parts, arrays, strict=True):
            for name, array in part.tensor.arrays.items():
                moved = np.asarray(array) - own[name].detach().numpy()
                clear = own[name].grad.abs().numpy() > 1e-5
                assert np.allclose(
                    moved[clear], -1e-4 * np.sign(own[name].grad.numpy())[clear], atol=2e-6
                )


def spelling(arrays: dict[str, torch.Tensor]) -> list[str]:
    core = next(n for n, a in arrays.items() if a.dim() == 4)
    return ["factor.out", core, "factor.in"]


def test_models_are_left_as_they_were(tmp_path, files):
    before = decomposed(files, tmp_path / "out")
    base, tuned = model().train(), neighbour().train()
    own = next(base.parameters())
    own.grad = torch.ones_like(own)
    own.requires_grad_(False)
    kept = [copy.deepcopy(m.state_dict()) for m in (base, tuned)]
    random = torch.get_rng_state()
    heal(base, tuned, before, BATCHES, steps=3)
    for m, state in zip((base, tuned), kept, strict=True):
        assert m.training
        assert all(torch.equal(a, state[n]) for n, a in m.state_dict().items())
        assert list(m.state_dict()) == list(state)
        assert all(
            isinstance(p, nn.Parameter)
            for x in m.modules()
            for p in x._parameters.values()
            if p is not None
        )
    assert [p.requires_grad for p in base.parameters()] == [p is not own for p in base.parameters()]
    assert own.grad.eq(1).all()
    assert all(p.grad is None for p in base.parameters() if p is not own)
    assert torch.equal(torch.get_rng_state(), random)


def test_an_adapter_is_healed_in_place(tmp_path, files):
    before = decomposed(files, tmp_path / "out")
    base = model()
    adapter = attach(base, "lora", start=factors(before))
    found = heal(base, neighbour(), adapter, BATCHES, steps=30, rate=1e-2)
    assert found.factors is None
    assert found.n_params == adapter.n_trainable
    assert found.after == pytest.approx(distance(base, BATCHES[-2:]), rel=1e-4)
    assert found.after < found.before
    with pytest.raises(ArgumentError, match="'default' is not on the base model given"):
        heal(model(), neighbour(), adapter, BATCHES)
    adapter.merge()
    with pytest.raises(ArgumentError, match="'default' is merged or detached"):
        heal(base, neighbour(), adapter, BATCHES)
    adapter.unmerge()
    adapter.detach()
    assert distance(base) == pytest.approx(distance(model()))


def test_what_is_won_is_kept_only_if_it_is_better(tmp_path, files):
    """A rate that destroys: the factors come back as they were, to the bit."""
    before = decomposed(files, tmp_path / "out")
    found = heal(model(), neighbour(), before, BATCHES, steps=6, rate=10.0)
    assert (found.kept_step, found.after) == (0, found.before)
    for old, new in zip(before.parts, found.factors.parts, strict=True):
        for name, array in old.tensor.arrays.items():
            assert np.array_equal(array, new.tensor.arrays[name])
    assert "won nothing" in str(found)


def test_outputs_of_ones_own_and_hidden_states(tmp_path, files):
    before = decomposed(files, tmp_path / "out")
    hidden = lambda m, batch: m.body.layers[1](m.body.layers[0](batch["x"]))
    found = heal(model(), neighbour(), before, BATCHES, outputs=hidden, steps=20, rate=1e-2)
    with torch.no_grad():
        ours, theirs = (
            torch.cat([hidden(m, b) for b in BATCHES[-2:]])
            for m in (apply(model(), found.factors), neighbour())
        )
    assert found.after < found.before
    assert found.after == pytest.approx(
        float((ours - theirs).square().sum() / theirs.square().sum()), rel=0.1
    )
    assert found.agreement_before is None


def test_padding_does_not_count(tmp_path, files):
    """A token that the mask leaves out may be anything."""
    before = decomposed(files, tmp_path / "out")

    class Masked(Classifier):
        def forward(self, x, attention_mask):
            keep = attention_mask[..., None]
            return SimpleNamespace(
                logits=super().forward(x * keep).logits + (1 - keep) * 1e3 * x.sum()
            )

    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 24)
    batches = [{"x": b["x"], "attention_mask": mask} for b in BATCHES]
    base, tuned = Masked(), Masked()
    base.load_state_dict(model().state_dict())
    tuned.load_state_dict(neighbour().state_dict())
    found = heal(base, tuned, before, batches, steps=2)
    assert found.before < 10


def test_it_is_the_same_twice_and_progress_rises_to_one(tmp_path, files):
    before, seen = decomposed(files, tmp_path / "out"), []
    runs = [
        heal(model(), neighbour(), before, BATCHES, steps=5, seed=3, progress=seen.append)
        for _ in range(2)
    ]
    assert runs[0].losses == runs[1].losses
    assert seen[:5] == sorted(seen[:5])
    assert seen[-1] == 1


def test_refusals(tmp_path, files):
    before = decomposed(files, tmp_path / "out")
    base, tuned = model(), neighbour()
    for options, text in (
        (dict(batches=BATCHES[:1]), "two batches or more"),
        (dict(batches=[]), "batches is empty"),
        (dict(batches=[torch.ones(3)] * 2), "give outputs="),
        (dict(steps=0), "steps=0 must be a whole number"),
        (dict(rate=0), "rate=0 must be"),
        (dict(validation=1), "validation=1 must be"),
        (dict(outputs=lambda m, b: 3), "outputs must give a tensor"),
    ):
        given = {"batches": BATCHES, **options}
        with pytest.raises(ArgumentError, match=text):
            heal(base, tuned, before, given.pop("batches"), **given)
    with pytest.raises(SiteError, match="no such parameter"):
        heal(nn.Linear(3, 3), tuned, before, BATCHES)
    broken = neighbour()
    with torch.no_grad():
        broken.body.head.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"batch 0: the tuned model's output is not finite"):
        heal(base, broken, before, BATCHES)
