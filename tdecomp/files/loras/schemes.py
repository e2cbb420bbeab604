"""Naming schemes of adapter files as rows of one table.

A name is ``prefix + module + ending``. The prefix says which network the module is in, the ending
which part of which kind of pair the tensor is. A new scheme is a new row; no code reads a row's
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["SCHEMES", "NamedPart", "NamingScheme", "scheme_of"]

PartOfKind = tuple[str, str]
"""Kind of pair, a key of `kinds.KINDS`, and the part of it."""


@dataclass(frozen=True)
class NamedPart:
    """A tensor's name, taken apart.

    Attributes
    ----------
    site
        Network and module: ``"unet.mid_block.attn"``, or the module alone where the prefix names no
        network.
    kind, part
        What the tensor is.
    """

    site: str
    kind: str
    part: str


@dataclass(frozen=True, kw_only=True)
class NamingScheme:
    """One way to name the tensors of an adapter.

    Attributes
    ----------
    name
        By which it is asked for.
    says
        Who writes and reads such files.
    source
        Where the names are from.
    networks
        Prefix -> network; ``""``: none is named.
    joint
        What stands between the segments of a module's path.
    endings
        Ending -> kind and part. The first that is written for a part is the one that is used.
    besides
        Ending -> why such a tensor is not covered.
    copied
        Endings of tensors that are no part of a pair and stay true whatever becomes of the pairs.
    in_folder
        It lies in a folder with ``adapter_config.json``, which says the scales; else the file does.
    last
        Its names are any names: it is taken only where no other scheme knows one.
    """

    name: str
    says: str
    source: str
    networks: Mapping[str, str]
    joint: str = "."
    endings: Mapping[str, PartOfKind]
    besides: Mapping[str, str] = field(default_factory=dict[str, str])
    copied: tuple[str, ...] = ()
    in_folder: bool = False
    last: bool = False

    @property
    def names_networks(self) -> bool:
        """Whether a prefix says which network a module is in."""
        return any(self.networks.values())

    def part(self, name: str) -> NamedPart | None:
        """What a tensor's name says; None where this scheme has no such names."""
        prefix = _longest(self.networks, name.startswith)
        ending = _longest(self.endings, name.endswith)
        if prefix is None or ending is None or len(name) <= len(prefix) + len(ending):
            return None
        module = name[len(prefix) : len(name) - len(ending)]
        return NamedPart(self._site(prefix, module), *self.endings[ending])

    def reason(self, name: str) -> str:
        """Why a tensor is not covered."""
        ending = _longest(self.besides, name.endswith)
        return "no known name" if ending is None else self.besides[ending]

    def copies(self, name: str) -> bool:
        """Whether a tensor that is no part of a pair belongs into a copy with other pairs."""
        return _longest(self.besides, name.endswith) in self.copied

    def key(self, site: str, kind: str, part: str) -> str | None:
        """The name of a part; None where this scheme has no name for it or for the network."""
        network, _, module = site.partition(".")
        prefixes = {known: prefix for prefix, known in self.networks.items()}
        alike = next((row for row in _ALIKE if network in row), ())
        network = next((n for n in (network, *alike) if n in prefixes), "")
        module = module if network else site
        ending = next((e for e, known in self.endings.items() if known == (kind, part)), None)
        if network not in prefixes or ending is None:
            return None
        return prefixes[network] + module.replace(".", self.joint) + ending

    def _site(self, prefix: str, module: str) -> str:
        network = self.networks[prefix]
        return f"{network}.{module}" if network else module


def _longest(texts: Iterable[str], fits: Callable[[str], bool]) -> str | None:
    return max((text for text in texts if fits(text)), key=len, default=None)


_ALIKE = (
    ("unet", "transformer"),
    ("te1", "te", "text_encoder"),
    ("te2", "text_encoder_2"),
    ("te3", "text_encoder_3"),
)
"""Networks of several names, where a scheme has a prefix for another one only."""

