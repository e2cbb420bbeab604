"""What cannot be done is refused by a clear error, and the model stays exactly as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tdecomp.errors import ArgumentError, FileError, SiteError
from tdecomp.files.atomic import output_folder
from tdecomp_torch import Adapter, attach, load_adapter
from tests.models import CASES

Refused = Callable[..., AbstractContextManager[None]]
QV = ["q_proj", "v_proj"]


@cache
def base(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[name].make()


@pytest.fixture
def model() -> Any:
    """Grouped queries, two layers, 4 heads of 4 on a width of 16."""
    return copy.deepcopy(base("llama"))


def picture(model: nn.Module) -> list[Any]:
    """Everything about a model that an adapter may change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        [(k, v.dtype, v.contiguous().numpy().tobytes()) for k, v in model.state_dict().items()],
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        [
            (n, id(m), m.training, *(list(getattr(m, h).items()) for h in hooks))
            for n, m in model.named_modules()
        ],
    ]


@pytest.fixture
def refused() -> Refused:
    """A context that must end in an error of one type and text, with the model untouched."""

    @contextmanager
    def expecting(model: nn.Module, error: type[Exception], match: str):
        before = picture(model)
        with pytest.raises(error, match=match) as found:
            yield
        assert type(found.value) is error
        assert picture(model) == before

    return expecting


# ------------------------------------------------------------------------------------------ attach

