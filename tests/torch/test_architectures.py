"""The life of an adapter on tiny random models of many architectures."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from torch import Tensor, nn

from tdecomp._xp import tol
from tdecomp.errors import SiteError
from tdecomp_torch import Adapter, attach, load_adapter
from tests.models import CASES, GQA, WHISPER

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")
BERT = ("query", "key", "value", "attention.output.dense")
OPT = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Model:
    """How to make a model, what it reads, and the names of its attention."""

    make: Callable[[], nn.Module]
    inputs: str
    attention: tuple[str, ...]
    generates: bool = False


def of(name: str, inputs: str, attention: tuple[str, ...], *, generates: bool = False) -> Model:
    return Model(CASES[name].make, inputs, attention, generates)


GEMMA = lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**GQA, head_dim=4))
MISTRAL = lambda: tf.MistralForCausalLM(tf.MistralConfig(**GQA, head_dim=4))

MODELS = {
    "llama": of("llama", "text", LLAMA, generates=True),
    "mistral": Model(MISTRAL, "text", LLAMA, generates=True),
    "qwen3": of("qwen3", "text", LLAMA, generates=True),
    "gemma": Model(GEMMA, "text", LLAMA, generates=True),
    "bert": of("bert", "text", BERT),
    "roberta": of("roberta", "text", BERT),
    "vit": of("vit", "image", LLAMA),
    "gpt2": of("gpt2", "text", ("c_attn", "attn.c_proj"), generates=True),
    "t5": of("t5 gated", "pairs", ("q", "k", "v", "o"), generates=True),
    "whisper": of("whisper", "sound", OPT, generates=True),
    "phi3": of("phi3", "text", ("qkv_proj", "o_proj"), generates=True),
    "distilbert": of("distilbert", "text", ("q_lin", "k_lin", "v_lin", "out_lin")),
    "opt": of("opt", "text", OPT, generates=True),
}
HEADS = ("tenslora_att_qkv_depth", "lorta")
METHODS = (
    *("lora", "lotr", "tenslora_qkv_depth", "vera", "fact_tk", "tt_lora", "lora_xs", "dora"),
    *HEADS,
)
SOME = ("lotr", "vera", "dora", "lorta")


def attached(methods: Sequence[str], *, slow: bool = False) -> list[Any]:
    """Model, method and targets: all that are known where the method allows it, or attention."""
    pairs = itertools.product(MODELS, methods)
    marks = [pytest.mark.slow] if slow else []
    return [
        pytest.param(
            (m, k, w := "attention" if slow or k in HEADS else "default"),
            id=f"{m}-{k}-{w}",
            marks=marks,
        )
        for m, k in pairs
    ]


REST = [m for m in METHODS if m not in HEADS]
ALL = [*attached(METHODS), *attached(REST, slow=True)]
FEW = [
    *attached(SOME),
    *attached([m for m in METHODS if m not in SOME], slow=True),
]


@cache
def base(name: str) -> nn.Module:
    """A model in float64, with weights far from zero; copied before it is used."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name].make().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


def fresh(name: str) -> Any:
    return copy.deepcopy(base(name))


