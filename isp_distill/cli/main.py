"""``isp-distill``: the grammar of the command line, and what a user sees where a command fails."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from isp_distill.cli import folders, pictures, prediction, training
from isp_distill.cli.arguments import HelpFormatter
from isp_distill.doctor import doctor
from isp_distill.errors import BackendError, RawError
from isp_distill.jobs.interruption import Terminated, end_process, last_words
from isp_distill.version import __version__


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="isp-distill", description="Train vision models on RAW.")
    top.add_argument("--version", action="version", version=f"isp-distill {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=HelpFormatter,
        )
        one.set_defaults(run=run)
        return one

    training.add_train(command)
    training.add_evaluate(command)
    prediction.add_predict(command)
    folders.add_pack(command)
    folders.add_verify(command)
    training.add_export(command)
    pictures.add_render(command)
    pictures.add_unprocess(command)
    command("doctor", _doctor, "what serves which operation on this machine, and why not")
    return top


def _doctor(_: argparse.Namespace) -> None:
    doctor()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is one line on standard error and status 2.

    Ctrl-C and SIGTERM are one line too, and status 130 or 143.

    Args:
        arguments: without the program's name. None for those of this process, which then is ended
            here where it is stopped: it waits for no thread, and for nobody to read its output.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file's name may hold what is no text in any encoding. A caller's streams stay so.
        if arguments is None and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        chosen = parser().parse_args(arguments)
        chosen.run(chosen)
    except BrokenPipeError:
        # Whoever read it, head for one, has seen enough; nothing is left to be flushed.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (
        RawError,
        BackendError,
        ValueError,
        TypeError,
        OSError,
        ImportError,
        RuntimeError,
    ) as error:
        print(f"isp-distill: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stopped:
        status = 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
        # On a line of its own: a bar may have been drawn.
        text = f"\nisp-distill: {str(stopped) or 'stopped'}"
        if arguments is not None:
            print(text, file=sys.stderr)
            return status
        if os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
            last_words(text)
        end_process(status)
    return 0
