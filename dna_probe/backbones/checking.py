"""Run the contract of a backbone on a model, and say in plain words what works with it and what does not.

The same promises that the tests hold every supported family to: what is read is true, and the model is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dna_probe.errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

Verdict = Literal["yes", "no", "not here"]
# Batches of different size may take other kernels: rounding, not sample, decides the last digits.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        promise: what is promised.
        verdict: ``yes``; ``no``; or ``not here``, where the model has nothing that it could be said of.
        told: what was found.
    """

    promise: str
    verdict: Verdict
    told: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_backbone(backbone: Backbone) -> list[Check]:
    """Every promise of the contract, tried on made-up samples; nothing is raised for one that is broken."""
    import torch

    samples = torch.from_numpy(backbone.preprocessing.trial(3))
    checks = [Check("layers are found", "yes", _described(backbone))]
    for promise, attempt in _PROMISES.items():
        try:
            verdict, told = attempt(backbone, samples)
        except Exception as error:
            verdict, told = "no", one_line(error)
        checks.append(Check(promise, verdict, told))
    return checks


def _described(backbone: Backbone) -> str:
    kinds = Counter(site.kind for site in backbone.sites.values())
    sites = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    first, last = backbone.layers[0], backbone.layers[-1]
    return f"{backbone.depth} layers, from {first.module} to {last.module}; sites: {sites}"


def _shapes(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    for count in (1, len(samples)):
        for name, activation in backbone.capture(samples[:count], list(backbone.sites)).items():
            site = backbone.sites[name]
            axis = 1 if site.layout == "nchw" or site.kind == "pattern" else -1
            if activation.shape[0] != count or activation.shape[axis] != site.width:
                return "no", f"{name} says {site.width} units and gave {tuple(activation.shape)} for {count} samples"
    return "yes", f"{len(backbone.sites)} sites, with 1 sample and with {len(samples)}"


def _unchanged_output(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    import torch

    from dna_probe.hooks import frozen

    # Patterns need attention that is not fused, which rounds otherwise.
    names = [site.name for site in backbone.sites.values() if site.kind != "pattern"]
    visit: dict[str, Callable[[Tensor], None]] = {name: lambda activation: None for name in names}
    with torch.no_grad(), frozen(backbone.module):
        expected = _flat(backbone.module(backbone.cast(samples)))
    with torch.no_grad(), backbone.visiting(visit, stop=False) as run:
        found = _flat(run(samples))
    same = len(expected) == len(found) and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    return ("yes", "bit for bit") if same else ("no", "the output differs while hooks are on")


def _samples_apart(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    import torch

    last = backbone.layers[-1].name
    together = backbone.capture(samples, [last])[last]
    alone = torch.cat([backbone.capture(samples[i : i + 1], [last])[last] for i in range(len(samples))])
    off = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))
    told = f"in a batch and alone they differ by {off:.1e} of the largest activation"
    return ("yes" if off < TOLERANCE else "no"), told


def _early_stop(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    import torch

    names = [site.name for site in backbone.layers[: max(1, backbone.depth // 2)]]
    stopped, full = (backbone.capture(samples, names, stop=stop) for stop in (True, False))
    same = all(torch.equal(stopped[name], full[name]) for name in names)
    told = f"stopped after {names[-1]}"
    return ("yes", told) if same else ("no", f"{told}, the numbers are not those of the full pass")


def _patterns(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    names = [site.name for site in backbone.sites.values() if site.kind == "pattern"]
    if not names:
        return "not here", "no attention over all tokens is exposed: layers are located by energy maps"
    patterns = backbone.capture(samples, names)
    off = max(float((pattern.sum(-1) - 1).abs().max()) for pattern in patterns.values())
    lowest = min(float(pattern.min()) for pattern in patterns.values())
    good = off < TOLERANCE and lowest >= 0
    return ("yes" if good else "no"), f"in {len(names)} layers; rows are off 1 by {off:.1e} at most"


def _gradients(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    import torch

    kept: dict[str, Tensor] = {}
    root = torch.zeros((), device=backbone.device, requires_grad=True)

    def enter(name: str, first: bool) -> Callable[[Tensor], Tensor]:
        def visit(activation: Tensor) -> Tensor:
            # The backbone is frozen: the graph begins at the first layer.
            kept[name] = activation + root.to(activation.dtype) if first else activation
            return kept[name]

        return visit

    names = [site.name for site in backbone.layers]
    visit = {name: enter(name, position == 0) for position, name in enumerate(names)}
    with torch.enable_grad(), backbone.visiting(visit) as run:
        run(samples)
        slopes = torch.autograd.grad(kept[names[-1]].float().square().mean(), [kept[name] for name in names])
    dead = [name for name, slope in zip(names, slopes, strict=True) if not slope.any()]
    if dead:
        return "no", f"none arrives at {', '.join(dead[:3])}"
    return "yes", f"from the last layer back to all {len(names)}"


def _left_alone(backbone: Backbone, samples: Tensor) -> tuple[Verdict, str]:
    before = _state(backbone)
    backbone.capture(samples, list(backbone.sites))
    changed = [name for name, value in _state(backbone).items() if value != before[name]]
    return ("no", f"changed: {', '.join(changed)}") if changed else ("yes", "hooks, modes, gradients and weights")


def _state(backbone: Backbone) -> dict[str, Any]:
    from dna_probe.backbones.contract import hash_state

    module = backbone.module
    return {
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()],
        "modes": [m.training for m in module.modules()],
        "gradients": [p.requires_grad for p in module.parameters()],
        "weights": hash_state(module.state_dict()),
    }


def _flat(output: Any) -> list[Tensor]:
    """Every tensor of a model's output, in order."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return [tensor for part in parts for tensor in _flat(part)]


_PROMISES: dict[str, Callable[[Backbone, Tensor], tuple[Verdict, str]]] = {
    "every site fires, with the shape it states": _shapes,
    "the output does not change while it is watched": _unchanged_output,
    "samples do not leak into each other": _samples_apart,
    "stopping early gives the same numbers": _early_stop,
    "attention patterns are probabilities": _patterns,
    "gradients come back to every layer": _gradients,
    "the model is left as it was found": _left_alone,
}
