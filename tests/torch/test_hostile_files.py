"""Adapter files that nobody should have written: refused by name, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tdecomp import FileError, TdecompError
from tdecomp_torch import attach, load_adapter
from tests.torch.cases import seeded
from tests.waiting import cpu_seconds

KEY, FILE = "tdecomp.adapter", "factors.safetensors"
X = torch.ones(2, 16)

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "vera": {"rank": 2},
    "nola": {"rank": {"r": 2, "k": 3, "m": 3}},
    "tenslora_qkv_depth": {"rank": 2, "patterns": ["{layer}.{proj}"]},
    "fourierft": {"rank": 5},
    "tt_lora": {"rank": 2},
    "dora": {"rank": 2, "tasks": ["one", "two"]},
    "loldu": {"rank": 2, "fold": True},
    "aslora": {"rank": {"r": 2, "g": 2}, "patterns": ["{layer}.{proj}"]},
}


def two() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)) for _ in range(2)), nn.Linear(16, 3)
    )


def base() -> nn.Sequential:
    return seeded(two)


def saved(method: str, folder: Path) -> Path:
    targets = ["0.0", "0.1", "1.0", "1.1"]
    adapter = attach(base(), method, targets=targets, also_train=["2"], **METHODS[method])
    adapter.save(folder)
    return folder / FILE


def parts(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()[KEY])


def write(file: Path, tensors: dict[str, torch.Tensor], document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    save_file(tensors, file, {KEY: text})


def loads(file: Path) -> str:
    """The error of a file, if it has one; the model is untouched by it."""
    model = base()
    before = list(model.state_dict())
    told = ""
    try:
        adapter = load_adapter(model, file.parent)
    except TdecompError as error:
        told = str(error)
    else:
        model(X)
        adapter.detach()
    assert list(model.state_dict()) == before
    assert told.isprintable()
    return told


# -- mutations ---------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 17, 10**9, 10**12, 2**53, 10**30, 10**400, -(10**30)),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")),
    *("", " ", "x", "0", "r", "in", "out", "site", "lora", "\x1b[2J", "\ud800", "é", "a" * 5000),
    *("out r, r in", "*" * 50, "((((", "2**400", "1/0", "part(2, 10**8, 1)", "round(7, -10**9)"),
    *("divisor(1099511627689, 5)", "sqrt(-1)", "max(1)", "(-8)**0.5", "1e400", "step", "alpha"),
    *(
        "normal(1e300)",
        "normal(-1)",
        "svd_u",
        "given",
        "copy(b)",
        "one_hot",
        "mask(9)",
        "cos(1,2,3)",
    ),
    *([], {}, [[]], [1], ["x"], {"x": 1}, [None] * 300, {"r": 10**9}, [["layer", 0]], [16, 16]),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain values."""
    found = [path] if path else []
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            found += places(value, (*path, key))
    return found


def mutated(document: Any, rng: random.Random) -> Any:
    document = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        *way, last = rng.choice(places(document))
        node = document
        for key in way:
            node = node[key]
        act = rng.randrange(5)
        if act == 0:
            del node[last]
        elif act == 1 and isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(rng.choice(node)))
        elif act == 2 and isinstance(node[last], str) and node[last]:
            text = node[last]
            at, other = rng.randrange(len(text)), rng.choice([*"r*:,+-()_ 9", "", "\n"])
            node[last] = text[:at] + other + text[at + rng.randrange(2) :]
        elif act == 3 and isinstance(node[last], int | float) and node[last]:
            node[last] = node[last] * rng.choice([-1, 2, 1000]) + rng.choice([0, 1])
        else:
            node[last] = copy.deepcopy(rng.choice(ODD))
        if not places(document):
            break
    return document


@pytest.mark.parametrize("method", METHODS)
def test_any_description_is_read_or_refused(method, tmp_path):
    """Seeded mutations of the description: no foreign error, none takes long."""
    file = saved(method, tmp_path / "saved")
    tensors, document = parts(file)
    assert not loads(file)
    rng = random.Random(method)
    for _ in range(25):
        write(file, tensors, mutated(document, rng))
        with cpu_seconds(5):
            loads(file)


def test_any_bytes_are_read_or_refused(tmp_path):
    file = saved("lora", tmp_path / "saved")
    whole, rng = file.read_bytes(), random.Random(0)
    header = int.from_bytes(whole[:8], "little")
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            raw[rng.randrange(min(len(raw), header + 40))] = rng.randrange(256)
        file.write_bytes(raw[: rng.choice([len(raw), len(raw), rng.randrange(len(raw))])])
        loads(file)


# -- what a small file could cost ---------------------


