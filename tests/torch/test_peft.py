"""Laws of the method as PEFT runs it: what its users may do with it, and may not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.utils import PeftType, hotswap
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tdecomp import ArgumentError, FileError, SiteError
from tdecomp.adapters import CATALOGUE
from tdecomp_torch import attach, load_adapter
from tdecomp_torch.model.guest import Guest
from tdecomp_torch.peft import TensorAdapterConfig, adapter_of
from tdecomp_torch.peft.registering import check_version, register
from tests.torch.cases import (
    HIDDEN,
    METHODS,
    MODELS,
    assert_close,
    inputs,
    seeded,
    set_random,
    start_given,
    tiny,
)

NAMED = {"targets": "target_modules", "exclude": "exclude_modules"}


def config_of(method: str, **options: Any) -> TensorAdapterConfig:
    """The configuration of a row, with what it needs besides."""
    own = {"rank": 2, "tokens": 64, "seed": 0, **start_given(method), **options}
    return TensorAdapterConfig(method=method, **{NAMED.get(k, k): v for k, v in own.items()})


def on(model: nn.Module, method: str, *, seed: int = 2, **options: Any) -> PeftModel:
    """A model with an adapter full of random numbers, by way of PEFT."""
    found = get_peft_model(model, config_of(method, **options))
    set_random(adapter_of(found), seed)
    return found


def x_of() -> torch.Tensor:
    return inputs(2, 5, HIDDEN)


def left_behind(model: nn.Module) -> list[str]:
    """What an adapter would leave on a model: modules, hooks."""
    found = [name for name, m in model.named_modules() if "tdecomp" in name or isinstance(m, Guest)]
    return found + [str(hook) for hook in model._forward_hooks.values()]


# -- one forward path: what PEFT runs is what attach runs -----------------------------------------


def rows() -> list[Any]:
    """Every row; a few of them stand for the rest in the quick part."""
    quick = ("lora", "lotr", "vera", "fact_tt", "lorta", "dora", "loha", "eigenlorax")
    return [m if m in quick else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


@pytest.mark.parametrize("method", rows())
def test_every_row_is_what_it_is_without_peft(method, tmp_path):
    plain = tiny()
    x, before = x_of(), plain(x_of())
    own = {k: v for k, v in {"rank": 2, "tokens": 64, **start_given(method)}.items()}
    adapter = attach(copy.deepcopy(plain), method, **own)
    model = get_peft_model(copy.deepcopy(plain), config_of(method))
    assert torch.equal(model(x), adapter.model(x))  # at the start
    set_random(adapter)
    set_random(adapter_of(model))
    expected = adapter.model(x)
    assert torch.equal(model(x), expected)
    assert model.get_nb_trainable_parameters()[0] == adapter.n_trainable
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            copy.deepcopy(plain), str(tmp_path), low_cpu_mem_usage=low
        )
        assert_close(loaded(x), expected)
        assert not any(p.requires_grad for p in loaded.parameters())
    model.merge_adapter()
    assert_close(model(x), expected)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)
    merged = model.merge_and_unload()
    assert_close(merged(x), expected)
    assert not left_behind(merged)
    assert {n: type(m) for n, m in merged.named_modules()} == {
        n: type(m) for n, m in plain.named_modules()
    }


@pytest.mark.parametrize("case", ["conv1d", "embeddings", "convolutions", "parts of two shapes"])
def test_other_kinds_of_modules(case):
    own = MODELS[case]
    plain, x = seeded(own.make).double(), own.read()
    adapter = attach(copy.deepcopy(plain), "lora", rank=2, **own.options)
    model = on(copy.deepcopy(plain), "lora", **own.options)
    set_random(adapter)
    expected = adapter.model(x)
    assert torch.equal(model(x), expected)
    assert_close(model.merge_and_unload()(x), expected)


@pytest.mark.parametrize("method", ["lotr", "tenslora_att_qkv_depth", "lorta", "vera"])
def test_a_file_is_its_numbers_and_a_header(method, tmp_path):
    """Every shared factor once, and as much as `save` writes of numbers."""
    model = on(tiny(torch.float32), method)
    model.save_pretrained(tmp_path)
    adapter = adapter_of(model)
    adapter.save(tmp_path / "plain")
    file = tmp_path / "adapter_model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    state = load_file(file)
    extra = sum(v.numel() for k, v in state.items() if k.endswith("_extra_state"))
    kept = sum(v.numel() for v in adapter.pool.stored().values())
    assert file.stat().st_size == header + 4 * kept + extra
    assert kept == adapter.n_trainable
    assert adapter.n_trainable == sum(
        v.numel() for v in load_file(tmp_path / "plain" / "factors.safetensors").values()
    )


# -- several adapters ------------------------------------------------------------------------


def test_a_second_adapter_has_factors_of_its_own():
    plain, x = tiny(), x_of()
    model = on(copy.deepcopy(plain), "lotr")
    first = model(x)
    model.add_adapter("second", config_of("lora", targets=["q_proj"], seed=5))
    set_random(adapter_of(model, "second"), 7)
    assert torch.equal(model(x), first)
    model.set_adapter("second")
    second = model(x)
    alone = on(copy.deepcopy(plain), "lora", seed=7, targets=["q_proj"])
    assert torch.equal(second, alone(x))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in trained if ".second." in n} != set()
    model.set_adapter("default")
    assert torch.equal(model(x), first)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    model.merge_adapter()
    assert_close(model(x), both)
    model.unmerge_adapter()
    assert torch.equal(model(x), both)
    model.delete_adapter("second")
    assert not [n for n, _ in model.named_modules() if "second" in n]
    assert model.active_adapters == ["default"]
    assert torch.equal(model(x), first)
    assert torch.equal(model.unload()(x), plain(x))


def test_adapters_that_do_not_add_up_take_turns():
    model = on(tiny(), "dora")
    x = x_of()
    first = model(x)
    model.add_adapter("second", config_of("lora"))
    with pytest.raises(ArgumentError, match="does not add .*'second'"):
        model.base_model.set_adapter(["default", "second"])
    assert model.base_model.model.layers[0].self_attn.q_proj.active_adapters == ["default"]
    assert torch.equal(model(x), first)
    model.set_adapter("second")
    assert not torch.equal(model(x), first)


def test_saving_and_loading_under_other_names(tmp_path):
    model = on(tiny(), "lotr")
    model.save_pretrained(tmp_path)
    x, expected = x_of(), model(x_of())
    other = PeftModel.from_pretrained(tiny(), str(tmp_path), adapter_name="a")
    other.load_adapter(str(tmp_path), "b", is_trainable=True)
    assert torch.equal(other(x), expected)
    other.set_adapter("b")
    assert torch.equal(other(x), expected)
    copied = copy.deepcopy(other)
    set_random(adapter_of(copied, "b"), 9)
    assert torch.equal(other(x), expected)
    assert not torch.equal(copied(x), expected)


def test_injected_without_a_peft_model():
    plain, x = tiny(), x_of()
    model = inject_adapter_in_model(config_of("lotr"), copy.deepcopy(plain))
    set_random(adapter_of(model))
    assert torch.equal(model(x), on(plain, "lotr")(x))


@pytest.mark.parametrize("method", ["lora", "lotr", "lorta", "fact_tt", "tenslora_att_qkv_depth"])
def test_a_weighted_adapter_is_the_sum(method):
    alphas = ({"alpha": 3.0}, {"alpha": 5.0}) if CATALOGUE[method].has_alpha else ({}, {})
    model = on(tiny(), method, **alphas[0])
    model.add_adapter("second", config_of(method, rank=3, **alphas[1]))
    set_random(adapter_of(model, "second"), 7)
    model.base_model.add_weighted_adapter(["default", "second"], [0.5, -2.0], "sum")
    one, two, found = (adapter_of(model, name) for name in ("default", "second", "sum"))
    for target in found.targets:
        path = target.path
        assert_close(found.delta(path), 0.5 * one.delta(path) - 2 * two.delta(path))
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("vera", {}, "not all trained"),
        ("loha", {}, "hang together"),
        ("dora", {}, "base weight"),
        ("lora", {"targets": ["q_proj"]}, "different weights"),
        ("lotr", {"method": "lora"}, "not of one method"),
    ],
)
def test_adapters_without_a_sum(method, options, says):
    model = on(tiny(), method)
    other = config_of(
        options.get("method", method), **{k: v for k, v in options.items() if k != "method"}
    )
    model.add_adapter("second", other)
    with pytest.raises(ArgumentError, match=f"(?s){says}.*merge_adapter"):
        model.base_model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum")
    assert "sum" not in model.peft_config


# -- the configuration -----------------------------------------------------------------------


def test_a_configuration_holds_the_equation_and_no_start(tmp_path):
    config = TensorAdapterConfig(method="lotr", r=4, start="pissa", target_modules="all-linear")
    config.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["method"] == CATALOGUE["lotr"].to_json()
    assert said["start"] is None
    assert said["library"] == "tdecomp_torch.peft"
    loaded = TensorAdapterConfig.from_pretrained(str(tmp_path))
    assert loaded.spec == CATALOGUE["lotr"]
    assert loaded.rank == 4


def test_a_schedule_goes_on_where_it_was(tmp_path):
    model = on(tiny(), "itl")
    adapter_of(model).step(3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path))
    assert adapter_of(loaded).at_step == 3
    assert_close(loaded(x_of()), model(x_of()))
    assert model.peft_config["default"].to_dict()["step"] == 3
    assert copy.deepcopy(model).peft_config["default"].to_dict()["step"] == 3


def test_a_start_is_made_once(tmp_path):
    """PiSSA subtracts what it starts from: the file says so, and brings the numbers."""
    plain, x = tiny(), x_of()
    model = get_peft_model(copy.deepcopy(plain), config_of("lora", start="pissa"))
    assert_close(model(x), plain(x))
    set_random(adapter_of(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path))
    assert_close(loaded(x), model(x))


def test_random_starts_follow_torchs_seed(tmp_path):
    def start(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = get_peft_model(tiny(), config_of("vera", seed=None, init_weights=False))
        model.save_pretrained(tmp_path / str(seed))
        return model(x_of())

    with torch.random.fork_rng():
        first, second, again = start(1), start(2), start(1)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        for seed, expected in ((1, first), (2, second)):  # the seed of constants is in the file
            loaded = PeftModel.from_pretrained(tiny(), str(tmp_path / str(seed)))
            assert_close(loaded(x_of()), expected)


def test_which_modules_are_meant():
    def paths(**options: Any) -> set[str]:
        model = get_peft_model(tiny(), TensorAdapterConfig(method="lora", rank=2, **options))
        return {target.path for target in adapter_of(model).targets}

    every = {f"layers.{k}.self_attn.{p}_proj" for k in (0, 1) for p in "qkvo"}
    assert paths() == every
    assert paths(layers_to_transform=[1]) == {p for p in every if ".1." in p}
    chosen = {
        "target_modules": ["q_proj", "k_proj"],
        "exclude_modules": ["layers.0.self_attn.k_proj"],
    }
    assert paths(**chosen) == {p for p in every if "q_proj" in p} | {"layers.1.self_attn.k_proj"}
    assert paths(target_modules="all-linear") == every | {"head"}
    assert paths(target_modules=r".*\.1\..*(q|v)_proj") == {
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj",
    }


def test_ranks_by_pattern(tmp_path):
    options = {"rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.o_proj": 1}}
    model = on(tiny(), "lora", **options)
    ranks = adapter_of(model).ranks
    assert ranks["layers.0.self_attn.q_proj"] == 3
    assert ranks["layers.1.self_attn.o_proj"] == 1
    assert ranks["layers.0.self_attn.v_proj"] == 2
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path))
    assert torch.equal(loaded(x_of()), model(x_of()))
    with pytest.raises(ArgumentError, match="rank"):
        get_peft_model(tiny(), config_of("lotr", **options))


def test_modules_to_save(tmp_path):
    model = on(tiny(), "lotr", modules_to_save=["head"])
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.fill_(0.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path))
    assert torch.equal(loaded(x_of()), model(x_of()))
    merged = model.merge_and_unload()
    assert (merged.head.weight == 0.5).all()


# -- dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_follow_the_rules_of_peft(dtype):
    def dtypes(**options: Any) -> set[torch.dtype]:
        model = get_peft_model(tiny(dtype), config_of("lotr"), **options)
        assert model(inputs(2, 5, HIDDEN, dtype=dtype)).dtype == dtype
        return {p.dtype for p in adapter_of(model).factors().values()}

    assert dtypes() == {torch.float32}
    assert dtypes(autocast_adapter_dtype=False) == {dtype}
    model = get_peft_model(tiny(torch.float32), config_of("lotr", dtype="bfloat16"))
    assert {p.dtype for p in adapter_of(model).factors().values()} == {torch.bfloat16}


def test_a_quantised_base_is_adapted_and_not_written():
    """Refused before the first weight is merged, so that none is."""
    bnb = pytest.importorskip("bitsandbytes")

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain = nn.Linear(64, 64)
            self.packed = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.packed(torch.relu(self.plain(x)))

    model, x = seeded(Half).to("cpu"), inputs(3, 64, dtype=torch.float32)
    before = model(x)
    found = on(model, "lotr", targets=["plain", "packed"])
    expected = found(x)
    assert not torch.allclose(expected, before)
    with pytest.raises(SiteError, match="packed is quantised.*save_lora"):
        found.merge_adapter()
    assert torch.equal(found(x), expected)
    expected.square().sum().backward()
    assert all(f.grad is not None for f in adapter_of(found).factors().values())


# -- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "lotrr"}, "lotr"),
        ({"method": 3}, "method=3"),
        ({"method": {"name": "x"}}, "cannot be read"),
        ({"method": "lora", "r": 2, "rank": 3}, "r=2 and rank=3"),
        ({"method": "lora", "dropout": 1.5}, "dropout"),
        ({"method": "lora", "dtype": "float99"}, "float99"),
        ({"method": "vera", "alpha": 16}, "alpha=16 would change nothing.*'vera' is 1"),
    ],
)
def test_configurations_that_cannot_be(options, says):
    with pytest.raises(ArgumentError, match=says):
        TensorAdapterConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"target_modules": ["self_attn"]}, "self_attn"),
        ({"rank": 0}, "rank"),
    ],
)
def test_a_model_is_as_before_after_an_error(options, says):
    model = tiny()
    before = {n: (p.requires_grad, p.clone()) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=says):
        get_peft_model(model, TensorAdapterConfig(**{"method": "lotr", "rank": 2, **options}))
    assert not left_behind(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: flag for n, (flag, _) in before.items()
    }


def test_another_model_is_refused_by_a_file(tmp_path):
    on(tiny(), "lotr").save_pretrained(tmp_path)
    other = tiny()
    other.layers[0].self_attn.q_proj = nn.Linear(HIDDEN, 4).double()
    with pytest.raises((SiteError, RuntimeError, ValueError)):
        PeftModel.from_pretrained(other, str(tmp_path))


def test_one_adapter_per_example_names_what_can():
    model = on(tiny(), "lotr")
    with pytest.raises(ArgumentError, match="save_lora"):
        model(x_of(), adapter_names=["default", "default"])


def test_versions_of_peft(recwarn):
    with pytest.raises(ArgumentError, match=r"0\.19.*0\.18\.1 is installed"):
        check_version("0.18.1")
    check_version("0.21.2")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"0\.22\.0 is installed"):
        check_version("0.22.0")


def test_registering_twice_is_once():
    register()
    assert [m for m in PeftType if m.value == "TDECOMP_TORCH_PEFT"] == [
        PeftType("TDECOMP_TORCH_PEFT")
    ]


HERE = {"target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("edited", "error", "says"),
    [
        ({"rank": 3}, ArgumentError, r"__left' of the adapter 'default' is \(12, 2\) in the file"),
        ({"method": "lora"}, ArgumentError, r"not in the file, and the configuration \(lora\)"),
        ({"target_modules": ["q_proj"]}, ArgumentError, "adapter_config.json is that of another"),
        ({"rank": "many"}, ArgumentError, "'many' must be a whole number"),
        ({"method": None}, ArgumentError, "method=None must be the name of a row"),
        ({"tasks": "english"}, ArgumentError, "tasks='english' must be names"),
        ({"patterns": 5}, ArgumentError, "patterns=5 must be a list"),
        ({"share": 7}, ArgumentError, "share=7 must be a sequence"),
        ({"step": "x"}, ArgumentError, "step='x' must be a number"),
        ({"target_parameters": ["w"]}, SiteError, "matches no parameter of several experts"),
    ],
    ids=lambda own: "-".join(map(str, own)) if isinstance(own, dict) else "",
)
def test_a_configuration_edited_by_hand(edited, error, says, tmp_path):
    on(tiny(), "lotr", **HERE).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edited))
    model, before = tiny(), as_it_is(tiny())
    with pytest.raises(error, match=says) as caught:
        PeftModel.from_pretrained(model, str(tmp_path))
    assert "\n" not in str(caught.value).strip()
    assert as_it_is(model) == before


def as_it_is(model: nn.Module) -> tuple[Any, ...]:
    """What an adapter that was refused must not have changed."""
    return (
        model(x_of()).tolist(),
        {name: type(module) for name, module in model.named_modules()},
        {name: p.requires_grad for name, p in model.named_parameters()},
        left_behind(model),
        hasattr(model, "peft_config"),
    )


def other_rank(folder: Path, **options: Any) -> str:
    """A folder whose configuration asks for other factors than its file has."""
    on(tiny(), "lotr", **HERE, **options).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank": 3}))
    return str(folder)


@pytest.mark.parametrize(
    "loading",
    [
        {},
        {"is_trainable": True},
        {"low_cpu_mem_usage": True},
        {"config": TensorAdapterConfig(method="lotr", rank=3, **HERE)},
    ],
    ids=lambda loading: "-".join(loading),
)
def test_a_model_is_as_before_a_file_that_does_not_fit(loading, tmp_path):
    model = tiny()
    model.layers[1].requires_grad_(False)
    before = as_it_is(model)
    folder = other_rank(tmp_path, modules_to_save=["head"])
    with pytest.raises(ArgumentError, match="in the file"):
        PeftModel.from_pretrained(model, folder, **copy.deepcopy(loading))
    assert as_it_is(model) == before


def test_a_second_adapter_that_does_not_fit_leaves_the_first(tmp_path):
    folder = other_rank(tmp_path, modules_to_save=["head"])
    model = on(tiny(), "lotr", modules_to_save=["head"])
    names, before = {n for n, _ in model.named_modules()}, as_it_is(model)
    with pytest.raises(ArgumentError, match="in the file"):
        model.load_adapter(folder, "second")
    assert [*model.peft_config] == model.active_adapters == ["default"]
    assert {n for n, _ in model.named_modules()} == names
    assert as_it_is(model) == before


def test_an_adapter_in_training_stays_when_a_file_does_not_fit(tmp_path):
    """As when training is resumed from a folder of another adapter."""
    model = on(tiny(), "lotr", **HERE)
    before = as_it_is(model)
    with pytest.raises(ArgumentError, match="in the file"):
        model.load_adapter(other_rank(tmp_path, rank=3), "default", is_trainable=True)
    assert as_it_is(model) == before
    model.save_pretrained(tmp_path / "fits")
    loaded = PeftModel.from_pretrained(tiny(), str(tmp_path / "fits"))
    with pytest.raises(ArgumentError, match="in the file"):
        loaded.load_adapter(other_rank(tmp_path, rank=3), "default")
    assert_close(loaded(x_of()), model(x_of()))


def test_what_peft_does_with_lora_only_names_the_export(tmp_path):
    model = on(tiny(), "lotr")
    model.save_pretrained(tmp_path)
    before = model(x_of())
    with pytest.raises(ArgumentError, match=r"save_lora\(folder\)"):
        hotswap.hotswap_adapter(model, str(tmp_path), "default")
    with pytest.raises(ArgumentError, match=r"adapter_of\(model, 'default'\)\.save_lora"):
        convert_to_lora(model, rank=2)
    assert not model.supports_lora_conversion()
    assert torch.equal(model(x_of()), before)
    one, other = (LoraConfig(r=2, use_rslora=flag) for flag in (False, True))
    hotswap.check_hotswap_configs_compatible(one, one)
    with pytest.raises(ValueError, match="use_rslora"):  # PEFT's own check of LoRA
        hotswap.check_hotswap_configs_compatible(one, other)


def test_load_adapter_tells_a_folder_of_peft(tmp_path):
    on(tiny(), "lotr").save_pretrained(tmp_path)
    with pytest.raises(FileError) as caught:
        load_adapter(tiny(), tmp_path)
    assert "import tdecomp_torch.peft" in caught.value.tip


def test_saved_while_merged_is_saved_whole(tmp_path):
    model = on(tiny(), "lotr")
    expected = model(x_of())
    model.save_pretrained(tmp_path / "apart")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    files = [load_file(tmp_path / k / "adapter_model.safetensors") for k in ("apart", "merged")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())
    assert_close(PeftModel.from_pretrained(tiny(), str(tmp_path / "merged"))(x_of()), expected)


def llama(*, tied: bool = False) -> Any:
    options = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    made = LlamaConfig(vocab_size=20, hidden_size=8, tie_word_embeddings=tied, **options)
    return seeded(lambda: LlamaForCausalLM(made))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
def test_a_vocabulary_is_not_resized_under_its_adapter(table, tied):
    ids, base = torch.arange(6)[None], llama(tied=tied)
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = on(base, "lora", target_modules=[table, "q_proj"])
    expected = model(input_ids=ids).logits
    for resized in (model, copy.deepcopy(model), base):  # as PEFT hands it on, and as it is
        with pytest.raises(
            SiteError, match=rf"{table} cannot be resized from 20 to 24 rows.*unload"
        ):
            resized.resize_token_embeddings(23, 8, mean_resizing=False)
        assert torch.equal(resized(input_ids=ids).logits, expected)
    assert model.resize_token_embeddings().weight.shape == (20, 8)  # a look at the table
    model.delete_adapter("default")
    with pytest.raises(SiteError, match="cannot be resized"):  # what PEFT put there is still there
        model.resize_token_embeddings(24)
    plain = model.unload()
    assert all(torch.equal(p, before[name]) for name, p in plain.named_parameters())
    plain.resize_token_embeddings(24, mean_resizing=False)
    assert plain(input_ids=ids).logits.shape == (1, 6, 24)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT 0.19's
def test_a_vocabulary_is_resized_beside_an_adapter():
    ids = torch.arange(6)[None]
    model = on(llama(), "lora", target_modules=["embed_tokens", "q_proj"])
    model.base_model.model.model.embed_tokens = nn.Embedding(24, 8)  # by hand
    says = r"embed_tokens was replaced by another Embedding, \(24, 8\)"
    with pytest.raises(SiteError, match=says):
        model(input_ids=ids)
    beside = on(llama(), "lora", target_modules=["q_proj"])
    expected = beside(input_ids=ids).logits
    beside.resize_token_embeddings(24, mean_resizing=False)
    assert_close(beside(input_ids=ids).logits[..., :20], expected)


def test_a_process_without_the_import_is_told_what_to_import(tmp_path):
    on(tiny(), "lotr").save_pretrained(tmp_path)
    said = Path(tmp_path, "adapter_config.json").read_text()
    assert '"library": "tdecomp_torch.peft"' in said
    assert '"peft_type": "TDECOMP_TORCH_PEFT"' in said
    card = Path(tmp_path, "README.md").read_text()
    assert card.count("\nimport tdecomp_torch.peft") == 1
    assert card.index("## Loading") < card.index("## Model Details")
    PeftModel.from_pretrained(tiny(), str(tmp_path)).save_pretrained(tmp_path)
    assert Path(tmp_path, "README.md").read_text() == card
    TensorAdapterConfig().save_pretrained(str(tmp_path / "alone"))
    assert [path.name for path in Path(tmp_path, "alone").iterdir()] == ["adapter_config.json"]


def test_adapters_to_be_added_up_have_a_weight_each():
    model = on(tiny(), "lora")
    for names, weights, says in (
        (["default", "default"], [1.0], "2 adapters and 1 weight are given"),
        ([], [], "0 adapters and 0 weights are given"),
    ):
        with pytest.raises(ArgumentError, match=says):
            model.base_model.add_weighted_adapter(names, weights, "sum")
