"""`python -m jcmr.prepare <source> --out=...`: downloaded data to what a source reads.

A source that needs preparation is a file of jcmr/data/prepare with `add_arguments(parser)` and
`run(args)`. Nothing is downloaded here. A command that was stopped leaves nothing that looks
finished; run it again.
"""

import argparse
import importlib
import sys
from pathlib import Path

SOURCES = ("coco", "cub", "captioned_folder", "precomp")


def main(argv: list[str]) -> None:
    """Runs one preparation; an error is a sentence on stderr and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m jcmr.prepare",
        description="Downloaded data to what config.data.source reads from config.data.dir.",
    )
    sources = parser.add_subparsers(required=True, metavar="{" + ",".join(SOURCES) + "}")
    for name in SOURCES:
        module = importlib.import_module(f"jcmr.data.prepare.{name}")
        origin = getattr(module, "ORIGIN", "")
        about = f"{module.__doc__} {origin}"
        source = sources.add_parser(name, help=module.__doc__, description=about)
        source.add_argument("--out", required=True, type=Path, help="the folder to write")
        module.add_arguments(source)
        source.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main(sys.argv[1:])