NAN = float("nan")

ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"spec": "lotrr"}, "no adapter row 'lotrr', did you mean 'lotr'"),
    "no method": ({"spec": ""}, "no adapter row ''"),
    "method of no type": ({"spec": 5}, "the name of a method or a Spec, got int"),
    "unknown mode": ({"share": ("layers",)}, "share names 'layers'.*have layer, proj"),
    "mode as text": ({"share": "in"}, r"share='in' must be a sequence"),
    "mode as number": ({"share": 5}, "share=5 must be a sequence"),
    "rank zero": ({"rank": 0}, "rank r=0 must be a whole number, 1 or more"),
    "rank negative": ({"rank": -1}, "rank r=-1 must be"),
    "rank a fraction": ({"rank": 2.5}, "rank r=2.5 must be"),
    "rank a float": ({"rank": 2.0}, "rank r=2.0 must be"),
    "rank a bool": ({"rank": True}, "rank r=True must be"),
    "rank a text": ({"rank": "8"}, "rank r='8' must be"),
    "rank nan": ({"rank": NAN}, "rank r=nan must be"),
    "rank a list": ({"rank": [2]}, r"rank r=\[2\] must be"),
    "one rank zero": ({"rank": {"r": 2, "s": 0}}, "rank s=0 must be"),
    "no rank": ({"rank": None}, "needs the rank r, s"),
    "no such rank": ({"rank": {"q": 2}}, "rank names 'q': 'lotr' has r, s"),
    "one rank left out": ({"rank": {"r": 2}}, "needs the rank s"),
    "split that does not divide": (
        {"spec": "dota", "rank": {"r1": 2, "r2": 2, "o1": 3}},
        "splits out = 16 .* o1 = 3, .* does not divide",
    ),
    "unknown heads": ({"spec": "lorta", "targets": ["up_proj"]}, "number of heads of 24x16"),
    "some unknown heads": (
        {"spec": "tenslora_att", "targets": ["q_proj", "down_proj"]},
        "number of heads of 16x24",
    ),
    "bad regex": ({"targets": "q_proj("}, r"'q_proj\(' is neither names nor a regex"),
    "bad regex to exclude": ({"exclude": "("}, r"'\(' is neither names nor a regex"),
    "targets a number": ({"targets": 5}, "targets=5 must be"),
    "targets of numbers": ({"targets": [5]}, r"targets=\[5\] must be"),
    "exclude a number": ({"exclude": 5}, "exclude=5 must be"),
    "layers as text": ({"layers": "0"}, "layers='0' must be"),
    "layers of texts": ({"layers": ["0"]}, r"layers=\['0'\] must be"),
    "layers a fraction": ({"layers": [0.5]}, r"layers=\[0.5\] must be"),
    "name of two words": ({"name": "a b"}, "name='a b' must be a word"),
    "name empty": ({"name": ""}, "name='' must be a word"),
    "name dotted": ({"name": "a.b"}, "name='a.b' must be a word"),
    "name a number": ({"name": 5}, "name=5 must be a word"),
    "dropout of 1": ({"dropout": 1.0}, "dropout=1.0 must be 0 or more and below 1"),
    "dropout negative": ({"dropout": -0.1}, "dropout=-0.1 must be"),
    "dropout nan": ({"dropout": NAN}, "dropout=nan must be"),
    "dropout a text": ({"dropout": "x"}, "dropout='x' must be"),
    "dropout nothing": ({"dropout": None}, "dropout=None must be"),
    "alpha a text": ({"alpha": "x"}, "alpha='x' must be a number"),
    "alpha nan": ({"alpha": NAN}, "alpha=nan must be a number"),
    "alpha of no scale": ({"spec": "vera", "alpha": 2}, "alpha=2 would change nothing"),
    "alpha infinite": ({"alpha": float("inf")}, "alpha=inf must be a number"),
    "dtype of integers": ({"dtype": torch.int8}, "dtype=torch.int8 must be"),
    "dtype complex": ({"dtype": torch.complex64}, "dtype=torch.complex64 must be"),
    "dtype a text": ({"dtype": "float32"}, "dtype='float32' must be"),
    "to train a number": ({"also_train": 5}, "also_train=5 must be"),
    "seed negative": ({"seed": -1}, "seed=-1 must be a whole number"),
    "seed a fraction": ({"seed": 1.5}, "seed=1.5 must be a whole number"),
    "no tokens": ({"tokens": 0}, "tokens=0 must be a whole number"),
    "tokens a text": ({"tokens": "x"}, "tokens='x' must be a whole number"),
    "given of wrong shape": (
        {"given": {"left": np.ones((3, 2))}},
        r"'left' is out r of sizes \(16, 2\), given was an array of \(3, 2\)",
    ),
    "given by no name": ({"given": {"lef": np.ones((16, 2))}}, "given names 'lef'.*'left'"),
    "given no numbers": ({"given": {"left": "x"}}, "given .*'left'"),
    "given a list": ({"given": [1]}, r"given=\[1\] must be"),
    "to be given": ({"spec": "eigenlorax"}, "'directions_out' .* must be given"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_attach_refuses_an_argument(case: str, model: nn.Module, refused: Refused):
    changed, text = ARGUMENTS[case]
    given = {"spec": "lotr", "targets": ["q_proj"], "rank": 2} | changed
    with refused(model, ArgumentError, text):
        attach(model, given.pop("spec"), **given)


TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"targets": ["qproj"]}, r"no site matches targets=\['qproj'\].*'q_proj'"),
    "none": ({"targets": []}, r"no site matches targets=\[\]"),
    "all excluded": ({"targets": QV, "exclude": QV}, r"is not a site \(excluded\)"),
    "no such layer": ({"targets": QV, "layers": [9]}, r"is not a site \(layer not selected\)"),
    "a norm": ({"targets": ["norm", "q_proj"]}, r"cannot be adapted: model\.norm \(LlamaRMSNorm\)"),
    "many norms": (
        {"targets": [*QV, "input_layernorm", "norm"]},
        r"layers\.0\.input_layernorm .*layers\.1\.input_layernorm .*model\.norm",
    ),
    "a regex that is a name": ({"targets": "q_proj"}, r"give \['q_proj'\] to name modules"),
    "no such pattern": ({"patterns": ["foo.{layer}.bar"]}, "no site matches patterns="),
    "broken pattern": ({"patterns": ["layers.{layer.x"]}, "unbalanced braces"),
    "nothing to train": ({"also_train": ["lm_head", "head"]}, "also_train='head' matches no param"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_attach_refuses_targets(case: str, model: nn.Module, refused: Refused):
    asked, text = TARGETS[case]
    with refused(model, SiteError, text):
        attach(model, "lotr", rank=2, **asked)


class Mixed(nn.Module):
    """Modules that are no matrices, or are never called."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.line = nn.Conv1d(8, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.image = nn.Conv2d(8, 8, 3)
        self.words = nn.Embedding(5, 8)
        self.scale = nn.Parameter(torch.ones(8, 8))
        self.last = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("out_proj", r"attention\.out_proj \(used by MultiheadAttention without a call\)"),
        ("line", r"line \(Conv1d\)"),
        ("grouped", r"grouped \(Conv2d, not a matrix\)"),
        ("scale", r"scale \(a parameter of shape \(8, 8\), not a module\)"),
        ("attention", r"attention \(MultiheadAttention\)"),
    ],
)
def test_attach_lists_what_is_no_matrix(target: str, text: str, refused: Refused):
    model = Mixed()
    with refused(model, SiteError, f"cannot be adapted: {text}"):
        attach(model, "lora", rank=2, targets=[target, "last"])


@pytest.mark.parametrize("thing", [{"a": 1}, "gpt2", None], ids=str)
def test_attach_refuses_what_is_no_model(thing: Any):
    with pytest.raises(ArgumentError, match="model must be a torch module, got"):
        attach(thing, "lora", rank=2)


def test_attach_refuses_heads_that_do_not_divide(model: nn.Module, refused: Refused):
    with refused(model, ArgumentError, "splits out = 16 .*head = 4, hd = 3.*does not divide"):
        attach(model, "lorta", targets=["q_proj"], rank={"r": 2, "hd": 3})


def test_attach_refuses_a_name_that_is_taken(model: nn.Module, refused: Refused):
    attach(model, "lora", targets=["q_proj"], rank=2)
    with refused(model, ArgumentError, "there is an adapter 'default' on this model"):
        attach(model, "lotr", targets=["v_proj"], rank=2)
    attach(model, "lotr", targets=["v_proj"], rank=2, name="second")


@pytest.mark.parametrize(("first", "second"), [("dora", "lora"), ("lora", "dora")])
def test_attach_refuses_to_add_to_what_is_replaced(
    first: str, second: str, model: nn.Module, refused: Refused
):
    attach(model, first, targets=["q_proj"], rank=2)
    with refused(model, ArgumentError, r"self_attn\.q_proj has an adapter.*detach the other"):
        attach(model, second, targets=QV, rank=2, name="second")


def test_a_rank_above_what_its_mode_can_use_is_told_once(model: nn.Module):
    adapter = attach(model, "tenslora_qkv_depth", targets=QV, rank=4)
    assert adapter.notes == (
        "The rank u = 4 is larger than the modes it connects can use.",
        "The rank v = 4 is larger than the modes it connects can use.",
    )
    assert str(adapter).count("rank u = 4") == 1
    within = {"r": 4, "s": 4, "u": 1, "v": 2}
    assert attach(model, "tenslora_qkv_depth", targets=QV, rank=within, name="b").notes == ()


# ------------------------------------------------------------------------------------------- files

FILE = "factors.safetensors"


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    """A saved adapter with a trained head beside it; the model is as before."""
    adapter = attach(model, "lora_xs", targets=QV, rank=2, also_train=["lm_head"])
    adapter.save(tmp_path / "saved")
    adapter.detach()
    return tmp_path / "saved"


def edit(
    folder: Path,
    tensors: Callable[[dict[str, torch.Tensor]], Any] = lambda _: None,
    document: Callable[[dict[str, Any]], Any] = lambda _: None,
) -> None:
    """Change the tensors or the description of a saved adapter in place."""
    path = folder / FILE
    arrays = load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    plain = json.loads(metadata["tdecomp.adapter"])
    tensors(arrays)
    document(plain)
    save_file(arrays, path, metadata | {"tdecomp.adapter": json.dumps(plain)})


CORE, BASIS = "16x16__core", "8x16__a"

TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "wrong shape": (lambda t: t.update({CORE: torch.ones(2, 3, 2)}), r"'core' .*\(2, 3, 2\)"),
    "wrong rank": (lambda t: t.update({BASIS: torch.ones(2, 3, 16)}), r"'a' .*\(2, 3, 16\)"),
    "missing factor": (lambda t: t.pop(CORE), f"misses the tensor '{CORE}'"),
    "missing constant": (lambda t: t.pop(BASIS), f"misses the tensor '{BASIS}'"),
    "extra tensor": (lambda t: t.update(more=torch.ones(2)), "besides its factors.*'more'"),
    "whole numbers": (lambda t: t.update({CORE: t[CORE].int()}), f"'{CORE}' is I32, not floating"),
}
DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer version": (lambda d: d.update(version=3), "format version 3, this tdecomp reads 2"),
    "no version": (lambda d: d.pop("version"), "format version None"),
    "no method": (lambda d: d.pop("spec"), "is damaged.*spec"),
    "broken method": (lambda d: d["spec"].update(equation="out r, in"), "is damaged"),
    "another argument": (lambda d: d["spec"].update(colour="red"), "is damaged.*colour"),
    "unknown setting": (lambda d: d["settings"].update(size=3), "is damaged.*size"),
    "bad rank": (lambda d: d["settings"].update(rank=0), "rank r=0 must be"),
    "other rank": (lambda d: d["settings"].update(rank=3), r"'a' .* \(2, 3, 16\)"),
    "no groups": (lambda d: d.update(grids=[]), "is damaged"),
    "missing place": (lambda d: d["grids"][0]["places"].pop(), "is damaged"),
    "place outside": (lambda d: d["grids"][0]["places"][0].__setitem__(0, 9), "is damaged.*place"),
    "missing module": (lambda d: d["grids"][0]["sites"].pop(), "is damaged"),
    "module of another shape": (lambda d: d["grids"][0].update(shape=[8, 16]), "is damaged"),
    "step a text": (lambda d: d.update(step="x"), "is damaged"),
    "groups a number": (lambda d: d.update(grids=3), "is damaged"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_load_refuses_tensors_that_do_not_fit(
    case: str, saved: Path, model: nn.Module, refused: Refused
):
    change, text = TENSORS[case]
    edit(saved, tensors=change)
    with refused(model, FileError, rf"{FILE}.*{text}"):
        load_adapter(model, saved)


@pytest.mark.parametrize("case", DOCUMENTS)
def test_load_refuses_a_description_it_cannot_read(
    case: str, saved: Path, model: nn.Module, refused: Refused
):
    change, text = DOCUMENTS[case]
    edit(saved, document=change)
    with refused(model, FileError, rf"{FILE}.*{text}"):
        load_adapter(model, saved)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def scramble(path: Path) -> None:
    path.write_bytes(b"no tensors at all, but some text")


def strip(path: Path) -> None:
    save_file(load_file(path), path)


def garble(path: Path) -> None:
    save_file(load_file(path), path, {"tdecomp.adapter": "{not json"})


def replace(path: Path) -> None:
    save_file(load_file(path), path, {"tdecomp.adapter": "[1]"})


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut, "is damaged"),
        (scramble, "is damaged"),
        (strip, "holds no adapter"),
        (garble, "is damaged"),
        (replace, "is damaged: its description is a list"),
        (Path.unlink, "does not exist"),
    ],
    ids=["truncated", "no safetensors", "no metadata", "no json", "no mapping", "no file"],
)
def test_load_refuses_a_damaged_file(
    damage: Callable[[Path], Any], text: str, saved: Path, model: nn.Module, refused: Refused
):
    damage(saved / FILE)
    with refused(model, FileError, rf"{FILE}.*{text}"):
        load_adapter(model, saved)


def test_load_refuses_a_folder_that_is_not_there(tmp_path: Path, model: nn.Module, refused):
    with refused(model, FileError, "nowhere does not exist"):
        load_adapter(model, tmp_path / "nowhere")


def narrower() -> nn.Module:
    model = copy.deepcopy(base("llama"))
    model.model.layers[1].self_attn.q_proj = nn.Linear(12, 16)  # pyright: ignore
    return model


def normed() -> nn.Module:
    model = copy.deepcopy(base("llama"))
    model.model.layers[1].self_attn.v_proj = nn.LayerNorm(16)  # pyright: ignore
    return model


def headless() -> nn.Module:
    model = copy.deepcopy(base("llama"))
    model.lm_head = nn.Linear(16, 7)  # pyright: ignore
    return model


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: copy.deepcopy(base("bert")), r"no module model\.layers\.0\.self_attn\.q_proj"),
        (lambda: copy.deepcopy(base("phi3")), r"no module model\.layers\.0\.self_attn\.q_proj"),
        (narrower, r"layers\.1\.self_attn\.q_proj was \(16, 16\), .* is \(16, 12\)"),
        (normed, r"layers\.1\.self_attn\.v_proj"),
        (headless, r"lm_head\.weight' \(32, 16\)"),
    ],
    ids=["bert", "phi3", "narrower", "a norm", "another head"],
)
def test_load_names_the_first_difference_of_another_model(
    other: Callable[[], nn.Module], text: str, saved: Path, refused: Refused
):
    model = other()
    with refused(model, SiteError, text):
        load_adapter(model, saved)


@pytest.mark.parametrize(
    ("name", "text"), [("default", "there is an adapter 'default'"), ("a b", "must be a word")]
)
def test_load_refuses_a_name(name: str, text: str, saved: Path, model: nn.Module, refused: Refused):
    attach(model, "lora", targets=["o_proj"], rank=2)
    with refused(model, ArgumentError, text):
        load_adapter(model, saved, name=name)


def test_load_refuses_what_is_no_model(saved: Path):
    with pytest.raises(ArgumentError, match="model must be a torch module, got"):
        load_adapter("gpt2", saved)  # pyright: ignore[reportArgumentType]


def test_other_base_weights_are_told(saved: Path, model: nn.Module):
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.q_proj.weight").mul_(2)
    assert load_adapter(model, saved).notes == (
        "The base weights differ from those that this adapter was trained on.",
    )


# ------------------------------------------------------------------------------------ merge, export


@pytest.fixture
def adapter(model: nn.Module) -> Adapter:
    return attach(model, "lotr", targets=QV, rank=2)


@pytest.mark.parametrize("save", [Adapter.save, Adapter.save_lora])
def test_an_existing_folder_is_not_replaced_unasked(
    save: Callable[..., Any], adapter: Adapter, tmp_path: Path
):
    save(adapter, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(FileError, match="out already exists"):
        save(adapter, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    save(adapter, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("save", [Adapter.save, Adapter.save_lora])
def test_the_base_model_is_not_replaced(
    save: Callable[..., Any], adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Even where this tool wrote it."""
    with output_folder(tmp_path / "base") as folder:
        (folder / "model.safetensors").write_text("weights")
    monkeypatch.setattr(adapter.model, "name_or_path", str(tmp_path / "base"), raising=False)
    for place in (tmp_path / "base", tmp_path / "base" / "model.safetensors"):
        with pytest.raises(FileError, match="the input"):
            save(adapter, place, overwrite=True)
    for _ in range(2):
        save(adapter, tmp_path / "base" / "adapter", overwrite=True)


@pytest.mark.parametrize("save", [Adapter.save, Adapter.save_lora])
def test_a_folder_of_others_is_never_replaced(
    save: Callable[..., Any], adapter: Adapter, tmp_path: Path
):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with pytest.raises(FileError, match="is not an output of tdecomp"):
        save(adapter, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"


@pytest.mark.parametrize("keep", ["gpu", True, 0, ""])
def test_merge_refuses_a_place_to_keep(keep: Any, adapter: Adapter, refused: Refused):
    with refused(adapter.model, ArgumentError, "expected 'cpu', 'device' or None"):
        adapter.merge(keep=keep)
    assert not adapter.is_merged


def test_merge_refuses_to_merge_twice(adapter: Adapter, refused: Refused):
    adapter.merge()
    with refused(adapter.model, ArgumentError, "'default' is merged already: unmerge it first"):
        adapter.merge()
    adapter.unmerge()


def test_unmerge_refuses_what_is_not_merged(adapter: Adapter, refused: Refused):
    with refused(adapter.model, ArgumentError, "'default' is not merged"):
        adapter.unmerge()


def test_unmerge_refuses_without_the_originals(adapter: Adapter, refused: Refused):
    assert adapter.merge(keep=None) == 0
    with refused(adapter.model, ArgumentError, "without keeping the original weights"):
        adapter.unmerge()
    assert adapter.is_merged


def test_a_merged_adapter_cannot_be_switched_off(adapter: Adapter, refused: Refused):
    adapter.merge()
    with refused(adapter.model, ArgumentError, "is merged: unmerge it to switch it off"):
        adapter.active = False
    with (
        refused(adapter.model, ArgumentError, "is merged: unmerge it to switch it off"),
        adapter.disabled(),
    ):
        pass
    assert adapter.active


def test_unmerge_refuses_while_a_later_merge_is_on_the_same_weights(
    adapter: Adapter, refused: Refused
):
    later = attach(adapter.model, "lora", targets=["q_proj"], rank=2, name="later")
    before = picture(adapter.model)
    adapter.merge()
    later.merge()
    with refused(adapter.model, ArgumentError, "'later'.*merged after"):
        adapter.unmerge()
    later.unmerge()
    adapter.unmerge()
    assert picture(adapter.model) == before


def test_merge_refuses_tied_weights(refused: Refused):
    model = copy.deepcopy(base("gpt2"))
    adapter = attach(model, "lora", targets=["lm_head", "c_attn"], rank=2)
    with refused(model, SiteError, r"lm_head shares its weight with transformer\.wte.*untie=True"):
        adapter.merge()
    adapter.merge(untie=True)
    adapter.unmerge()


@pytest.mark.parametrize(
    ("target", "text"), [("words", "words is a Embedding"), ("image", "image is a Conv2d")]
)
def test_to_lora_refuses_what_lora_files_do_not_hold(
    target: str, text: str, refused: Refused, tmp_path: Path
):
    adapter = attach(Mixed(), "lora", rank=2, targets=[target])
    with refused(adapter.model, SiteError, text):
        adapter.save_lora(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "2"])
def test_to_lora_refuses_a_rank(rank: Any, adapter: Adapter, refused: Refused):
    with refused(adapter.model, ArgumentError, f"max_rank={rank!r} must be a whole number"):
        adapter.to_lora(max_rank=rank)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda a: a.delta("lm_head"), "'lm_head' is not adapted by 'default'"),
        (lambda a: a.param_groups(0.1, {"lef": 2}), "ratios name 'lef'.*core, left, right"),
        (lambda a: a.param_groups(0.1, head=2), "unknown argument 'head'"),
    ],
    ids=["delta", "ratios", "heads"],
)
def test_an_adapter_refuses_unknown_names(
    act: Callable[[Adapter], Any], text: str, adapter: Adapter, refused: Refused
):
    with refused(adapter.model, ArgumentError, text):
        act(adapter)


def test_detaching_twice_is_refused(adapter: Adapter, refused: Refused):
    model = adapter.detach()
    with refused(model, ArgumentError, "'default' is not on a model"):
        adapter.detach()
