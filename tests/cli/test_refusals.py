"""Bad input: exit code 2, one line that names the file, tensor or option, and nothing written."""

from __future__ import annotations

import json
import shlex
import shutil
import struct

import numpy as np
import pytest

from tdecomp.jobs import applying, decomposing, exporting
from tests.cli import models

RANK = ("--rank", "2")


@pytest.fixture
def decompose(base, tuned, tmp_path):
    """Arguments of a good `decompose`; those given come last."""

    def arguments(*more, before=base, after=tuned):
        return ["decompose", before, after, "-o", tmp_path / "new" / "out", *more]

    return arguments


# ---------------------------------------------------------------------------------------- options

OPTIONS = [
    ((), ("--rank", "--error", "--budget", "none")),
    (("--rank", "2", "--error", "0.1"), ("exactly one", "--rank and --error")),
    (("--error", "0.1", "--budget", "60k"), ("--error and --budget",)),
    (("--rank", "2", "--error", "0.1", "--budget", "9"), ("--rank and --error and --budget",)),
    (("--rank", "0"), ("--rank 0", "1 or more")),
    (("--rank", "-1"), ("--rank -1", "1 or more")),
    (("--rank", "four"), ("--rank four",)),
    (("--rank", ""), ("--rank ''",)),
    (("--rank", "2.5"), ("--rank 2.5",)),
    (("--rank", "4,in=3"), ("--rank 4,in=3",)),
    (("--rank", "out=4,out=3", "--method", "tucker2"), ("--rank", "twice")),
    (("--rank", "21"), ("rank 21", f"size {models.LARGEST}")),
    (("--rank", "9" * 40), ("rank 999", f"size {models.LARGEST}")),
    (("--rank", "21", "--method", "tucker2"), ("rank 21",)),
    (("--rank", "21", "--method", "tucker"), ("rank 21",)),
    (("--rank", "17,4", "--method", "tucker2"), ("rank 17", "'out'", "16")),
    (("--rank", "4,4"), ("--rank 4,4", "1 entries")),
    (("--rank", "4,4", "--method", "tucker"), ("--rank 4,4", "4 entries", "layer proj out in")),
    (("--rank", "head=4", "--method", "tucker"), ("'head'", "layer proj out in")),
    (("--rank", "0,1", "--method", "tucker2"), ("--rank 0,1", "1 or more")),
    (("--error", "0"), ("--error 0",)),
    (("--error", "1"), ("--error 1",)),
    (("--error", "1.5"), ("--error 1.5", "between 0 and 1")),
    (("--error", "-0.1"), ("--error -0.1",)),
    (("--error", "nan"), ("--error nan",)),
    (("--error", "1e-9"), ("--error 1e-09", "1e-06")),
    (("--error", "1e-9", "--method", "tucker"), ("--error 1e-09", "1e-06")),
    (("--error", "1e-4", "--dtype", "bfloat16"), ("--error 0.0001", "wider dtype")),
    (("--error", "little"), ("--error", "number")),
    (("--budget", "20"), ("budget 20", "rank 1", "21 numbers")),
    (("--budget", "20", "--method", "tucker"), ("budget 20", "rank 1", "numbers")),
    (("--budget", "80B"), ("budget 20", "21 numbers")),
    (("--budget", "40B", "--dtype", "float16"), ("budget 20", "21 numbers")),
    (("--budget", "0"), ("--budget 0",)),
    (("--budget", "lots"), ("--budget lots", "60k")),
    (("--budget", "-5"), ("--budget -5",)),
    (("--budget", "60kk"), ("--budget 60kk",)),
    (("--budget", "1e3"), ("--budget 1e3",)),
    (("--budget", ""), ("--budget ''",)),
    (("--budget", "9" * 400), ("--budget 999",)),
    ((*RANK, "--method", "mpo"), ("--method mpo", "svd, tucker2, tucker")),
    ((*RANK, "--dtype", "int8"), ("--dtype int8", "float32, bfloat16, float16")),
    ((*RANK, "--dtype", "F32"), ("--dtype F32",)),
    ((*RANK, "--share", "expert"), ("share", "'expert'", "layer, proj, head, site")),
    ((*RANK, "--share", "layer,"), ("--share layer,",)),
    ((*RANK, "--share", ""), ("--share ''",)),
    ((*RANK, "--targets", "qproj"), ("--targets qproj", "q_proj")),
    ((*RANK, "--targets", "["), ("'['", "regex")),
    ((*RANK, "--targets", " , "), ("no target",)),
    ((*RANK, "--targets", "embed_tokens"), ("embed_tokens", "no site")),
    ((*RANK, "--exclude", ".*"), ("no site", "--exclude '.*'")),
    ((*RANK, "--layers", "7"), ("no site", "--layers 7")),
    ((*RANK, "--layers", "one"), ("'one'", "0-5,8")),
    ((*RANK, "--layers", "3-1"), ("'3-1'",)),
    ((*RANK, "--layers", ""), ("layers", "0-5,8")),
    ((*RANK, "--layers", "0-99999999999"), ("'0-99999999999'",)),
    ((*RANK, "--pattern", "layers.{layer"), ("'layers.{layer'",)),
    ((*RANK, "--pattern", "layers.{out}.mlp"), ("'out'", "layers.{out}.mlp")),
    ((*RANK, "--pattern", ""), ("empty pattern",)),
    ((*RANK, "--pattern", "blocks.{layer}.{proj}"), ("no site", "blocks.{layer}.{proj}")),
    ((*RANK, "--lora", "--lora-rank", "0"), ("--lora-rank", "1")),
    ((*RANK, "--lora-rank", "8"), ("--lora-rank", "add --lora")),
    ((*RANK, "--rank-pattern"), ("--rank-pattern", "add --lora")),
    ((*RANK, "--ranks", "2"), ("--ranks", "--help")),
    ((*RANK, "extra"), ("extra", "--help")),
]


