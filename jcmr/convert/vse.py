"""Official VSE++ and VSE-infinity checkpoints (github.com/fartashf/vsepp, woodfrog/vse_infty)."""

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule


def gpo_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.gpo.GPO`."""
    return {
        **rules.bigru((*path, "gru"), f"{name}gru"),
        **rules.linear((*path, "linear"), f"{name}linear", bias=False),
    }


def infty_image_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`models.vse.ImageTower` of VSE-infinity on regions."""
    return {
        **rules.linear((*path, "project"), f"{name}fc"),
        **rules.linear((*path, "mlp", "first"), f"{name}mlp.layers.0"),
        **rules.batch_norm((*path, "mlp", "norm"), f"{name}mlp.bns.0"),
        **rules.linear((*path, "mlp", "second"), f"{name}mlp.layers.1"),
        **gpo_rules((*path, "pool"), f"{name}gpool."),
    }
