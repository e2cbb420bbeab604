"""``tdecomp heal`` and ``tdecomp capture``, found by their entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import typer.main
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from tdecomp.cli import commands, extensions
from tdecomp.files import load_statistics
from tdecomp_torch import attach, captured
from tdecomp_torch.jobs import capturing
from tests.entries import ENTRIES
from tests.imports import ROOT

WORDS = [f"word{k}" for k in range(40)]


def with_entries(monkeypatch, entries: list[EntryPoint]) -> typer.Typer:
    """The app with the commands of these entry points in the place of others."""
    own = [
        c for c in commands.app.registered_commands if c.callback.__module__ == commands.__name__
    ]
    app = typer.Typer(**{n: getattr(commands.app.info, n) for n in ("no_args_is_help", "help")})
    app.registered_commands, app.registered_callback = list(own), commands.app.registered_callback
    app.info.context_settings = commands.app.info.context_settings
    monkeypatch.setattr(extensions, "entry_points", lambda group: entries)
    extensions.add_commands(app)
    monkeypatch.setattr(commands, "app", app)
    return app


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Two tiny BERT classifiers with a tokenizer, and texts."""
    folder = tmp_path_factory.mktemp("berts")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))
    tokens = BertTokenizer(vocab=str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=44, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=4, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        for name in ("base", "tuned"):
            model.save_pretrained(folder / name)
            tokens.save_pretrained(folder / name)
            for path, p in model.named_parameters():
                if "layer" in path and p.dim() == 2:
                    p.data += 0.4 * torch.randn_like(p)
        lines = [" ".join(WORDS[(k * j) % 40] for j in range(2, 9)) for k in range(1, 60)]
    (folder / "texts.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder / "base", folder / "tuned", folder / "texts.txt"


def test_factors_are_healed_into_a_folder_like_the_first(pair, tmp_path, done, report):
    base, tuned, texts = pair
    out, healed = tmp_path / "out", tmp_path / "healed"
    done("decompose", base, tuned, "-o", out, "--budget", 600, "-q")
    how = ("--text", texts, "--batch", 8, "--steps", 20, "--rate", "1e-2", "--seed", 1)
    told = report("heal", out, base, tuned, *how, "-o", healed)
    assert told["healing"]["after"] < told["healing"]["before"]
    assert told["error"] == pytest.approx(report("info", healed)["error"])
    done("verify", healed, base, tuned)
    done("apply", healed, base, "-o", tmp_path / "model")
    done("export", healed, "--lora", tmp_path / "lora")
    written = json.loads((healed / "report.json").read_text(encoding="utf-8"))
    assert written["healing"] == told["healing"]
    assert written["n_params"] == report("info", out)["n_params"]
    lines = done("heal", out, base, tuned, *how, "-o", healed, "--overwrite").out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == [
        "Distance from the tuned model's outputs",
        "Relative error of the delta",
    ]
    assert lines[-1] == f"Written to {healed}."
    again = report("heal", out, base, tuned, *how, "-o", healed, "--overwrite")
    assert again == told


def test_a_base_without_the_head_gives_hidden_states(pair, tmp_path, done, call):
    base, tuned, texts = pair
    out, bare = tmp_path / "out", tmp_path / "bare"
    BertModel.from_pretrained(base).save_pretrained(bare)
    done("decompose", bare, tuned, "-o", out, "--rank", 1, "-q", "--overwrite")
    how = ("--text", texts, "--batch", 8, "--steps", 3)
    result = call("heal", out, bare, tuned, *how, "-o", tmp_path / "healed")
    assert result.code == 0
    assert "hidden states are compared, not logits" in result.err
    assert "same best class" not in result.out


REFUSED = [
    ({"--text": "none.txt"}, "No such file"),
    ({"--text": "empty.txt"}, "empty.txt has no text: give a file with one text a line"),
    ({"--text": "one.txt"}, "one.txt has one text"),
    ({"--text": "bytes.txt"}, "is not text in UTF-8"),
    ({"--rate": "0"}, "--rate 0.0 must be a positive number"),
    ({"--device": "nowhere"}, "--device nowhere cannot be used"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=str)
def test_what_is_wrong_is_told_in_a_line_and_nothing_is_written(
    pair, tmp_path, done, refused, options, text
):
    base, tuned, texts = pair
    done("decompose", base, tuned, "-o", tmp_path / "out", "--rank", 1, "-q")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "one.txt").write_text("word1 word2\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    given = {"--text": texts, "-o": tmp_path / "healed", **options}
    given["--text"] = tmp_path / given["--text"]  # a whole path stays
    words = [word for named in given.items() for word in named]
    refused(["heal", tmp_path / "out", base, tuned, *words], text)


def test_factors_of_another_pair_and_models_that_are_none(pair, tmp_path, done, refused, base):
    ours, tuned, texts = pair
    done("decompose", ours, tuned, "-o", tmp_path / "out", "--rank", 1, "-q")
    end = ("--text", texts, "-o", tmp_path / "healed")
    refused(["heal", tmp_path / "out", base, base, *end], "which the factors change")
    file = ours / "model.safetensors"
    refused(["heal", tmp_path / "out", file, tuned, *end], "holds no config.json")


def test_what_a_model_sees_is_captured_into_a_file(pair, tmp_path, call, report):
    base, _, texts = pair
    stats = tmp_path / "stats.safetensors"
    how = ("--text", texts, "--batch", 4, "--tokens", 60, "--targets", "query,value")
    told = report("capture", base, *how, "-o", stats, "--gradients", 2, "--checkpoint")
    assert (told["weights"], told["inputs"], told["labels"]) == (4, 2, "model")
    assert 60 <= told["tokens"] < 60 + 4 * 9
    found = load_statistics(stats)
    name = "bert.encoder.layer.1.attention.self.query"
    assert found.inputs_of(name).tokens == told["tokens"]
    assert found.gradient_of(name).shape == (16, 16)
    held = sum(
        array.nbytes
        for own in found.inputs.values()
        for array in (own.total, own.squares, own.whole)
    )
    assert held <= told["memory"]["statistics"]
    model = BertForSequenceClassification.from_pretrained(base)
    attach(model, "lora", targets=["query", "value"], rank=2, start=captured(found, "eva"))
    result = call("capture", base, *how, "-o", stats, "--overwrite", "--inputs", 3)
    assert result.err.startswith("4 weights: ")
    assert "of statistics at most, beside a model of" in result.err
    assert load_statistics(stats).inputs_of(name).rank == 3
    assert not load_statistics(stats).losses


def test_a_causal_model_learns_the_next_token(tmp_path, pair, report):
    base, _, texts = pair
    config = LlamaConfig(
        vocab_size=44, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    BertTokenizer.from_pretrained(base).save_pretrained(tmp_path / "llama")
    how = ("--text", texts, "--tokens", 60, "--gradients", 2, "-o", tmp_path / "stats")
    told = report("capture", tmp_path / "llama", *how)
    assert told["labels"] == "text"
    losses = load_statistics(tmp_path / "stats").losses
    assert losses[0] == pytest.approx(np.log(44), rel=0.05)


def test_too_little_memory_is_told_before_anything_is_run(pair, tmp_path, monkeypatch, refused):
    base, _, texts = pair
    words = ["capture", base, "--text", texts, "-o", tmp_path / "stats", "--tokens", 60]
    monkeypatch.setattr(capturing, "half_of_the_free_memory", lambda: 9_000)
    told = refused(
        words, "the statistics may take 1.5e-05 GB, and half of the free memory is 9e-06"
    )
    assert "tip: keep few directions of inputs (--inputs 64)" in told


def test_captures_that_are_refused(pair, tmp_path, refused):
    base, _, texts = pair
    stats = tmp_path / "stats"
    stats.write_text("mine")
    refused(["capture", base, "--text", texts, "-o", stats], "already exists")
    refused(["capture", base, "--text", texts, "-o", stats, "--overwrite"], str(stats))
    new = ("-o", tmp_path / "new", "--text", texts)
    refused(["capture", base, *new, "--tokens", "many"], "--tokens many: write 50000, 200k")
    refused(["capture", base, *new, "--targets", "q_prj"], "--targets q_prj")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((base / "config.json").read_bytes())
    refused(["capture", tmp_path / "bare", *new], "no tokenizer that transformers loads")
    assert not (tmp_path / "new").exists()


def test_the_list_of_commands_is_made_without_torch():
    names = ", ".join(f"({e.name!r}, {e.value!r})" for e in ENTRIES)
    program = (
        "import sys; from tdecomp.cli import extensions; from importlib.metadata import EntryPoint;"
        f"e = [EntryPoint(n, v, 'tdecomp.commands') for n, v in [{names}]];"
        "extensions.entry_points = lambda group: e;"
        "import contextlib, io; from tdecomp import cli; text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):\n"
        "    cli.main(['--help'])\n"
        "found = {name for name in ('capture', 'heal') if name in text.getvalue()}\n"
        "print(*sorted(found), {'torch', 'transformers'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "capture heal set()"


def test_missing_libraries_are_named(monkeypatch, refused, tmp_path):
    from tdecomp_torch.commands import needed

    real = needed.find_spec
    monkeypatch.setattr(
        needed, "find_spec", lambda name: None if name == "transformers" else real(name)
    )
    words = ["heal", "out", "base", "tuned", "--text", "x", "-o", tmp_path / "healed"]
    told = refused(words, "'tdecomp heal' runs models and needs transformers")
    assert "tip: pip install 'tdecomp-toolkit[peft]'" in told


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("tdecomp.nowhere:x", "ModuleNotFoundError"),
        ("tdecomp.errors:ArgumentError", "is no tdecomp.cli"),
    ],
)
def test_a_broken_command_of_another_package_breaks_nothing_else(
    monkeypatch, refused, done, value, reason
):
    with_entries(monkeypatch, [EntryPoint("odd", value, "x"), EntryPoint("info", value, "x")])
    assert "Show what a factors file holds" in done("info", "-h").out
    assert "odd" in done("-h").out
    assert reason in " ".join(done("odd", "-h").out.split())
