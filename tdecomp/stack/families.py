"""Model families as rows of one table: which module paths are sites, and how they are stored.

A new model is a new row (or a new `model_type` in an old one); no code reads a family's name.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

__all__ = ["FAMILIES", "Family", "Rule"]


@dataclass(frozen=True)
class Rule:
    """One kind of weight: its module path and how the stored tensor becomes (out, in) matrices.

    Attributes
    ----------
    pattern
        Module path without ``.weight``, read by `Pattern.parse`.
    role
        The space the weight lives in; sites stack only within one role. A role that ends in ``_in``
        reads the hidden state, one that ends in ``_out`` writes it.
    labels
        Site modes that the path does not spell out, with their fixed labels.
    transpose
        Stored as (in, out), as GPT-2's Conv1D does.
    lead
        Site mode of an extra leading axis: fused experts are stored (expert, out, in).
    parts
        Blocks of a fused weight along out: the `proj` label of each and its share of the rows, a
        number or a config key (``a|b`` = the first one that the config has).
    heads
        `proj` label -> config key of its number of heads, for weights whose rows are heads.
    """

    pattern: str
    role: str
    labels: tuple[tuple[str, str], ...] = ()
    _: KW_ONLY
    transpose: bool = False
    lead: str = ""
    parts: tuple[tuple[str, int | str], ...] = ()
    heads: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Family:
    """Models that name and store their weights alike."""

    name: str
    model_types: tuple[str, ...]
    rules: tuple[Rule, ...]


def _heads(q: str, k: str, v: str, n: str, n_kv: str = "") -> tuple[tuple[str, str], ...]:
    return ((q, n), (k, n_kv or n), (v, n_kv or n))


_HEADS = "num_attention_heads"
_KV_HEADS = "num_key_value_heads|num_attention_heads"
_QKV_PROJ = _heads("q_proj", "k_proj", "v_proj", _HEADS, _KV_HEADS)

_GATE_UP = (("gate", 1), ("up", 1))

_LLAMA_ATTENTION = (
    Rule("layers.{layer}.self_attn.{proj:q_proj|k_proj|v_proj}", "attn_in", heads=_QKV_PROJ),
    Rule("layers.{layer}.self_attn.{proj:o_proj|dense}", "attn_out"),
)
_LLAMA_MLP = (
    Rule("layers.{layer}.mlp.{proj:gate_proj|up_proj|c_fc}", "mlp_in"),
    Rule("layers.{layer}.mlp.{proj:down_proj|c_proj}", "mlp_out"),
    Rule("layers.{layer}.mlp.gate_up_proj", "mlp_in", parts=_GATE_UP),
    Rule("layers.{layer}.feed_forward.{proj:gate_proj|up_proj|w1|w3}", "mlp_in"),
    Rule("layers.{layer}.feed_forward.{proj:down_proj|w2}", "mlp_out"),
)
# The vision towers of Qwen2-VL and its kin: query, key and value one after another.
_VISION_BLOCKS = (
    Rule(
        "blocks.{layer}.attn.qkv",
        "attn_in",
        parts=(("q", 1), ("k", 1), ("v", 1)),
        heads=_heads("q", "k", "v", f"num_heads|{_HEADS}"),
    ),
    Rule("blocks.{layer}.attn.{proj:proj}", "attn_out"),
    Rule("blocks.{layer}.mlp.{proj:gate_proj|up_proj|fc1|linear_fc1}", "mlp_in"),
    Rule("blocks.{layer}.mlp.{proj:down_proj|fc2|linear_fc2}", "mlp_out"),
)
# CLIP's names, also those of the vision towers beside llama-like text models.
_CLIP = (
    Rule("layers.{layer}.self_attn.{proj:out_proj}", "attn_out"),
    Rule("layers.{layer}.mlp.{proj:fc1}", "mlp_in"),
    Rule("layers.{layer}.mlp.{proj:fc2}", "mlp_out"),
)


def _expert_rules(block: str) -> tuple[Rule, ...]:
    """Rules of experts in a part of a layer: one by one, then fused, (expert, out, in)."""
    experts = f"layers.{{layer}}.{block}.experts"
    return (
        Rule(f"{experts}.{{expert}}.{{proj:gate_proj|up_proj|w1|w3}}", "expert_in"),
        Rule(f"{experts}.{{expert}}.{{proj:down_proj|w2}}", "expert_out"),
        Rule(f"{experts}.gate_up_proj", "expert_in", lead="expert", parts=_GATE_UP),
        Rule(f"{experts}.{{proj:up_proj}}", "expert_in", lead="expert"),
        Rule(f"{experts}.{{proj:down_proj}}", "expert_out", lead="expert"),
    )


_EXPERTS = (
    *(
        rule
        for block in ("block_sparse_moe", "mlp", "feed_forward", "mixer")
        for rule in _expert_rules(block)
    ),
    # GraniteMoe's checkpoints, and JetMoe
    *(
        rule
        for block in ("block_sparse_moe", "mlp")
        for rule in (
            Rule(
                f"layers.{{layer}}.{block}.input_linear",
                "expert_in",
                lead="expert",
                parts=_GATE_UP,
            ),
            Rule(f"layers.{{layer}}.{block}.{{proj:output_linear}}", "expert_out", lead="expert"),
        )
    ),
)
_SHARED_EXPERTS = tuple(
    rule
    for name in ("mlp.shared_expert", "mlp.shared_experts", "feed_forward.shared_expert")
    for rule in (
        Rule(f"layers.{{layer}}.{name}.{{proj:gate_proj|up_proj}}", "shared_in"),
        Rule(f"layers.{{layer}}.{name}.{{proj:down_proj}}", "shared_out"),
    )
)


def _bert_rules(attention: str) -> tuple[Rule, ...]:
    """Rules of BERT's block, `attention` being the path of its query, key and value."""
    qkv = _heads("query", "key", "value", _HEADS)
    block, out = "encoder.layer.{layer}", "output.dense"
    return (
        Rule(f"{block}.attention.{attention}.{{proj:query|key|value}}", "attn_in", heads=qkv),
        Rule(  # DeBERTa's
            f"{block}.attention.{attention}.{{proj:query_proj|key_proj|value_proj}}",
            "attn_in",
            heads=_heads("query_proj", "key_proj", "value_proj", _HEADS),
        ),
        Rule(f"{block}.attention.{out}", "attn_out", (("proj", f"attention.{out}"),)),
        Rule(f"{block}.intermediate.dense", "mlp_in", (("proj", "intermediate.dense"),)),
        Rule(f"{block}.{out}", "mlp_out", (("proj", out),)),
    )


