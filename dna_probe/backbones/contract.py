"""A frozen model, the sites where it is read, and the preprocessing it wants: the same contract for every source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dna_probe.backbones import discovery, families, plain, transformer_attention, transformer_lens
from dna_probe.backbones import timm as timm_families
from dna_probe.errors import BackboneError, SiteError
from dna_probe.hooks import attached, eager_attention, frozen, refuse_compiled, unwrap
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.sites import Site, resolve_site

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformer_lens import ActivationCache

    from dna_probe.batches import Reader

# Settings of modules that change how something is computed, and not what.
SWITCHES = frozenset({"training", "fused_attn", "grad_checkpointing"})


class Backbone:
    """A frozen model, its sites and its preprocessing.

    Constructing it runs one forward pass on trial images to see which sites fire. The module is never changed: it runs
    in evaluation mode without parameter gradients only inside ``visiting`` and ``capture``, and is put back after.

    Attributes:
        name: what the user called it, or the architecture's name.
        family: class name of the architecture.
        module: the model itself, without ``torch.compile`` and ``DataParallel`` shells.
        preprocessing: from an image to its pixels, from a text to its tokens, or from a recording to what it takes.
        sites: name -> ``Site`` in the order in which they fire.
        num_prefix_tokens: tokens before the patches; 0 for convolutional models.
        grid: (rows, columns) of the patches at the input size; None where layers differ in it or tokens have no raster.
        notes: what was assumed, for people.
        spec: the string that ``open_backbone`` would open it with again, or None for a module object.

    Raises:
        BackboneError: the model cannot run on a trial image, has no layers, or was compiled in place; or what is given
            as preprocessing is none.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Reader,
        name: str = "",
        *,
        spec: str | None = None,
        weights: str | None = None,
        random_weights: bool = False,
        notes: Iterable[str] = (),
    ):
        if isinstance(preprocessing, type) or not all(hasattr(preprocessing, name) for name in ("modality", "trial")):
            given = preprocessing if isinstance(preprocessing, type) else type(preprocessing)
            raise BackboneError(
                f"A {given.__name__} is no preprocessing",
                "",
                "Give Preprocessing(...), TextPreprocessing(...) or AudioPreprocessing(...)",
            )
        module = transformer_lens.inside(unwrap(module), preprocessing.modality)
        refuse_compiled(module)
        self.module, self.preprocessing = module, preprocessing
        self.family = type(module).__name__
        self.name = name or self.family
        self.spec, self.weights, self.random_weights = spec, weights, random_weights
        with transformer_attention.watching(module) as attention:
            record = discovery.watch(module, preprocessing)
        own = families.family_of(module) or transformer_lens.family_of(module)
        layers = own.find_layers(module, record) if own else timm_families.find_layers(module, record)
        layers = layers or plain.find_layers(module, record)
        if layers is None:
            raise discovery.no_layers(module)
        found = discovery.find_sites(module, layers, record, preprocessing)
        found = transformer_attention.complete(module, found, record, attention)
        if own is not None:
            found = own.declare(found, record, preprocessing)
        self.sites: dict[str, Site] = dict(found.sites)
        self.num_prefix_tokens, self.grid = found.num_prefix_tokens, found.grid
        self.model_notes = tuple(notes)
        self.notes = (*self.model_notes, *found.notes)
        self._hash: tuple[tuple, str] | None = None

    @property
    def device(self) -> torch.device:
        import torch

        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights, to which pixels are cast."""
        import torch

        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def layers(self) -> tuple[Site, ...]:
        """The depth axis: one residual or stage site per layer."""
        return tuple(site for site in self.sites.values() if site.kind in ("residual", "stage"))

    @property
    def depth(self) -> int:
        return len(self.layers)

    def mlp(self, layer: int) -> Site | None:
        """The MLP site of a layer, or None where it has none."""
        return self.sites.get(f"blocks.{layer}.mlp.hook_post")

    def heads(self, layer: int) -> Site | None:
        """The site of a layer's attention heads, side by side before their projection, or None where it has none."""
        return self.sites.get(f"blocks.{layer}.attn.hook_z")

    def pattern(self, layer: int) -> Site | None:
        """The attention site of a layer, or None where attention is not over all tokens or not exposed."""
        return self.sites.get(f"blocks.{layer}.attn.hook_pattern")

    def grid_of(self, patches: int) -> tuple[int, int]:
        """(rows, columns) of this many patches: the grid where it has so many, else one of the image's aspect, else one
        row, as of sequences."""
        if self.grid is not None and self.grid[0] * self.grid[1] == patches:
            return self.grid
        size = self.preprocessing.input_size if isinstance(self.preprocessing, Preprocessing) else None
        return (size and discovery.grid_of(patches, size)) or (1, patches)

    @property
    def weight_hash(self) -> str:
        """SHA-256 over the state dict: sorted names, types, shapes and bytes.

        Computed again if the weights changed, which torch tells of all changes but those through ``parameter.data``.
        """
        # The parameters themselves: else each call makes new tensors of them.
        state = self.module.state_dict(keep_vars=True)
        stamp = tuple((name, id(value), *_version(value)) for name, value in state.items())
        if self._hash is None or self._hash[0] != stamp:
            self._hash = stamp, hash_state(state)
        return self._hash[1]

    @property
    def structure(self) -> list[Any]:
        """What the weights do not tell: the class of each module and its plain settings, such as the number of heads.

        Switches that change how something is computed, and not what, are left out.
        """
        return [
            [name, type(module).__qualname__, {k: v for k, v in vars(module).items() if _is_setting(k, v)}]
            for name, module in self.module.named_modules()
        ]

    def identity(self) -> dict[str, Any]:
        """What an artefact has to know to find the same backbone again."""
        return {
            "name": self.name,
            "family": self.family,
            "weight_hash": self.weight_hash,
            "spec": self.spec,
            "weights": self.weights,
            "random_weights": self.random_weights,
        }

    def capture(self, inputs: Any, names: Iterable[str], stop: bool = True) -> dict[str, Tensor]:
        """Activations of the named sites for a batch.

        Args:
            inputs: what the preprocessing gives, with a batch axis, as tensor or array: pixels (n, 3, height, width),
                token numbers (n, length), or what an audio model takes. Floats are cast to the model's type.
            names: site names.
            stop: end the forward pass at the deepest of them.

        Returns:
            Own copies on the model's device, without graph; half precision comes back as float32. Patterns are
            (n, heads, queries, keys), computed with fused attention switched off.

        Raises:
            SiteError: an unknown name, none at all, or a site that did not fire.
        """
        import torch

        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def visit(activation: Tensor) -> None:
                copy = activation.detach().clone()
                kept[name] = copy.float() if copy.dtype in (torch.float16, torch.bfloat16) else copy

            return visit

        names = [names] if isinstance(names, str) else list(names)
        with torch.no_grad(), self.visiting({name: keep(name) for name in names}, stop) as run:
            run(inputs)
        return {name: kept[name] for name in names}

    def to_activation_cache(self, inputs: Any, names: Iterable[str] | None = None) -> ActivationCache:
        """``capture`` of the sites named, or of all, as a ``transformer_lens.ActivationCache``."""
        captured = self.capture(inputs, list(self.sites) if names is None else names)
        return transformer_lens.to_activation_cache(captured, self)

    @contextmanager
    def visiting(
        self, visit: Mapping[str, Callable[[Tensor], Tensor | None]], stop: bool = True
    ) -> Iterator[Callable[[Any], Any]]:
        """A context whose function runs a batch and calls ``visit[name](activation)`` at each site named.

        The visitor sees the live tensor, and what it returns (if anything) replaces the activation. The model is frozen
        inside, fused attention is off only if a pattern is visited, and all is put back after, whatever happens.

        Yields:
            ``run(inputs)``: the model's output, or None where the forward was stopped at the deepest site.
        """
        for name in visit:
            resolve_site(name, self.sites)
        if not visit:
            raise SiteError("No sites were asked for", fix=f"Name at least one, for example {self.layers[-1].name}")
        with ExitStack() as stack:
            stack.enter_context(frozen(self.module))
            if any(self.sites[name].kind == "pattern" for name in visit):
                stack.enter_context(eager_attention(self.module))
            run = stack.enter_context(attached(self.module, self.sites, visit, stop))
            yield lambda inputs: run(self.cast(inputs))

    def cast(self, inputs: Any) -> Tensor:
        """Inputs on the model's device, floats in its type."""
        import torch

        if isinstance(inputs, Mapping):
            raise SiteError(
                "A batch is one tensor, not a dictionary", fix="Give inputs['pixel_values'] or inputs['input_ids']"
            )
        inputs = torch.as_tensor(inputs).to(self.device)
        return inputs.to(self.dtype) if inputs.is_floating_point() else inputs

    def __repr__(self) -> str:
        takes = self.preprocessing.modality
        if isinstance(self.preprocessing, Preprocessing):
            takes = f"input {' x '.join(map(str, self.preprocessing.input_size))}"
        kinds = [site.kind for site in self.sites.values()]
        parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"Backbone {self.name} ({self.family}): {self.depth} layers, {takes}, sites: {parts}"


def _is_setting(name: str, value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    plain = all(part is None or isinstance(part, int | float | str) for part in parts)
    return plain and not name.startswith("_") and name not in SWITCHES


def hash_state(state: Mapping[str, Any]) -> str:
    """SHA-256 over sorted names, types, shapes and bytes of a state dict."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, torch.Tensor):
            digest.update(f"{name}|{value!r}\n".encode())
            continue
        value = value.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _version(value: Any) -> tuple:
    import torch

    # Tensors made in inference mode keep no version counter, and cannot be trained either.
    if not isinstance(value, torch.Tensor) or value.is_inference():
        return ()
    return value.data_ptr(), value._version
