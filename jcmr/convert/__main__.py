"""`python -m jcmr.convert <kind> --checkpoint=... --out=...`: official weights to ours.

A kind is a file of this package with `add_arguments(parser)` and `run(args)`, which gives back
(variables, config, vocabulary or None).
"""

import argparse
import importlib
import sys
from pathlib import Path

from jcmr.convert.folder import save_converted

KINDS = ("bert", "dgcnn", "imram", "meshnet", "pcme", "resnet", "scan", "vse_infty")


def main(argv: list[str]) -> None:
    """Runs one conversion; an error is a sentence on stderr and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m jcmr.convert",
        description="Official weights to variables of jcmr; train from them with "
        "config.train.init_from.",
    )
    kinds = parser.add_subparsers(required=True, metavar="{" + ",".join(KINDS) + "}")
    for name in KINDS:
        module = importlib.import_module(f"jcmr.convert.{name}")
        kind = kinds.add_parser(name, help=module.__doc__)
        kind.add_argument("--checkpoint", required=True, help=".pth, .pt, .tar, .safetensors")
        kind.add_argument("--out", required=True, type=Path, help="the folder to write")
        module.add_arguments(kind)
        kind.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        variables, config, vocabulary = args.run(args)
        save_converted(args.out, variables, config, vocabulary)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main(sys.argv[1:])