def batch_of(name: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    words = lambda: torch.randint(3, 32, (2, 5), generator=rng)
    dtype = torch.float64
    return {
        "text": lambda: {"input_ids": words(), "attention_mask": torch.ones(2, 5, dtype=torch.int)},
        "pairs": lambda: {"input_ids": words(), "decoder_input_ids": words()},
        "image": lambda: {"pixel_values": torch.randn(2, 3, 8, 8, generator=rng, dtype=dtype)},
        "sound": lambda: {
            "input_features": torch.randn(2, 4, 16, generator=rng, dtype=dtype),
            "decoder_input_ids": words(),
        },
    }[MODELS[name].inputs]()


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    found = model(**batch)
    return found[0]


def move(adapter: Adapter) -> None:
    """Give every factor a part that no start has."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in adapter.factors().values():
            factor += 0.1 * torch.randn(factor.shape, generator=rng, dtype=factor.dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs differ by what rounding in a few layers may do."""
    scale = expected.abs().max() + 1
    bound = tol(found.dtype, 64) * 64
    return bool((found - expected).abs().max() <= bound * scale)


@dataclass(frozen=True)
class Adapted:
    name: str
    method: str
    adapter: Adapter
    batch: dict[str, Tensor]

    @property
    def model(self) -> Any:
        return self.adapter.model


@pytest.fixture
def adapted(request: pytest.FixtureRequest) -> Adapted:
    name, method, which = request.param
    targets = MODELS[name].attention if which == "attention" else None
    adapter = attach(fresh(name), method, targets=targets, rank=2)
    move(adapter)
    return Adapted(name, method, adapter, batch_of(name))


@pytest.mark.parametrize("adapted", ALL, indirect=True)
def test_every_trainable_factor_has_a_gradient(adapted: Adapted):
    output(adapted.model, adapted.batch).square().mean().backward()
    without = [k for k, p in adapted.adapter.factors().items() if p.grad is None]
    assert not without
    zero = [k for k, p in adapted.adapter.factors().items() if not p.grad.any()]
    assert not zero
    others = {id(p) for p in adapted.adapter.factors().values()}
    assert all(p.grad is None for p in adapted.model.parameters() if id(p) not in others)


@pytest.mark.parametrize("adapted", ALL, indirect=True)
@torch.no_grad()
def test_merged_is_the_same_function_and_unmerged_the_same_bits(adapted: Adapted):
    before = copy.deepcopy(adapted.model.state_dict())
    expected = output(adapted.model, adapted.batch)
    assert not close(output(base(adapted.name), adapted.batch), expected)
    adapted.adapter.merge()
    assert close(output(adapted.model, adapted.batch), expected)
    adapted.adapter.unmerge()
    after = adapted.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(output(adapted.model, adapted.batch), expected)


@pytest.mark.parametrize("adapted", FEW, indirect=True)
@torch.no_grad()
def test_merged_weights_in_a_fresh_model_are_the_same_function(adapted: Adapted):
    model = fresh(adapted.name)
    model.load_state_dict(adapted.adapter.merged_state_dict())
    assert close(output(model, adapted.batch), output(adapted.model, adapted.batch))


@pytest.mark.parametrize("adapted", FEW, indirect=True)
@torch.no_grad()
def test_saved_and_loaded_gives_the_same_bits(adapted: Adapted, tmp_path):
    adapted.adapter.save(tmp_path / "adapter")
    other = fresh(adapted.name)
    loaded = load_adapter(other, tmp_path / "adapter")
    assert loaded.notes == adapted.adapter.notes
    assert torch.equal(output(other, adapted.batch), output(adapted.model, adapted.batch))


@pytest.mark.parametrize("adapted", FEW, indirect=True)
@torch.no_grad()
def test_detached_is_the_model_as_it_was(adapted: Adapted):
    model = adapted.adapter.detach()
    plain = base(adapted.name)
    assert surface(model) == surface(plain)
    was, now = plain.state_dict(), model.state_dict()
    assert all(torch.equal(was[k], now[k]) for k in was)
    assert torch.equal(output(model, adapted.batch), output(plain, adapted.batch))


def surface(model: nn.Module) -> list[Any]:
    """Modules, their hooks, and the names and flags of all parameters."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return [
        [(n, type(m), *(len(getattr(m, h)) for h in hooks)) for n, m in model.named_modules()],
        [(n, p.requires_grad) for n, p in model.named_parameters()],
        list(model.state_dict()),
    ]


GENERATING = [name for name, model in MODELS.items() if model.generates]


@pytest.mark.parametrize("method", ["lora", "lotr", "tenslora_qkv_depth", "lorta", "dora"])
@pytest.mark.parametrize("name", GENERATING)
def test_generate_is_that_of_the_merged_model(name: str, method: str):
    adapter = attach(fresh(name), method, targets=MODELS[name].attention, rank=2)
    move(adapter)
    expected = generated(adapter.model, batch_of(name))
    plain = generated(base(name), batch_of(name))
    adapter.merge()
    assert torch.equal(generated(adapter.model, batch_of(name)), expected)
    adapter.unmerge()
    with adapter.disabled():
        assert torch.equal(generated(adapter.model, batch_of(name)), plain)


def generated(model: Any, batch: dict[str, Tensor]) -> Tensor:
    start = {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
    short = {k: v[:, :4] if v.shape[1] == 5 else v for k, v in batch.items()}
    # padding is cut off what a Whisper generates, and nothing at all is an error of transformers
    never = {"suppress_tokens": [model.config.pad_token_id]} if start else {}
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    return model.generate(**short, **start, **never, **options)


# ------------------------------------------------------------------------------------------ groups


def groups_of(adapter: Adapter) -> list[set[str]]:
    """The modules (or parts) of every group, without the path before their name."""
    return [{site.path.split(".layers.")[-1] for site in grid.sites} for grid in adapter.grids]


def in_layers(*names: str) -> set[str]:
    return {f"{layer}.self_attn.{name}" for layer in range(2) for name in names}


def test_grouped_queries_make_a_group_of_queries_and_one_of_keys_and_values():
    adapter = attach(
        fresh("llama"), "tenslora_qkv_depth", targets=["q_proj", "k_proj", "v_proj"], rank=2
    )
    assert groups_of(adapter) == [in_layers("q_proj"), in_layers("k_proj", "v_proj")]
    assert [g.sizes["proj"] for g in adapter.groups] == [1, 2]


def test_groups_that_read_the_same_width_can_share_the_in_factor():
    targets = ["q_proj", "k_proj", "v_proj"]
    apart = attach(fresh("llama"), "tenslora_qkv_depth", targets=targets, rank=2)
    shared = attach(fresh("llama"), "tenslora_qkv_depth", targets=targets, rank=2, share=("in",))
    assert shared.n_trainable == apart.n_trainable - 16 * 2
    assert len({member.keys["u_in"] for member in shared.pool.members}) == 1


def test_fused_weights_are_adapted_by_their_parts():
    adapter = attach(fresh("phi3"), "tenslora_qkv_depth", targets=["qkv_proj"], rank=2)
    q, kv = in_layers("qkv_proj.q"), in_layers("qkv_proj.k", "qkv_proj.v")
    assert groups_of(adapter) == [q, kv]
    assert [target.path.split(".layers.")[-1] for target in adapter.targets] == [
        "0.self_attn.qkv_proj",
        "1.self_attn.qkv_proj",
    ]


def test_one_part_of_a_fused_weight_changes_its_own_rows_only():
    adapter = attach(fresh("phi3"), "lotr", targets=["qkv_proj.k"], rank=2)
    move(adapter)
    delta = adapter.delta("model.layers.1.self_attn.qkv_proj")
    assert delta.shape == (32, 16)
    assert delta.any(dim=1).nonzero().flatten().tolist() == list(range(16, 24))


@pytest.mark.parametrize("method", ["tenslora_qkv_depth", "lorta"])
@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_encoder_decoder_and_cross_attention_are_apart(name: str, method: str):
    targets = list(MODELS[name].attention[:3])
    adapter = attach(fresh(name), method, targets=targets, rank=2)
    kinds = [{dict(site.labels)["attn"] for site in grid.sites} for grid in adapter.grids]
    assert kinds == [{"encoder"}, {"decoder"}, {"cross"}]
    assert [g.sizes["layer"] for g in adapter.groups] == [2, 2, 2]


def test_a_method_over_sites_spans_encoder_and_decoder():
    adapter = attach(fresh("t5"), "lotr", targets=["q", "k", "v"], rank=2)
    assert [len(grid.sites) for grid in adapter.grids] == [18]


@pytest.mark.parametrize(
    ("name", "path", "axis", "blocks", "size"),
    [
        ("llama", "model.layers.0.self_attn.q_proj", 0, [0], 4),
        ("llama", "model.layers.1.self_attn.k_proj", 0, [0], 4),
        ("llama", "model.layers.0.self_attn.o_proj", 1, [0], 4),
        ("bert", "bert.encoder.layer.1.attention.self.query", 0, [0], 4),
        ("bert", "bert.encoder.layer.1.attention.output.dense", 1, [0], 4),
        ("t5", "decoder.block.0.layer.0.SelfAttention.v", 0, [0], 8),
        ("t5", "decoder.block.0.layer.1.EncDecAttention.o", 1, [0], 8),
        ("gpt2", "transformer.h.1.attn.c_attn", 0, [0, 16, 32], 4),
        ("gpt2", "transformer.h.1.attn.c_proj", 1, [0], 4),
        ("phi3", "model.layers.1.self_attn.qkv_proj", 0, [0, 16, 24], 4),
        ("phi3", "model.layers.1.self_attn.o_proj", 1, [0], 4),
    ],
)
@torch.no_grad()
def test_a_head_is_a_block_of_rows_or_of_columns_of_the_output_projection(
    name: str, path: str, axis: int, blocks: list[int], size: int
):
    adapter = attach(fresh(name), "lorta", targets=[*MODELS[name].attention], rank=2)
    move(adapter)
    before = adapter.delta(path)
    for key, factor in adapter.factors().items():
        if key.endswith("c_head"):
            factor[1] += 1
    changed = (adapter.delta(path) != before).any(dim=1 - axis).nonzero().flatten().tolist()
    assert changed == [start + size + k for start in blocks for k in range(size)]


def test_encoder_and_decoder_have_their_own_numbers_of_heads():
    config = tf.WhisperConfig(**WHISPER | {"decoder_attention_heads": 2})
    model = tf.WhisperForConditionalGeneration(config).double()
    adapter = attach(model, "lorta", targets=[*OPT], rank=2)
    found = {
        (dict(grid.sites[0].labels)["attn"], grid.grid.heads_in): grid.grid.heads
        for grid in adapter.grids
    }
    heads = {"encoder": 4, "decoder": 2, "cross": 2}
    assert found == {(kind, side): n for kind, n in heads.items() for side in (False, True)}


@pytest.mark.parametrize(
    ("name", "target"), [("llama", "o_proj"), ("bert", "attention.output.dense"), ("t5", "o")]
)
def test_an_output_projection_by_itself_has_the_heads_of_its_queries(name: str, target: str):
    adapter = attach(fresh(name), "lorta", targets=[target], rank=2)
    assert {(g.grid.heads, g.grid.heads_in) for g in adapter.groups} == {(4, True)}


def test_towers_are_apart():
    adapter = attach(CASES["gemma3"].make(), "tenslora_qkv_depth", targets=["q_proj"], rank=2)
    assert [(g.grid.shape, g.sizes["layer"]) for g in adapter.groups] == [
        ((16, 16), 2),
        ((12, 12), 3),
    ]
    assert len({g.grid.name for g in adapter.groups}) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first first", "last first"])
def test_flags_are_as_before_when_the_last_of_two_adapters_is_gone(order: tuple[int, int]):
    model = fresh("llama")
    model.model.norm.requires_grad_(False)
    before = surface(model)
    adapters = [
        attach(model, "lora", targets=["q_proj"], rank=2),
        attach(model, "lotr", targets=["q_proj"], rank=2, name="second", also_train=["lm_head"]),
    ]
    left = adapters[order[1]]
    adapters[order[0]].detach()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    mine = {f"tdecomp_{left.name}.{key}" for key in left.factors()}
    assert trained == mine | ({"lm_head.weight"} if left.name == "second" else set())
    left.detach()
    assert surface(model) == before


# --------------------------------------------------------------------------------- fused experts


def mixtral() -> nn.Module:
    return CASES["mixtral"].make()


def qwen_moe() -> nn.Module:
    return CASES["qwen2_moe"].make()


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (["gate_up_proj"], {"gate_up_proj"}),
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        (r".*experts.*", {"gate_up_proj", "down_proj"}),
        (["gate_up_proj.up"], {"gate_up_proj"}),
    ],
    ids=["parameter", "beside others", "regex", "part"],
)
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@torch.no_grad()
def test_fused_experts_are_adapted_where_they_are_named(targets, kinds, tmp_path):
    model, batch = mixtral().float().eval(), {"input_ids": torch.arange(10).view(2, 5)}
    plain, before = copy.deepcopy(model), surface(model)
    adapter = attach(model, "lotr", targets=targets, rank=2)
    assert {target.path.rpartition(".")[2] for target in adapter.targets} == kinds
    assert any("expert" in dict(grid.grid.modes) for grid in adapter.grids)
    move(adapter)
    expected = output(model, batch)
    assert not close(output(plain, batch), expected)
    adapter.save_lora(tmp_path / "lora")
    assert close(output(PeftModel.from_pretrained(plain, str(tmp_path / "lora")), batch), expected)
    adapter.detach()
    assert surface(model) == before


def test_a_module_of_experts_is_not_a_weight():
    model = mixtral()
    before = surface(model)
    with pytest.raises(SiteError, match=r"model\.layers\.0\.mlp\.experts.*parameters of experts"):
        attach(model, "lotr", targets=["experts"], rank=2)
    assert surface(model) == before


def test_fused_experts_are_told_to_be_left_out_by_default():
    adapter = attach(mixtral(), "lora", rank=2)
    assert {t.path.split(".")[-1] for t in adapter.targets} == {*LLAMA}
    (note,) = adapter.notes
    assert note.startswith("Left out: 6 of 14 weights in numbered layers, ")
    assert "model.layers.*.mlp.experts.gate_up_proj (in a MixtralExperts)" in note
    assert "model.layers.*.mlp.gate (in a MixtralTopKRouter)" in note


def test_shared_experts_are_adapted_where_fused_ones_are_excluded():
    adapter = attach(
        qwen_moe(), "lotr", targets=["down_proj"], exclude=["experts.down_proj"], rank=2
    )
    assert [t.path.partition(".mlp.")[2] for t in adapter.targets] == [
        "shared_expert.down_proj"
    ] * 2


# ------------------------------------------------------------------------------------------ export


def in_float32(name: str) -> Any:
    return fresh(name).float()


def peft_output(name: str, folder: Any, batch: dict[str, Tensor]) -> Tensor:
    return output(PeftModel.from_pretrained(in_float32(name), str(folder)).eval(), batch)


EXPORTED = (
    *("lora", "lotr", "tenslora_qkv_depth", "tenslora_qkv_depth_cp", "lorta", "loha"),
    *("metatt", "fact_tk", "dora", "lokr"),
)


@pytest.mark.parametrize("method", EXPORTED)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "t5"])
@torch.no_grad()
def test_peft_loads_the_export_as_the_same_function(name: str, method: str, tmp_path):
    adapter = attach(in_float32(name), method, targets=[*MODELS[name].attention], rank=2)
    move(adapter)
    modules = adapter.save_lora(tmp_path / "lora")
    assert {m.module for m in modules} == {t.path for t in adapter.targets}
    assert all(m.departure <= tol("float32", 256) ** 2 * m.energy for m in modules)
    expected = output(adapter.model, batch_of(name))
    assert close(peft_output(name, tmp_path / "lora", batch_of(name)), expected)
    assert not close(output(in_float32(name), batch_of(name)), expected)


@pytest.mark.parametrize(
    ("method", "rank"), [("lora", 2), ("lotr", 2), ("tenslora_qkv_depth_cp", 2), ("loha", 4)]
)
def test_an_export_is_as_narrow_as_the_method(method: str, rank: int):
    adapter = attach(fresh("llama"), method, targets=["q_proj", "v_proj"], rank=2)
    assert {m.rank for m in adapter.to_lora()} == {rank}


@pytest.mark.parametrize("method", ["dora", "lotr", "lokr"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
@torch.no_grad()
def test_a_truncated_export_states_what_it_lost(name: str, method: str):
    adapter = attach(fresh(name), method, targets=[*MODELS[name].attention], rank=3)
    move(adapter)
    was, merged = base(name).state_dict(), adapter.merged_state_dict()
    for m in adapter.to_lora(max_rank=1):
        change = (merged[f"{m.module}.weight"] - was[f"{m.module}.weight"]).numpy()
        change = change.T if m.transpose else change
        left = change - m.b @ m.a
        assert m.rank == 1
        assert m.departure == pytest.approx((left**2).sum(), rel=1e-9)
        assert m.energy == pytest.approx((change**2).sum(), rel=1e-9)
        best = np.linalg.svd(change, compute_uv=False)[1:]
        assert m.departure == pytest.approx((best**2).sum(), rel=1e-9)
