"""Official PCME checkpoints (github.com/naver-ai/pcme)."""

from jcmr.convert import rules
from jcmr.convert.resnet import resnet_rules
from jcmr.convert.rules import Path, Rule


def attention_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.SelfAttention`."""
    return rules.merged(rules.linear((*path, w), f"{name}{w}", bias=False) for w in ("w_1", "w_2"))


def pie_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.PIENet`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.layer_norm((*path, "layer_norm"), f"{name}layer_norm"),
    }


def image_uncertainty_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.ImageUncertainty`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.linear((*path, "fc2"), f"{name}fc2"),
    }


def text_uncertainty_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.TextUncertainty`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.bigru((*path, "rnn"), f"{name}rnn"),
    }


def image_head_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`models.pcme.ImageHead`."""
    return {
        **rules.linear((*path, "fc"), f"{name}fc"),
        **pie_rules((*path, "pie_net"), f"{name}pie_net."),
        **image_uncertainty_rules((*path, "uncertain_net"), f"{name}uncertain_net."),
    }


def text_rules(
    path: Path, name: str, attention: bool = True, probabilistic: bool = True
) -> dict[Path, Rule]:
    """`models.pcme.TextTower`."""
    parts = [
        {("params", *path, "embed", "embedding"): rules.copied(f"{name}embed.weight")},
        rules.bigru((*path, "rnn"), f"{name}rnn"),
    ]
    if attention:
        parts.append(pie_rules((*path, "pie_net"), f"{name}pie_net."))
    if probabilistic:
        parts.append(text_uncertainty_rules((*path, "uncertain_net"), f"{name}uncertain_net."))
    return rules.merged(parts)