@pytest.mark.parametrize(("more", "texts"), OPTIONS, ids=lambda v: " ".join(map(str, v))[:50])
def test_options(more, texts, decompose, refused):
    refused(decompose(*more), *texts)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("nonsense",), ("nonsense",)),
        (("--nonsense",), ("--nonsense",)),
        (("decompose", "a"), ("TUNED",)),
        (("decompose", "a", "b", "--rank", "1"), ("--out",)),
        (("inspect", "nowhere"), ("nowhere", "does not exist")),
        (("info", "nowhere"), ("nowhere", "factors.safetensors")),
        (("info", "nowhere", "--rank", "2"), ("--rank",)),
    ],
    ids=str,
)
def test_usage(arguments, texts, refused):
    refused(list(arguments), *texts)


# ------------------------------------------------------------------------------------------ files


def edit_header(file, change):
    """Rewrite a header as JSON, with the data behind it as they are."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def lie_about_the_length(file):
    file.write_bytes(struct.pack("<Q", 10**9) + file.read_bytes()[8:])


def shrink_a_shape(file):
    edit_header(file, lambda header: header[models.EMBEDDING].update(shape=[1, 1]))


SPOILT = {
    "text": (lambda f: f.write_text("hello, I am a model"), ("not a safetensors file",)),
    "empty": (lambda f: f.write_bytes(b""), ("not a safetensors file",)),
    "pointer": (lambda f: f.write_text("version https://git-lfs.github.com"), ("git lfs pull",)),
    "pickle": (lambda f: f.write_bytes(b"\x80\x04" + b"x" * 90), ("pickle", "save_pretrained")),
    "zip": (lambda f: f.write_bytes(b"PK\x03\x04" + b"x" * 90), ("pickle", "save_pretrained")),
    "cut": (cut, ("cut short",)),
    "long header": (lie_about_the_length, ("header claims 1000000000 bytes",)),
    "no JSON": (lambda f: f.write_bytes(struct.pack("<Q", 9) + b"{" * 90), ("not JSON",)),
    "shape": (shrink_a_shape, (models.EMBEDDING,)),
}


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_file(name, side, base, tuned, decompose, refused):
    spoil, texts = SPOILT[name]
    file = models.file_of({"base": base, "tuned": tuned}[side], models.EMBEDDING)
    spoil(file)
    refused(decompose(*RANK), file, *texts)
    refused(["inspect", file.parent], file, *texts)
    refused(["inspect", file], file, *texts)


def test_broken_config_and_index(base, tuned, decompose, refused):
    index = tuned / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for bad, text in (
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "weight_map"),
        (json.dumps({"weight_map": {"a": "../x.safetensors"}}), "outside its folder"),
    ):
        index.write_text(bad)
        refused(decompose(*RANK), index, text)
    index.write_text(json.dumps(content))
    (base / "config.json").write_text("{,}")
    refused(decompose(*RANK), base / "config.json", "not valid JSON")


def test_missing_shard(tuned, decompose, refused):
    (tuned / "model-00002-of-00002.safetensors").unlink()
    refused(decompose(*RANK), tuned, "model-00002-of-00002.safetensors", "not there")


def test_index_names_an_absent_tensor(tuned, decompose, refused):
    models.spoil(tuned, models.NORM0, lambda array: None)
    refused(decompose(*RANK), tuned, models.NORM0, "it is not")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_never_read(name, tmp_path, tuned, decompose, refused):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / name).write_bytes(b"\x80\x04 not to be opened")
    advice = ("pickle", "can run code", "safe_serialization=True")
    for place in (folder, folder / name):
        refused(decompose(*RANK, before=place), place, *advice)
        refused(["inspect", place], place, *advice)
    refused(decompose(*RANK, after=folder), name, *advice)


def test_nothing_there(tmp_path, decompose, refused):
    refused(decompose(*RANK, before=tmp_path / "none"), tmp_path / "none", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(decompose(*RANK, after=tmp_path / "empty"), tmp_path / "empty", "no .safetensors")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(decompose(*RANK, after=tmp_path / "loop"), tmp_path / "loop")


# ----------------------------------------------------------------------- models that do not belong


def test_different_names(tmp_path, decompose, refused):
    arrays = models.base_arrays()
    other = {name.replace("model.layers", "bert.block"): a for name, a in arrays.items()}
    for name in [n for n in other if not n.startswith("bert.block")]:
        other[f"bert.{name.removeprefix('model.')}ed"] = other.pop(name)
    after = models.write_tuned(tmp_path / "other", other, model_type="bert")
    refused(decompose(*RANK, after=after), "(llama)", "(bert)", "different architectures", after)


@pytest.mark.parametrize(("layers", "side"), [(1, "base"), (3, "tuned model")])
def test_different_layer_count(layers, side, tmp_path, decompose, refused):
    arrays = models.tuned_arrays(models.base_arrays(layers))
    after = models.write_tuned(tmp_path / "other", arrays, num_hidden_layers=layers)
    texts = (after, f"num_hidden_layers 2 and {layers}", "different architectures")
    refused(decompose(*RANK, after=after), *texts, f"only in the {side}")


def test_different_widths(tmp_path, decompose, refused):
    arrays = {n: np.repeat(a, 2, axis=-1) for n, a in models.base_arrays().items()}
    after = models.write_tuned(tmp_path / "wide", arrays, hidden_size=24)
    refused(decompose(*RANK, after=after), after, "no shape does", "different architectures")
    arrays = {n: np.repeat(a, 1 + ("mlp" in n), axis=0) for n, a in models.base_arrays().items()}
    after = models.write_tuned(tmp_path / "part", arrays)
    refused(decompose(*RANK, after=after), after, "mlp.", "different architectures", "--exclude")


def test_no_site_of_one_is_in_the_other(tmp_path, base, decompose, refused):
    rest = {n: a for n, a in models.base_arrays().items() if not models.is_covered(n)}
    after = models.write_tuned(tmp_path / "rest", rest)
    refused(decompose(*RANK, after=after), base, after, "none of the sites")
    refused(["inspect", after], after, "no site matches")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_not_finite(method, side, value, base, tuned, decompose, refused, done):
    """And the flag that the message names leaves it out."""
    folder = {"base": base, "tuned": tuned}[side]
    file = models.spoil(folder, models.Q0, models.put(value))
    command = decompose(*RANK, "--method", method)
    told = refused(command, models.Q0, file, "NaN or infinite", "--exclude")
    flag = shlex.split(told.split("leave it out with ")[1].split(",")[0])
    assert "Unknown: what changed in 1 tensor" in done(*command, *flag).out


def test_infinite_in_both(base, tuned, decompose, refused):
    models.spoil(tuned, models.Q0, models.put(np.inf))
    file = models.spoil(base, models.Q0, models.put(np.inf))
    refused(decompose(*RANK), models.Q0, file, "NaN or infinite")


def test_delta_beyond_float32(base, tuned, decompose, refused):
    models.spoil(tuned, models.Q0, models.put(3e38))
    models.spoil(base, models.Q0, models.put(-3e38))
    refused(decompose(*RANK), models.Q0, "too large")


def test_factors_beyond_their_dtype(base, tuned, tmp_path, decompose, done, refused):
    models.spoil(tuned, models.Q0, models.put(1e6))
    refused(decompose(*RANK, "--dtype", "float16"), "9.99", "float16 cannot hold")
    done("decompose", base, tuned, "-o", tmp_path / "out", *RANK, "-q")
    models.spoil(tmp_path / "out", "0.vh", models.put(1e9))
    export = ["export", tmp_path / "out", "--lora", tmp_path / "lora", "--dtype", "float16"]
    refused(export, "float16 cannot hold")
    refused(
        ["apply", tmp_path / "out", base, "-o", tmp_path / "model", "--dtype", "float16"], "float16"
    )


@pytest.mark.parametrize("largest", [3e38, -3e38])
def test_factors_whose_product_overflows(largest, out, base, tmp_path, refused):
    models.spoil(out, "0.u", models.put(largest))
    models.spoil(out, "0.s", models.put(1e3))
    for more in ((), ("--lora-rank", "1"), ("--rank-pattern",)):
        refused(["export", out, "--lora", tmp_path / "lora", *more], "beyond the largest float32")
    refused(["apply", out, base, "-o", tmp_path / "model"], "NaN or infinite")


# ----------------------------------------------------------------------------------------- output


@pytest.fixture
def commands(base, tuned, out):
    """Every command that writes, without its output."""
    return {
        "decompose": (["decompose", base, tuned, *RANK], "-o"),
        "apply": (["apply", out, base], "-o"),
        "export": (["export", out], "--lora"),
    }


@pytest.fixture(params=["decompose", "apply", "export"])
def write(request, commands):
    """Arguments of a command that writes to the given place."""
    arguments, option = commands[request.param]
    return lambda place, *more: [*arguments, option, place, *more]


def test_output_exists(write, tmp_path, refused):
    old = tmp_path / "old"
    old.mkdir()
    refused(write(old), old, "already exists")
    (old / "report.json").write_text("mine")
    refused(write(old), old, "already exists")


def test_overwriting_what_is_not_ours(write, tmp_path, refused):
    old = tmp_path / "photos"
    old.mkdir()
    (old / "cat.jpg").write_text("miaow")
    refused(write(old, "--overwrite"), old, "not an output of tdecomp")


def test_output_is_a_file(write, tmp_path, refused):
    file = tmp_path / "file"
    file.write_text("here")
    refused(write(file), file)
    refused(write(file, "--overwrite"), file, "not a folder")
    refused(write(file / "out"), file / "out", f"{file} is not a folder")
    refused(write(file / "deep" / "out"), f"{file} is not a folder")


def test_output_cannot_be_named(write, tmp_path, refused):
    refused(write(tmp_path / ("x" * 300)), "x" * 300)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(write(tmp_path / "loop"), tmp_path / "loop")


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_output_and_input(overwrite, commands, base, tuned, out, tmp_path, refused):
    for command, place in (
        ("decompose", base),
        ("decompose", tuned),
        ("decompose", base / "out"),
        ("decompose", tuned / "deep" / "out"),
        ("decompose", tmp_path),
        ("apply", base),
        ("apply", base / "model"),
        ("apply", tmp_path),
        ("apply", out),
        ("apply", out / "model"),
        ("export", out),
        ("export", out / "lora"),
        ("export", tmp_path),
    ):
        arguments, option = commands[command]
        refused([*arguments, option, place, *overwrite], place, "the input")


def test_links_do_not_hide_the_input(base, tuned, tmp_path, refused):
    (tmp_path / "link").symlink_to(base)
    place = tmp_path / "link" / "out"
    refused(["decompose", base, tuned, *RANK, "-o", place], "inside the input")
    before = tmp_path / "link"
    refused(["decompose", before, tuned, *RANK, "-o", base, "--overwrite"], "the input")


def test_the_current_folder_is_not_replaced(write, out, monkeypatch, refused):
    monkeypatch.chdir(out)
    refused(write(".", "--overwrite"), out)


@pytest.mark.parametrize(
    ("job", "broken", "command"),
    [
        (decomposing, "save_factors", "decompose"),
        (applying, "write_model", "apply"),
        (exporting, "write_lora", "export"),
    ],
)
def test_a_failure_after_work_keeps_the_old_output(
    job, broken, command, commands, out, monkeypatch, refused
):
    old = shutil.copytree(out, out.with_name("old"))

    def fail(first, *rest, **named):
        folder = [v for v in (first, *rest, *named.values()) if hasattr(v, "parent")][0]
        place = folder if folder.is_dir() else folder.parent
        assert place.parent.parent == out.parent
        (place / "half").write_text("half")
        raise OSError(28, "No space left on device", str(place / "half"))

    monkeypatch.setattr(job, broken, fail)
    arguments, option = commands[command]
    refused([*arguments, option, old, "--overwrite"], old, "No space left on device")
    refused([*arguments, option, out.with_name("new")], "new", "No space left on device")


# ------------------------------------------------------------------- factors and models apart


def test_wrong_order_of_arguments(out, base, tuned, tmp_path, refused):
    hint = ("factors.safetensors", "tdecomp decompose wrote")
    refused(["verify", base, tuned, out], base, *hint)
    refused(["verify", base, out, tuned], base, *hint)
    refused(["verify", out, base, out], "no tensor in common")
    refused(["apply", base, out, "-o", tmp_path / "model"], base, *hint)
    refused(["apply", base / "model.safetensors", out, "-o", tmp_path / "m"], "not a tdecomp")
    refused(["export", base, "--lora", tmp_path / "lora"], base, *hint)
    refused(["info", base], base, *hint)


def test_base_lacks_a_tensor(out, base, tuned, tmp_path, refused):
    models.spoil(base, models.Q0, lambda array: None)
    for command in (["verify", out, base, tuned], ["apply", out, base, "-o", tmp_path / "model"]):
        refused(command, base, models.Q0, "no tensor")


def test_base_has_another_shape(out, base, tuned, tmp_path, refused):
    models.spoil(base, models.Q0, lambda array: array[:-1])
    for command in (["verify", out, base, tuned], ["apply", out, base, "-o", tmp_path / "model"]):
        refused(command, base, models.Q0, "(15, 12)", "(16, 12)")


def test_tuned_lacks_a_tensor(out, base, tuned, refused):
    models.spoil(tuned, models.Q0, lambda array: None)
    (tuned / "model.safetensors.index.json").unlink()  # the shards alone, without the promise
    refused(["verify", out, base, tuned], models.Q0, tuned)


@pytest.mark.parametrize("tensor", [models.Q0, models.NORM0])
def test_not_finite_in_verify_and_apply(tensor, out, base, tuned, tmp_path, refused, done):
    file = models.spoil(base, tensor, models.put(np.nan))
    apply = ["apply", out, base, "-o", tmp_path / "model"]
    if tensor == models.NORM0:  # not read by verify, and copied as it is by apply
        done(*apply)
        return
    refused(["verify", out, base, tuned], tensor, file, "NaN or infinite")
    refused(apply, tensor, "NaN or infinite")


@pytest.mark.parametrize(
    "arguments", [("--lora-rank", "0"), ("--lora-rank", "x"), ("--dtype", "int4")]
)
def test_export_options(arguments, out, tmp_path, refused):
    refused(["export", out, "--lora", tmp_path / "lora", *arguments], arguments[0])
