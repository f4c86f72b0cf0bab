"""Command lines of `python -m jcmr.launch`, each in a fork of one process that has imported much.

python -m tests.forked_launches < lines.json > found.json

A start takes seconds of imports; a command line with a mistake in it takes little else.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile

IMPORTED = (
    "jcmr.data.sources.scenes",
    "jcmr.eval.graph_report",
    "jcmr.eval.report_objects",
    "jcmr.models.pcme",
    "jcmr.serve.export",
    "jcmr.serve.knowledge",
    "jcmr.train.loop",
)
"""Most of what `jcmr.launch` imports; it is itself imported in the forks, as the main program."""


def launch(options: list[str]) -> tuple[int, str]:
    """(exit status, all that was said) of one command line."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["jcmr.launch", *options]
            runpy.run_module("jcmr.launch", run_name="__main__", alter_sys=True)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read().decode()


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    print(json.dumps([launch(options) for options in json.load(sys.stdin)]))
