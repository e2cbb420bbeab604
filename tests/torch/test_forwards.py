"""Laws of modules whose forward is not torch's: exact, as adapted so merged, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tdecomp import SiteError
from tdecomp_torch import attach
from tdecomp_torch.model.modules import kind_of
from tests.torch.cases import adapted, assert_close, inputs, seeded

N_IN, N_OUT, ROWS = 5, 7, 9


class AsEver(nn.Linear):
    """Its own words for the same product."""

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Chooses(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = super().forward(x)
        return scores.topk(2)


class Softens(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


class Grouped(nn.Linear):
    """Every half of the input has a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.weight.view(2, -1, self.in_features)
        return torch.einsum("...gi,goi->...go", x.unflatten(-1, (2, -1)), own).flatten(-2)


class NormedInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.normalize(x, dim=-1))


class Ternary(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.sign() * self.weight.abs().mean(), self.bias)


class BesideItself(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(-1, keepdim=True)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, w, self.bias)


class ByItsOwnConvolution(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class PadsItself(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class ConvolvesAsEver(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Scaled(nn.Embedding):
    scale: Any = 5.3

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class ScaledByABuffer(nn.Embedding):
    def __init__(self, *sizes: int, **options: Any):
        super().__init__(*sizes, **options)
        self.register_buffer("embed_scale", torch.tensor(7.0711), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.embed_scale.to(self.weight.dtype)


class Positions(nn.Embedding):
    """Looks up where a token stands, not what it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.arange(x.shape[-1]).expand(x.shape) + 2)


class NormedRows(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(super().forward(x), [self.embedding_dim])


def image() -> Tensor:
    return inputs(2, 3, 9, 8)


def tokens() -> Tensor:
    return torch.tensor([[0, 1, 8], [4, 4, 0]])


Make = Callable[[], nn.Module]
EXACT: dict[str, tuple[Make, Callable[[], Tensor]]] = {
    "as ever": (lambda: AsEver(N_IN, N_OUT), lambda: inputs(3, N_IN)),
    "as ever, without bias": (lambda: AsEver(N_IN, N_OUT, bias=False), lambda: inputs(3, N_IN)),
    "convolves as ever": (lambda: ConvolvesAsEver(3, 4, (3, 2), padding=1), image),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=(1, 2)), image),
    "scaled": (lambda: Scaled(ROWS, N_OUT), tokens),
    "scaled by a buffer": (lambda: ScaledByABuffer(ROWS, N_OUT, padding_idx=8), tokens),
    "counts its rows": (lambda: nn.Embedding(ROWS, N_OUT, scale_grad_by_freq=True), tokens),
    "sparse": (lambda: nn.Embedding(ROWS, N_OUT, sparse=True, padding_idx=0), tokens),
}
REFUSED: dict[str, Make] = {
    "halved": lambda: Halved(N_IN, N_OUT),
    "chooses": lambda: Chooses(N_IN, N_OUT),
    "softens": lambda: Softens(N_IN, N_OUT),
    "grouped": lambda: Grouped(N_IN, 6, bias=False),
    "normed input": lambda: NormedInput(N_IN, N_OUT),
    "ternary": lambda: Ternary(N_IN, N_OUT),
    "beside itself": lambda: BesideItself(N_IN, N_OUT),
    "standardised": lambda: Standardised(3, 4, 3),
    "by its own convolution": lambda: ByItsOwnConvolution(3, 4, 3),
    "pads itself": lambda: PadsItself(3, 4, 3),
    "positions": lambda: Positions(ROWS, N_OUT),
    "normed rows": lambda: NormedRows(ROWS, N_OUT),
    "max_norm": lambda: nn.Embedding(ROWS, N_OUT, max_norm=1.0),
    "bag": lambda: nn.EmbeddingBag(ROWS, N_OUT),
    "in groups": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "padded by reflection": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("name", ["lora", "dora", "flora", "map"])
@pytest.mark.parametrize("case", EXACT)
def test_what_is_adapted_is_merged(case, name):
    make, x = EXACT[case]
    model = seeded(lambda: nn.Sequential(make())).double()
    before = model(x()).detach()
    model, adapter = adapted(name, model, targets=["0"])
    output = model(x()).detach()
    assert not torch.allclose(output, before)
    adapter.merge()
    assert_close(model(x()), output)
    adapter.unmerge()
    assert_close(model(x()), output)


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_more_is_refused_by_name(case):
    model = nn.Sequential(seeded(REFUSED[case]))
    name = type(model[0]).__name__
    with pytest.raises(SiteError, match=rf"0 \({name}"):
        attach(model, "lora", targets=["0"], rank=2)
    if isinstance(model[0], nn.Linear):
        both = nn.Sequential(model[0], nn.Linear(N_OUT, 4))
        adapter = attach(both, "lora", targets="all-linear", rank=2)
        assert [target.path for target in adapter.targets] == ["1"]
        assert any(f"a {name} does more" in note and note.endswith("0.") for note in adapter.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scale_has_the_precision_of_the_table(dtype):
    model = seeded(lambda: nn.Sequential(ScaledByABuffer(ROWS, N_OUT))).to(dtype)
    kind = kind_of(model[0])
    ones = nn.Embedding.from_pretrained(torch.ones(1, 1, dtype=dtype))
    ones.__class__, ones.embed_scale = ScaledByABuffer, model[0].embed_scale
    assert kind.factor(dtype) == ones(torch.tensor([0])).item()


def test_trying_a_module_leaves_it_and_the_generator_alone():
    module = seeded(lambda: ScaledByABuffer(ROWS, N_OUT))
    module.register_forward_hook(lambda *_: pytest.fail("called"))
    before, state = module.weight.clone(), torch.random.get_rng_state()
    assert kind_of(module) is not None
    assert kind_of(module.to("meta")) is None or module.weight.is_meta
    assert torch.equal(torch.random.get_rng_state(), state)
    assert before.shape == module.weight.shape


# -- layouts in memory ---------------------


def _turned(module: Any) -> None:
    module.weight = nn.Parameter(module.weight.detach().T.contiguous().T)


def _in_a_buffer(module: Any) -> None:
    flat = torch.zeros(module.weight.numel() + 9, dtype=module.weight.dtype)
    view = flat[3 : 3 + module.weight.numel()].view(module.weight.shape)
    module.weight = nn.Parameter(view.copy_(module.weight.detach()))


def _every_second(module: Any) -> None:
    wide = torch.zeros(*module.weight.shape[:-1], 2 * module.weight.shape[-1]).double()
    module.weight = nn.Parameter(wide[..., ::2].copy_(module.weight.detach()))


def _channels_last(module: Any) -> None:
    module.to(memory_format=torch.channels_last)


LAYOUTS: dict[str, tuple[Make, Callable[[], Tensor], Callable[[Any], None]]] = {
    "channels last": (lambda: nn.Conv2d(3, 4, 3), image, _channels_last),
    "channels last, one place": (lambda: nn.Conv2d(3, 4, 1), image, _channels_last),
    "convolution in a buffer": (lambda: nn.Conv2d(3, 4, 3), image, _in_a_buffer),
    "every second": (lambda: nn.Conv2d(3, 4, 3), image, _every_second),
    "turned": (lambda: nn.Linear(N_IN, N_OUT), lambda: inputs(3, N_IN), _turned),
    "in a buffer": (lambda: nn.Linear(N_IN, N_OUT), lambda: inputs(3, N_IN), _in_a_buffer),
    "table turned": (lambda: nn.Embedding(ROWS, N_OUT), tokens, _turned),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_merging_writes_into_the_weight_as_it_lies(case):
    make, x, lay = LAYOUTS[case]
    model = seeded(lambda: nn.Sequential(make())).double()
    lay(model[0])
    base = model(x()).detach()
    _, adapter = adapted("lora", model, targets=["0"])
    parameter, output = model[0].weight, model(x()).detach()
    place, strides = parameter.data_ptr(), parameter.stride()
    original = parameter.detach().clone()
    expected = kind_of(model[0]).matrix(model[0]) + adapter.delta("0")
    state = adapter.merged_state_dict()["0.weight"]
    assert_close(state.T if state.shape == expected.shape[::-1] else state.flatten(1), expected)
    adapter.merge()
    assert model[0].weight is parameter
    assert (parameter.data_ptr(), parameter.stride()) == (place, strides)
    assert_close(model(x()), output)
    adapter.unmerge()
    assert torch.equal(parameter, original)
    adapter.detach()
    adapter = attach(model, "svfit", targets=["0"], rank=2, fold=True)
    assert_close(model(x()), base)
    assert not torch.equal(parameter, original)
    adapter.detach()
    assert torch.equal(parameter, original)


def test_weights_that_share_memory_are_tied_and_neighbours_are_not():
    model = seeded(lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))).double()
    flat = torch.zeros(32, dtype=torch.float64)
    for module, start in ((model[0], 0), (model[1], 16)):
        module.weight = nn.Parameter(flat[start : start + 16].view(4, 4).copy_(module.weight.data))
    model[2].weight = nn.Parameter(model[1].weight.data)
    adapted("lora", model, targets=["0"])[1].merge()
    _, adapter = adapted("lora", model, targets=["1"], name="other")
    with pytest.raises(SiteError, match="1 shares its weight with 2"):
        adapter.merge()
    output = model(inputs(3, 4)).detach()
    adapter.merge(untie=True)
    assert_close(model(inputs(3, 4)), output)


def test_an_expanded_weight_is_refused_before_anything_is_written():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))).double()
    model[1].weight = nn.Parameter(model[1].weight.detach()[:1].expand(4, 4))
    before = model[0].weight.detach().clone()
    _, adapter = adapted("lora", model, targets=["0", "1"])
    with pytest.raises(SiteError, match="1 keeps several of its numbers"):
        adapter.merge()
    assert torch.equal(model[0].weight, before)
