"""Targets choose the modules that PEFT chooses."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tdecomp._xp import tol
from tdecomp.errors import SiteError
from tdecomp_torch import attach
from tests.architectures import build
from tests.models import CASES

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")  # PEFT's

NAMES = (
    *("llama", "qwen3", "bert", "roberta", "vit", "gpt2", "t5 gated", "whisper", "phi3"),
    *("distilbert", "opt", "qwen2_moe", "unknown"),
)


class Unknown(nn.Module):
    """A model of no family: numbered blocks, and matrices outside of them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.trunk = nn.Module()
        self.trunk.blocks = nn.ModuleList(
            nn.ModuleDict({"att": Conv1D(8, 8), "mix": nn.Sequential(nn.Linear(8, 8))})
            for _ in range(3)
        )
        self.last = Conv1D(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.trunk.blocks:
            x = x + block["mix"](block["att"](x).tanh())
        return self.last(x)


@cache
def base(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Unknown() if name == "unknown" else CASES[name].make()


PEFT_NAMES = {
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
}


def by_peft(name: str, task: str | None = None, **asked: Any) -> list[str]:
    """Paths of the modules that PEFT puts a LoRA on."""
    config = LoraConfig(r=1, task_type=task, **{PEFT_NAMES[k]: v for k, v in asked.items()})
    model = inject_adapter_in_model(config, copy.deepcopy(base(name)))
    return sorted(path for path, m in model.named_modules() if isinstance(m, LoraLayer))


def by_attach(name: str, **asked: Any) -> list[str]:
    adapter = attach(copy.deepcopy(base(name)), "lora", rank=1, **asked)
    return sorted(target.path for target in adapter.targets)


ASKED: list[tuple[str, dict[str, Any]]] = [
    # names and dotted suffixes
    ("llama", {"targets": ["q_proj", "v_proj"]}),
    ("llama", {"targets": {"q_proj"}}),
    ("llama", {"targets": ["self_attn.q_proj", "model.layers.1.mlp.up_proj"]}),
    ("llama", {"targets": ["layers.0.self_attn.q_proj"]}),
    ("llama", {"targets": ["proj", "_proj", "elf_attn.k_proj", "q_proj"]}),
    ("llama", {"targets": [r".*q_proj", "v_proj"]}),
    ("llama", {"targets": ["lm_head", "q_proj"]}),
    ("llama", {"targets": ["embed_tokens", "q_proj"]}),
    ("gpt2", {"targets": ["c_proj"]}),
    ("gpt2", {"targets": ["wte", "c_attn"]}),
    ("t5 gated", {"targets": ["q", "v"]}),
    ("whisper", {"targets": ["encoder_attn.k_proj", "proj_out"]}),
    ("bert", {"targets": ["dense"]}),
    ("bert", {"targets": ["output.dense"]}),
    ("bert", {"targets": ["query", "classifier", "pooler.dense"]}),
    ("roberta", {"targets": ["lm_head.dense", "query"]}),
    ("vit", {"targets": ["projection", "fc1"]}),
    ("qwen2_moe", {"targets": ["gate_proj", "shared_expert_gate"]}),
    ("unknown", {"targets": ["att"]}),
    ("unknown", {"targets": ["mix.0", "embed"]}),
    ("unknown", {"targets": ["embed"]}),
    # names of layers
    ("llama", {"targets": ["q_proj", "v_proj"], "layers": [1]}),
    ("llama", {"targets": ["q_proj", "v_proj"], "layers": 1}),
    ("llama", {"targets": ["q_proj", "v_proj"], "layers": [1, 7]}),
    ("llama", {"targets": ["embed_tokens", "q_proj"], "layers": [0]}),
    ("gpt2", {"targets": ["attn.c_proj", "c_attn"], "layers": [1]}),
    ("t5 gated", {"targets": ["q", "v"], "layers": [1]}),
    ("t5 gated", {"targets": ["SelfAttention.q"], "layers": [0]}),
    ("whisper", {"targets": ["q_proj", "fc1"], "layers": [1]}),
    ("bert", {"targets": ["query", "value"], "layers": [0]}),
    ("vit", {"targets": ["q_proj", "projection"], "layers": [0, 2]}),
    ("phi3", {"targets": ["qkv_proj"], "layers": [0]}),
    ("distilbert", {"targets": ["lin1", "q_lin"], "layers": [1]}),
    ("unknown", {"targets": ["att", "mix.0"], "layers": [0, 2]}),
    # all but
    ("llama", {"targets": "all-linear", "exclude": ["o_proj", "layers.1"]}),
    ("llama", {"targets": "all-linear", "exclude": r".*layers\.0.*"}),
    ("llama", {"targets": ["q_proj", "v_proj"], "exclude": ["model.layers.0.self_attn.v_proj"]}),
    ("llama", {"targets": ["q_proj", "v_proj"], "exclude": r".*v_proj"}),
    ("gpt2", {"targets": ["c_attn", "wte"], "exclude": r".*\.(0\..*|wte)"}),
    ("t5 gated", {"targets": ["q"], "exclude": r"encoder.*", "layers": [1]}),
    ("opt", {"targets": ["fc1", "fc2"], "exclude": ["1.fc2"]}),
    ("unknown", {"targets": "all-linear", "exclude": ["embed", "0.att"]}),
]
REGEXES = (
    r".*\.(q|v|k|query|c_attn|q_proj|qkv_proj|att|q_lin)",
    r".*\.[01]\..*(down_proj|dense|wo|lin1|c_fc|att|fc2)$",
    r"(.*(q|query|q_proj|c_attn|qkv_proj|q_lin|att))|last",
)


def label(asked: tuple[str, dict[str, Any]]) -> str:
    return " ".join([asked[0], *(f"{k}={v}" for k, v in asked[1].items() if k != "targets")])


@pytest.mark.parametrize(
    ("name", "asked"), ASKED, ids=[f"{i} {label(a)}" for i, a in enumerate(ASKED)]
)
def test_names_layers_and_exclusions_choose_what_peft_chooses(name: str, asked: dict[str, Any]):
    assert by_attach(name, **asked) == by_peft(name, **asked)


@pytest.mark.parametrize("regex", REGEXES)
@pytest.mark.parametrize("name", NAMES)
def test_a_regex_matches_whole_paths_as_in_peft(name: str, regex: str):
    if name == "qwen2_moe" and "down_proj" in regex:
        regex = regex.replace("down_proj", "shared_expert.down_proj")
    assert by_attach(name, targets=regex) == by_peft(name, targets=regex)


WITHIN_HEAD = {"roberta": ["lm_head.dense"]}
"""What PEFT adapts although it is a part of the output head, of which it knows the last matrix."""


@pytest.mark.parametrize("written", ["all-linear", "ALL-Linear"])
@pytest.mark.parametrize("name", NAMES)
def test_all_linear_is_that_of_peft_without_the_output_head(name: str, written: str):
    task = "SEQ_CLS" if name in ("bert", "vit") else None
    expected = by_peft(name, task, targets=written)
    assert by_attach(name, targets=written) == sorted({*expected} - {*WITHIN_HEAD.get(name, ())})


def test_layers_apply_to_full_names_and_to_a_regex():
    """Unlike in PEFT, which refuses the one and ignores the other."""
    full = "model.layers.0.self_attn.v_proj"
    one = ["model.layers.1.self_attn.q_proj"]
    assert by_attach("llama", targets=["q_proj", full], layers=[1]) == one
    assert by_attach("llama", targets=r".*(q_proj|0.*v_proj)", layers=[1]) == one


def test_a_name_given_as_a_regex_is_told_apart():
    with pytest.raises(SiteError, match=r"a string is a regex for whole paths: give \['q_proj'\]"):
        by_attach("llama", targets="q_proj")


def test_patterns_name_modes_and_select_nothing_else():
    adapter = attach(
        copy.deepcopy(base("unknown")),
        "lotr",
        rank=1,
        targets=["att"],
        patterns=["trunk.blocks.{layer}.{proj:att|mix}", "trunk.blocks.{layer}.{proj:mix}.0"],
    )
    assert [target.path for target in adapter.targets] == [
        f"trunk.blocks.{k}.att" for k in range(3)
    ]
    assert [g.grid.modes for g in adapter.groups] == [(("layer", (0, 1, 2)), ("proj", ("att",)))]


@pytest.mark.parametrize("targets", [["att", "last"], "all-linear", None], ids=str)
@torch.no_grad()
def test_a_weight_stored_the_other_way_round_is_adapted_as_it_is_used(targets: Any):
    model = copy.deepcopy(base("unknown")).double()
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    adapter = attach(model, "lora", rank=2, targets=targets)
    for factor in adapter.factors().values():
        factor += 0.1
    expected = model(x)
    adapter.merge()
    assert torch.allclose(model(x), expected, rtol=0, atol=tol("float64", 64) * 64)
    turned = {m.module for m in adapter.to_lora() if m.transpose}
    assert turned == {t.path for t in adapter.targets if t.path.endswith(("att", "last"))}


TOLD = {
    "DebertaV2Model": (12, ()),
    "DeepseekV3ForCausalLM": (
        16,
        ("model.layers.*.mlp.experts.gate_up_proj (in a ", "model.layers.*.mlp.gate (in a "),
    ),
    "Llama4ForCausalLM": (
        14,
        (
            "model.layers.*.feed_forward.experts.down_proj (in a Llama4TextExperts)",
            "model.layers.*.feed_forward.router (in a Llama4Router)",
        ),
    ),
    "Wav2Vec2Model": (12, ("feature_extractor.conv_layers.*.conv (in a Conv1d)",)),
    "SamModel": (49, ("vision_encoder.layers.*.attn.rel_pos_h (in a ",)),
}
"""Class -> modules adapted by default, and what is told to be left out."""


@pytest.mark.parametrize("name", TOLD)
def test_default_targets_are_all_and_the_rest_is_told(name: str):
    model = build(name, "cpu")
    adapter = attach(model, "lora", rank=1)
    told = [note for note in adapter.notes if note.startswith("Left out: ")]
    adapted = {f"{target.path}.weight" for target in adapter.targets}
    assert (len(adapted), bool(told)) == (TOLD[name][0], bool(TOLD[name][1]))
    assert all(words in told[0] for words in TOLD[name][1])


def test_what_is_left_out_is_told_by_its_share_unless_it_was_asked_for():
    adapter = attach(copy.deepcopy(base("qwen2_moe")), "lora", rank=1)
    numbers = {
        name: p.numel()
        for name, p in adapter.model.named_parameters()
        if p.dim() > 1 and ".layers." in name
    }
    left = {
        n for n in numbers if n.removesuffix(".weight") not in {t.path for t in adapter.targets}
    }
    share = sum(numbers[n] for n in left) / sum(numbers.values())
    (note,) = adapter.notes
    assert note.startswith(f"Left out: {len(left)} of {len(numbers)} weights in numbered layers, ")
    assert f", {share:.2%} of their numbers: " in note
    for asked in ({"layers": [0]}, {"exclude": ["q_proj", "mlp"]}):
        assert not attach(copy.deepcopy(base("llama")), "lora", rank=1, **asked).notes


@pytest.mark.parametrize("row", ["lorta", "tenslora_att_qkv_depth"])
@pytest.mark.parametrize(("name", "known"), [("llama", 8), ("bert", 8), ("t5 gated", 24)])
def test_rows_that_split_heads_take_the_modules_that_have_some(name: str, known: int, row: str):
    adapter = attach(copy.deepcopy(base(name)), row, rank=1)
    assert len(adapter.targets) == known
    assert {s.role for g in adapter.grids for s in g.sites} == {"attn_in", "attn_out"}
    assert any("mlp" in note or "intermediate" in note or "Dense" in note for note in adapter.notes)
    assert all("(without heads)" in n for n in adapter.notes if n.startswith("Left out: "))