_BERT_CROSS = (
    Rule(
        "encoder.layer.{layer}.crossattention.self.{proj:query|key|value}",
        "cross_in",
        heads=_heads("query", "key", "value", _HEADS),
    ),
    Rule(
        "encoder.layer.{layer}.crossattention.output.dense",
        "cross_out",
        (("proj", "crossattention.output.dense"),),
    ),
)
_VIT_IN_MEMORY = (
    Rule("layers.{layer}.attention.{proj:q_proj|k_proj|v_proj}", "attn_in", heads=_QKV_PROJ),
    Rule("layers.{layer}.attention.{proj:o_proj}", "attn_out"),
    Rule("layers.{layer}.mlp.{proj:fc1}", "mlp_in"),
    Rule("layers.{layer}.mlp.{proj:fc2}", "mlp_out"),
)


def _t5_rules() -> tuple[Rule, ...]:
    """Rules of T5: ``layer.0/1/2`` is the place in a block, ``block`` is the layer."""
    heads = _heads("q", "k", "v", "num_heads")
    attention = {
        "encoder": "encoder.block.{layer}.layer.0.SelfAttention",
        "decoder": "decoder.block.{layer}.layer.0.SelfAttention",
        "cross": "decoder.block.{layer}.layer.1.EncDecAttention",
    }
    mlp = {
        "encoder": "encoder.block.{layer}.layer.1.DenseReluDense",
        "decoder": "decoder.block.{layer}.layer.2.DenseReluDense",
    }
    return (
        *(
            Rule(f"{path}.{{proj:q|k|v}}", "attn_in", (("attn", kind),), heads=heads)
            for kind, path in attention.items()
        ),
        *(
            Rule(f"{path}.{{proj:o}}", "attn_out", (("attn", kind),))
            for kind, path in attention.items()
        ),
        *(
            Rule(f"{path}.{{proj:wi|wi_0|wi_1}}", "mlp_in", (("stack", kind),))
            for kind, path in mlp.items()
        ),
        *(Rule(f"{path}.{{proj:wo}}", "mlp_out", (("stack", kind),)) for kind, path in mlp.items()),
    )


def _bart_rules() -> tuple[Rule, ...]:
    """Rules of BART and Whisper: two stacks of ``layers``, three kinds of attention."""
    decoder_heads = f"decoder_attention_heads|{_HEADS}"  # OPT is a decoder alone
    attention = {
        "encoder": ("encoder.layers.{layer}.self_attn", "encoder_attention_heads"),
        "decoder": ("decoder.layers.{layer}.self_attn", decoder_heads),
        "cross": ("decoder.layers.{layer}.encoder_attn", decoder_heads),
    }
    rows = [(kind, path, key) for kind, (path, key) in attention.items()]
    qkv, names = "{proj:q_proj|k_proj|v_proj}", ("q_proj", "k_proj", "v_proj")
    return (
        *(
            Rule(f"{path}.{qkv}", "attn_in", (("attn", kind),), heads=_heads(*names, key))
            for kind, path, key in rows
        ),
        *(Rule(f"{path}.{{proj:out_proj}}", "attn_out", (("attn", k),)) for k, path, _ in rows),
        *(
            Rule(f"{stack}.layers.{{layer}}.{{proj:{proj}}}", role, (("stack", stack),))
            for proj, role in (("fc1", "mlp_in"), ("fc2", "mlp_out"))
            for stack in ("encoder", "decoder")
        ),
    )


