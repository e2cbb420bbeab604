"""A factors file that is damaged, foreign or newer: refused in one line, never a traceback."""

from __future__ import annotations

import copy
import json
import shutil
import tracemalloc

import numpy as np
import pytest

from tdecomp.cli.screen import printable
from tdecomp.files import safetensors
from tests.cli import models

DELETE = object()
ODD = (None, -1, 1.5, True, "x", [], {}, [[1]], 10**30, float("nan"), DELETE)


def document(file):
    return json.loads(safetensors.read_header(file)[1]["tdecomp"])


def rewrite(file, text, rows=None):
    """Write the same arrays (or others) under another description."""
    rows = models.read(file) if rows is None else rows
    safetensors.write(
        file,
        [(name, code, array.shape) for name, (code, array) in rows.items()],
        lambda name: safetensors.encode(rows[name][1], rows[name][0]),
        {} if text is None else {"tdecomp": text},
    )


def changed(plain, path, value):
    """A copy of a JSON document with one place replaced or deleted."""
    plain = copy.deepcopy(plain)
    place = plain
    for key in path[:-1]:
        place = place[key]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return plain


def places(plain, path=()):
    """Every place in a JSON document; of a list, the first."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain[:1])
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@pytest.fixture
def commands(out, base, tuned, tmp_path):
    return [
        ["info", out],
        ["verify", out, base, tuned],
        ["apply", out, base, "-o", tmp_path / "model"],
        ["export", out, "--lora", tmp_path / "lora"],
    ]


@pytest.fixture
def refused_by_all(commands, refused):
    def check(*texts):
        for command in commands:
            refused(command, *texts)

    return check


def test_no_factors(out, refused_by_all):
    (out / "factors.safetensors").unlink()
    refused_by_all(out, "holds no factors.safetensors")
    shutil.rmtree(out)
    refused_by_all(out, "holds no factors.safetensors")


def test_not_ours(out, base, refused_by_all):
    shutil.copy(base / "model.safetensors", out / "factors.safetensors")
    refused_by_all(out / "factors.safetensors", "not a tdecomp factors file")


@pytest.mark.parametrize("version", [99, True, 1.0, "1", None, [1], "\x1b[2J"], ids=repr)
def test_another_version(version, out, refused_by_all):
    file = out / "factors.safetensors"
    rewrite(file, json.dumps(document(file) | {"format_version": version}))
    refused_by_all(file, f"format version {printable(str(version))}, this", "reads 1")


def claim(out, sides, rank=0, kind="LowRank"):
    """One group of one site of a shape, from arrays that hold as good as nothing."""
    file = out / "factors.safetensors"
    plain, name = document(file), "x.weight"
    group, site = plain["groups"][0], plain["groups"][0]["sites"][0]
    site |= {"tensor": name, "shape": list(sides), "index": []}
    group |= {"sites": [site], "labels": [labels[:1] for labels in group["labels"]]}
    group |= {"residual": [0.0], "energy": [0.0], "format": kind}
    arrays = {"u": (sides[0], rank), "s": (rank,), "vh": (rank, sides[1])}
    ones = [1] * (len(group["modes"]) - 2)
    group |= {"arrays": list(arrays), "layout": {"sites": ones, "ranks": [rank]}}
    if kind == "Network":
        terms = [f"a{i}" for i in range(40)]
        modes = " ".join(group["modes"][:-2])
        arrays = {str(i): (2,) for i in range(40)} | {"40": tuple(ones)}
        left, right = f"({' '.join(terms[:20])})", f"({' '.join(terms[20:])})"
        equation = f"{', '.join(terms)}, {modes} -> {modes} {left} {right}"
        group |= {"arrays": list(arrays), "layout": {"equation": equation}}
    plain |= {"groups": [group], "shapes": {name: list(sides)}}
    rows = {f"0.{key}": ("F32", np.zeros(shape, np.float32)) for key, shape in arrays.items()}
    rewrite(file, json.dumps(plain), rows)
    return file


@pytest.mark.parametrize(
    ("sides", "kind"),
    [
        ((2**40, 2**14), "LowRank"),
        ((4, 2**25), "LowRank"),
        ((2**54, 2**54), "LowRank"),
        ((2**20, 2**20), "Network"),
    ],
    ids=str,
)
def test_more_than_the_file_can_hold(sides, kind, out, refused_by_all):
    """A kilobyte that claims up to 10**32 numbers: refused before any room is made."""
    tracemalloc.start()
    file = claim(out, sides, kind=kind)
    refused_by_all(file, "is damaged", f"claims matrices of {sides}")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_delta_of_zero_takes_no_room(out, done):
    claim(out, (2**17, 2**17))
    assert "error 0.0000" in done("info", out).out


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", "[" * 100_000, '"x"'], ids=len)
def test_broken_description(text, out, refused_by_all):
    file = out / "factors.safetensors"
    rewrite(file, text)
    refused_by_all(file, "is damaged")


def test_missing_array(out, refused_by_all):
    file = models.spoil(out, "1.s", lambda array: None)
    refused_by_all(file, "is damaged", "1.s")


@pytest.mark.parametrize(
    "change",
    [lambda a: a[:-1], lambda a: a[None], lambda a: a.T, models.put(np.nan), models.put(np.inf)],
    ids=["short", "mode more", "turned", "NaN", "Inf"],
)
def test_wrong_array(change, out, refused_by_all):
    file = models.spoil(out, "0.vh", change)
    refused_by_all(file, "is damaged")


def test_cut_short(out, refused_by_all):
    file = out / "factors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused_by_all(file, "cut short")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("dtype",), "I64", "I64"),
        (("groups",), [], "0 groups"),
        (("groups", 0, "format"), "Nothing", "Nothing"),
        (("groups", 0, "sites", 0, "index"), [99], "index"),
        (("groups", 0, "sites", 0, "index"), [[0, 3]], "not a block"),
        (("groups", 0, "sites", 0, "tensor"), "other.weight", "other.weight"),
        (("groups", 0, "residual"), [1.0], "residual"),
        (("groups", 0, "energy", 0), -1.0, "energy"),
        (("groups", 0, "energy", 0), float("inf"), "not finite"),
        (("groups", 0, "residual", 1), float("inf"), "not finite"),
        (("groups", 0, "residual", 1), float("nan"), "residual"),
        (("groups", 0, "energy"), [1e308, 1e308], "not finite"),
        (("groups", 0, "energy", 0), 10**400, "damaged"),
        (("groups", 0, "residual", 0), "9" * 400, "damaged"),
        (("unknown",), [["x.weight", "only in the base", 1]], "1"),
        (("unknown",), [["x.weight"]], "unpack"),
        (("sources", "base"), {"path": 3, "files": []}, "3"),
    ],
    ids=str,
)
def test_description_that_does_not_fit(path, value, text, out, refused_by_all):
    file = out / "factors.safetensors"
    rewrite(file, json.dumps(changed(document(file), path, value)))
    refused_by_all(file, "is damaged", text)


@pytest.fixture
def survives(commands, call, check_line):
    """Whatever the file holds: an answer, or one line."""

    def check():
        for command in commands:
            more = ("--overwrite",) if command[0] in ("apply", "export") else ()
            result = call(*command, *more)
            assert result.code in ((0, 1, 2) if command[0] == "verify" else (0, 2)), result
            if result.code:
                check_line(result.err)
            if result.code == 2:
                assert result.out == ""
            if command[0] == "info" and result.code:
                return False  # then the others cannot read it either
        return True

    return check


@pytest.mark.parametrize("method", ["svd", "tucker2", "tucker"])
def test_any_place_of_the_description(method, base, tuned, tmp_path, done, rng, survives):
    arguments = ("--targets", "q_proj", "--method", method, "--rank", 1, "-q")
    done("decompose", base, tuned, "-o", tmp_path / "out", *arguments, "--overwrite")
    file = tmp_path / "out" / "factors.safetensors"
    good, rows, read = document(file), models.read(file), set()
    for path in rng.permutation(np.array([*places(good), ()], dtype=object)[:-1])[:60]:
        value = ODD[rng.integers(len(ODD))]
        rewrite(file, json.dumps(changed(good, path, value)), rows)
        read.add(survives())
    assert read == {True, False}


def test_any_byte_of_the_header(base, tuned, tmp_path, done, rng, survives):
    arguments = ("--targets", "q_proj", "--method", "tucker2", "--rank", 1, "-q")
    done("decompose", base, tuned, "-o", tmp_path / "out", *arguments, "--overwrite")
    file = tmp_path / "out" / "factors.safetensors"
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    read = set()
    for place in rng.integers(header, size=60):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        read.add(survives())
    assert read == {True, False}