_AB: Mapping[str, PartOfKind] = {
    ".lora_A.weight": ("lora", "a"),
    ".lora_B.weight": ("lora", "b"),
}
_DOWN_UP: Mapping[str, PartOfKind] = {
    ".lora_down.weight": ("lora", "a"),
    ".lora_up.weight": ("lora", "b"),
    ".lora_mid.weight": ("lora", "mid"),
}
_LYCORIS: Mapping[str, PartOfKind] = {
    **{f".hada_{part}": ("loha", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f".lokr_{part}": ("lokr", part)
        for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    },
}
_ALPHA: Mapping[str, PartOfKind] = {".alpha": ("", "alpha")}
_MAGNITUDE: Mapping[str, PartOfKind] = {".dora_scale": ("", "magnitude")}
_DEFAULT: Mapping[str, PartOfKind] = {
    ".lora_A.default.weight": ("lora", "a"),
    ".lora_B.default.weight": ("lora", "b"),
}
"""With the name that PEFT gives an adapter in memory."""
_WHOLE = {".diff": "a whole difference, not a pair", ".diff_b": "a difference of a bias"}
_BIAS = {
    ".lora_B.bias": "a bias of the pair (lora_bias)",
    ".lora_up.bias": "a bias of the pair",
    ".bias": "a bias",
}

_DIFFUSERS_NETWORKS = {
    f"{name}.": name
    for name in ("transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3")
}
_COMFY_NETWORKS = {"diffusion_model.": "unet", "text_encoders.": "text_encoders"}

SCHEMES: tuple[NamingScheme, ...] = (
    NamingScheme(
        name="peft",
        says="PEFT, vLLM: a folder with adapter_config.json",
        source="peft.utils.save_and_load",
        networks={"base_model.model.": ""},
        endings={
            **_AB,
            **_DEFAULT,
            ".lora_embedding_A": ("embedding", "a"),
            ".lora_embedding_B": ("embedding", "b"),
            ".lora_magnitude_vector": ("", "magnitude"),
            ".lora_magnitude_vector.weight": ("", "magnitude"),
        },
        besides={**_BIAS, ".weight": "a module saved whole (modules_to_save)"},
        copied=(".bias", ".weight"),
        in_folder=True,
    ),
    NamingScheme(
        name="kohya",
        says="kohya's sd-scripts and LyCORIS, read by ComfyUI, diffusers and the web interfaces",
        source="sd-scripts networks/lora.py, LyCORIS lycoris/kohya.py",
        networks={
            "lora_unet_": "unet",
            "lora_te_": "te",
            "lora_te1_": "te1",
            "lora_te2_": "te2",
            "lora_te3_": "te3",
        },
        joint="_",
        endings={**_DOWN_UP, **_LYCORIS, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
    ),
    NamingScheme(
        name="lycoris",
        says="LyCORIS wrappers outside sd-scripts",
        source="LyCORIS lycoris/wrapper.py",
        networks={"lycoris_": ""},
        joint="_",
        endings={**_DOWN_UP, **_LYCORIS, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
    ),
    NamingScheme(
        name="diffusers",
        says="diffusers' save_lora_weights, AI-toolkit for FLUX",
        source="diffusers loaders/lora_pipeline.py",
        networks=_DIFFUSERS_NETWORKS,
        endings={**_AB, **_ALPHA, ".lora_magnitude_vector": ("", "magnitude")},
        besides=_BIAS,
    ),
    NamingScheme(
        name="diffusers_old",
        says="diffusers before PEFT",
        source="diffusers utils/state_dict_utils.py",
        networks=_DIFFUSERS_NETWORKS,
        endings={
            "_lora.down.weight": ("lora", "a"),
            "_lora.up.weight": ("lora", "b"),
            **_ALPHA,
        },
        besides=_BIAS,
    ),
    NamingScheme(
        name="diffusers_linear",
        says="diffusers before PEFT, text encoders and modules with a layer of their own",
        source="diffusers utils/state_dict_utils.py",
        networks=_DIFFUSERS_NETWORKS,
        endings={
            ".lora_linear_layer.down.weight": ("lora", "a"),
            ".lora_linear_layer.up.weight": ("lora", "b"),
            ".lora.down.weight": ("lora", "a"),
            ".lora.up.weight": ("lora", "b"),
            **_ALPHA,
        },
        besides=_BIAS,
    ),
    NamingScheme(
        name="comfyui",
        says="ComfyUI and musubi-tuner's converter",
        source="ComfyUI comfy/weight_adapter/lora.py",
        networks=_COMFY_NETWORKS,
        endings={**_DOWN_UP, **_LYCORIS, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
    ),
    NamingScheme(
        name="ai_toolkit",
        says="AI-toolkit for Wan, Qwen-Image and their kin, the models' own releases",
        source="ai-toolkit toolkit/network_mixins.py",
        networks=_COMFY_NETWORKS,
        endings={**_AB, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
    ),
    NamingScheme(
        name="bare",
        says="modules without a network before them, as DiffSynth and releases of models write",
        source="DiffSynth-Studio diffsynth/lora",
        networks={"": ""},
        endings={**_AB, **_DEFAULT, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
        last=True,
    ),
    NamingScheme(
        name="bare_down_up",
        says="the same with down and up, as distilled models are released",
        source="ComfyUI comfy/weight_adapter/lora.py",
        networks={"": ""},
        endings={**_DOWN_UP, **_LYCORIS, **_ALPHA, **_MAGNITUDE},
        besides=_WHOLE | _BIAS,
        copied=tuple(_WHOLE),
        last=True,
    ),
)
"""Every scheme; of two that know as many names of a file the first is taken."""


def scheme_of(names: Iterable[str]) -> NamingScheme | None:
    """The scheme that knows most of the names as parts of pairs; None where none knows any."""
    known = list(names)

    def count(scheme: NamingScheme) -> int:
        parts = map(scheme.part, known)
        return sum(part is not None and bool(part.kind) for part in parts)

    for last in (False, True):
        best = max((scheme for scheme in SCHEMES if scheme.last is last), key=count)
        if count(best):
            return best
    return None