_GPT2 = (
    Rule(
        "h.{layer}.attn.c_attn",
        "attn_in",
        transpose=True,
        parts=(("q", 1), ("k", 1), ("v", 1)),
        heads=_heads("q", "k", "v", "n_head"),
    ),
    Rule("h.{layer}.attn.{proj:c_proj}", "attn_out", transpose=True),
    Rule("h.{layer}.mlp.{proj:c_fc}", "mlp_in", transpose=True),
    Rule("h.{layer}.mlp.{proj:c_proj}", "mlp_out", transpose=True),
)
_PHI3 = (
    Rule(
        "layers.{layer}.self_attn.qkv_proj",
        "attn_in",
        parts=(("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS)),
        heads=_heads("q", "k", "v", _HEADS, _KV_HEADS),
    ),
    Rule("layers.{layer}.self_attn.{proj:o_proj}", "attn_out"),
    Rule("layers.{layer}.mlp.gate_up_proj", "mlp_in", parts=_GATE_UP),
    Rule("layers.{layer}.mlp.{proj:down_proj}", "mlp_out"),
)
_DISTILBERT = (
    Rule(
        "transformer.layer.{layer}.attention.{proj:q_lin|k_lin|v_lin}",
        "attn_in",
        heads=_heads("q_lin", "k_lin", "v_lin", "n_heads|num_attention_heads"),
    ),
    Rule("transformer.layer.{layer}.attention.{proj:out_lin}", "attn_out"),
    Rule("transformer.layer.{layer}.ffn.{proj:lin1}", "mlp_in"),
    Rule("transformer.layer.{layer}.ffn.{proj:lin2}", "mlp_out"),
)
_LLAMA4_EXPERTS = (
    Rule(
        "layers.{layer}.feed_forward.experts.gate_up_proj",
        "expert_in",
        lead="expert",
        transpose=True,
        parts=_GATE_UP,
    ),
    Rule(
        "layers.{layer}.feed_forward.experts.{proj:down_proj}",
        "expert_out",
        lead="expert",
        transpose=True,
    ),
)
# gpt-oss: experts stored (expert, in, out), gate and up rows interleaved, so not two blocks.
_GPT_OSS_EXPERTS = (
    Rule(
        "layers.{layer}.mlp.experts.{proj:gate_up_proj}",
        "expert_in",
        lead="expert",
        transpose=True,
    ),
    Rule(
        "layers.{layer}.mlp.experts.{proj:down_proj}",
        "expert_out",
        lead="expert",
        transpose=True,
    ),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "llama",
        (
            *("llama", "mistral", "mistral3", "ministral", "ministral3", "llava", "paligemma"),
            *("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_vl", "smollm3", "seed_oss"),
            *("gemma", "gemma2", "gemma3", "gemma3_text", "granite", "stablelm", "vaultgemma"),
            *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "exaone4", "helium", "diffllama"),
            *("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_vision_model"),
            *("phi", "starcoder2", "glm", "glm4", "nemotron", "arcee", "apertus", "ernie4_5"),
            *("hunyuan_v1_dense", "lfm2", "falcon_h1", "idefics3", "mllama", "qwen2_audio"),
        ),
        (*_LLAMA_ATTENTION, *_LLAMA_MLP, *_CLIP, *_VISION_BLOCKS),
    ),
    Family(
        "moe",
        (
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "glm4_moe", "minimax"),
            *("deepseek_v2", "deepseek_v3", "qwen3_next", "jamba", "lfm2_moe", "granitemoe"),
            *("granitemoeshared", "granitemoehybrid", "ernie4_5_moe", "hunyuan_v1_moe"),
            *("dots1", "flex_olmo", "jetmoe", "qwen3_vl_moe"),
        ),
        (*_LLAMA_ATTENTION, *_LLAMA_MLP, *_EXPERTS, *_SHARED_EXPERTS, *_VISION_BLOCKS),
    ),
    Family(
        "llama4",
        ("llama4", "llama4_text"),
        (*_LLAMA_ATTENTION, *_LLAMA_MLP, *_LLAMA4_EXPERTS, *_SHARED_EXPERTS, *_CLIP),
    ),
    Family("gpt_oss", ("gpt_oss",), (*_LLAMA_ATTENTION, *_GPT_OSS_EXPERTS)),
    Family("phi3", ("phi3",), _PHI3),
    Family(
        "bert",
        (
            *("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text"),
            *("layoutlm", "layoutlmv3", "ernie", "esm", "megatron-bert", "roformer", "big_bird"),
            *("deberta", "deberta-v2"),
        ),
        (*_bert_rules("self"), *_BERT_CROSS),
    ),
    Family("distilbert", ("distilbert",), _DISTILBERT),
    Family(
        "vit",
        ("vit", "deit", "vit_mae", "vit_msn", "audio-spectrogram-transformer"),
        (*_bert_rules("attention"), *_VIT_IN_MEMORY),
    ),
    Family("gpt2", ("gpt2",), _GPT2),
    Family("t5", ("t5", "mt5", "umt5", "longt5", "byt5"), _t5_rules()),
    Family(
        "bart", ("whisper", "bart", "mbart", "m2m_100", "marian", "pegasus", "opt"), _bart_rules()
    ),
)