def spec(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d["spec"].update(changes)


def settings(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d["settings"].update(changes)


def constants(init: str, rank: int, **more: Any) -> Callable[[dict[str, Any]], Any]:
    """Two more frozen factors, of `rank` times `rank` numbers and more."""

    def change(d: dict[str, Any]) -> None:
        d["spec"].update(
            equation="b: site out r, a: site r in + *x: out q, *y: q p, *z: p in",
            init={"a": "normal", "b": "zeros", "x": init, "y": init, "z": init},
            **more,
        )
        d["settings"]["rank"] = {"r": 2, "q": rank, "p": rank}

    return change


def doubled(d: dict[str, Any]) -> None:
    d["grids"] = d["grids"] * 2


def deep(d: dict[str, Any]) -> None:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    d["spec"]["across"] = nested


COSTLY: dict[str, tuple[Callable[[dict[str, Any]], Any] | str, str]] = {
    "squares": (
        spec(where={"g0": "2**400", **{f"g{i + 1}": f"g{i}*g{i}" for i in range(40)}}),
        "a number of more than 1000 bits",
    ),
    "fractions": (
        spec(where={"g0": "1/3**300", **{f"g{i + 1}": f"g{i}*g{i}" for i in range(40)}}),
        "a number of more than 1000 bits",
    ),
    "places": (spec(scale="round(7, -1000000000)"), "too many to round to"),
    "parts": (spec(scale="part(2, 200000000, 1)"), "from 1 to at most 64"),
    "towers": (spec(scale="2**2**2**2**2**2"), "too large"),
    "long text": (spec(scale="+".join(["1"] * 5000)), r"scale is .* at most 1000 characters"),
    "long sum": (spec(scale="+".join(["1"] * 400)), "more than 100 steps inside each other"),
    "brackets": (spec(scale="(" * 400 + "1" + ")" * 400), "cannot read the formula"),
    "many names": (
        spec(where={f"name{i}": "+".join(f"word{i}x{k}" for k in range(50)) for i in range(60)}),
        "names, 512 of 100 characters are the most",
    ),
    "many rules": (
        spec(where={f"g{i}": f"g{i + 1}" for i in range(5000)}),
        "where is .* 64 at most",
    ),
    "many terms": (
        spec(equation=" + ".join(["b: site out r, a: site r in"] * 250)),
        "too many",
    ),
    "long equation": (spec(equation="* " + " " * 20000 + "!"), "at most 8000 characters"),
    "constants": (constants("normal", 10_000), "misses the tensor '16x16__x'"),
    "zeros": (constants("zeros", 10**12), "misses the tensor '16x16__x'"),
    "waves": (constants("cos(10**6, 10**6, 0)", 100), "waves over a grid of 1000000 x 1000000"),
    "ranks": (settings(rank=10**12), r"\(2, 1000000000000, 16\)"),
    "tasks": (settings(tasks=["t"] * 4096), "is not one site for each"),
    "digits": (lambda d: d.update(step=10**2000), "has 2001 digits"),
    "twice": (doubled, "is not one site|damaged"),
    "deep": (deep, "across"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "fields twice": ('{"version": 2, "version": 2}', "the field 'version' is there twice"),
    "no number": ('{"version": 2, "step": NaN}', "NaN is not a number"),
    "labels": (
        lambda d: d["grids"][0]["modes"].append(["layer", list(range(10**4))]),
        "damaged",
    ),
}


@pytest.mark.parametrize("case", COSTLY)
def test_a_small_file_costs_little(case, tmp_path):
    change, message = COSTLY[case]
    file = tmp_path / "saved" / FILE
    adapter = attach(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), "lora", rank=2)
    adapter.save(file.parent)
    tensors, document = parts(file)
    if isinstance(change, str):
        document = change
    else:
        change(document)
    write(file, tensors, document)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tracemalloc.start()
    with pytest.raises(FileError, match=message) as caught, cpu_seconds(5):
        load_adapter(model, file.parent)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert FILE in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("change", ["sizes", "kinds"])
def test_tensors_that_no_method_asks_for_are_not_read(change, tmp_path, monkeypatch):
    file = saved("lora", tmp_path / "saved")
    tensors, document = parts(file)
    key = next(iter(tensors))
    more = {"sizes": torch.ones(4, 4), "kinds": torch.ones(3, dtype=torch.int8)}[change]
    write(file, tensors | {key: more}, document)
    monkeypatch.setattr(torch.Tensor, "to", None)  # nothing is made
    assert key in loads(file) or change in loads(file)


def test_constants_beyond_what_the_model_accounts_for_are_in_the_file(tmp_path):
    """Whoever attaches a method can load it again."""
    model = nn.Sequential(nn.Linear(16, 16))
    adapter = attach(model, "nola", targets=["0"], rank={"r": 2, "k": 70_000, "m": 70_000})
    assert adapter.n_frozen > 1 << 22
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor.normal_(0, 0.01)
    expected = model(X)
    adapter.save(tmp_path / "saved")
    adapter.detach()
    load_adapter(model, tmp_path / "saved")
    assert torch.equal(model(X), expected)
    tensors, document = parts(tmp_path / "saved" / FILE)
    frozen = next(key for key in tensors if key.endswith("__b"))
    del tensors[frozen]
    write(tmp_path / "saved" / FILE, tensors, document)
    with pytest.raises(FileError, match=f"misses the tensor '{frozen}'"):
        load_adapter(nn.Sequential(nn.Linear(16, 16)), tmp_path / "saved")


@pytest.mark.parametrize("name", ["b", "a"])
def test_constants_that_were_given_are_in_the_file(name, tmp_path):
    """They do not follow from the seed, whatever the method says."""
    model = nn.Sequential(nn.Linear(16, 16))
    init = {"b": "zeros", "a": "normal"}
    from tdecomp.adapters import Spec

    method = Spec.parse(
        "mine", f"{'*' * (name == 'b')}b: out r, {'*' * (name == 'a')}a: r in", init
    )
    shape = (16, 2) if name == "b" else (2, 16)
    adapter = attach(model, method, targets=["0"], rank=2, given={name: torch.rand(shape).numpy()})
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor.normal_()
    expected = model(X)
    assert f"tdecomp_default.layer0_16x16__{name}" in model.state_dict()
    adapter.save(tmp_path / "saved")
    adapter.detach()
    load_adapter(model, tmp_path / "saved")
    assert torch.equal(model(X), expected)
