"""What TransformerLens's cache costs over any backbone, as ratios to raw hooks measured side by side in one run.

python benchmarks/activation_cache.py                        random weights, two threads
python benchmarks/activation_cache.py --model MODEL ...      other models
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from collection import paired
from rich.console import Console
from rich.table import Table

from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.backbones.transformer_lens import as_hooked
from dna_probe.hooks import frozen, nth_tensor


def main(
    model: Annotated[list[str] | None, typer.Option()] = None,
    batch: Annotated[int, typer.Option()] = 8,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians of the paired ratios are printed.")] = 15,
) -> None:
    torch.set_num_threads(2)
    table = Table("model", "what", "measured", "to reach", title=f"random weights, batch {batch}, two threads")
    for name in model or ("vit_small_patch16_224", "convnext_atto", "nano"):
        for what, value, goal in ratios(open_backbone(name, random_weights=True), batch, rounds):
            table.add_row(name, what, f"{value:.3f}", goal)
    Console(width=120).print(table)


def ratios(backbone: Backbone, batch: int, rounds: int) -> list[tuple[str, float, str]]:
    """Every site but patterns, which raw hooks do not see under fused attention."""
    facade = as_hooked(backbone)
    names = [site.name for site in backbone.sites.values() if site.kind != "pattern"]
    pixels = torch.randn(batch, 3, *backbone.preprocessing.input_size)

    def cached() -> None:
        with torch.no_grad():
            facade.run_with_cache(pixels, names_filter=names)

    def raw(keep: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), frozen(backbone.module), hooked(backbone, names, keep):
                backbone.module(pixels)

        return run

    def bare() -> None:
        with torch.no_grad(), frozen(backbone.module):
            backbone.module(pixels)

    return [
        (f"run_with_cache of {len(names)} sites / raw hooks that copy", paired(raw(copied), cached, rounds), "<= 1.1"),
        ("the same / raw hooks that keep views (unsafe)", paired(raw(torch.Tensor.detach), cached, rounds), ""),
        ("the same / bare forward", paired(bare, cached, rounds), ""),
    ]


def copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


@contextmanager
def hooked(
    backbone: Backbone, names: list[str], keep: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """What a user writes by hand: one hook per module, and nothing else."""
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for name in names:
        site = backbone.sites[name]
        module = backbone.module.get_submodule(site.module)

        def on_output(module, args, output, name=name, part=site.part):
            kept[name] = keep(nth_tensor(output, part))

        def on_input(module, args, name=name, part=site.part):
            kept[name] = keep(nth_tensor(args, part))

        if site.side == "output":
            handles.append(module.register_forward_hook(on_output))
        else:
            handles.append(module.register_forward_pre_hook(on_input))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    typer.run(main)
