"""`rapid-dist ...`: reads the command line, calls one function, prints what it returned.

Exit codes: 0 done, 2 wrong configuration (nothing started), 3 budget refused, 4 release refused,
1 anything else. An error is one line on stderr. ``--debug`` adds the traceback, which may quote
private values and therefore does not come by itself (P9).

Imports are inside the commands, so that ``--help`` and a typing error answer at once.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from rapid_dist.cli.audit import add_audit
from rapid_dist.cli.compare import add_compare
from rapid_dist.cli.gallery import add_gallery
from rapid_dist.cli.generate import add_generate
from rapid_dist.cli.ledger import add_ledger
from rapid_dist.cli.release import add_release
from rapid_dist.cli.stages import add_stages
from rapid_dist.cli.status import add_status
from rapid_dist.cli.submit import add_submit
from rapid_dist.cli.sweep import add_sweep
from rapid_dist.environment import settle_environment
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.runtime.signals import stop_on_sigterm
from rapid_dist.secret import masked

INTERRUPTED = 130  # What typer makes of Ctrl-C.


def main(arguments: Sequence[str] | None = None, *, app: typer.Typer | None = None) -> int:
    """Runs the command line, ours unless another is given, and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    settle_environment()  # Before a command imports what reads it.
    try:
        with stop_on_sigterm():  # So that whatever is open is closed, and temporary files go.
            code = (app or build_app())(arguments, prog_name="rapid-dist", standalone_mode=False)
            code = code or 0
    except RapidError as error:
        return _refused(str(error), error.exit_code, debug)
    except typer.TyperException as error:  # A command line that cannot be read, or none at all.
        line = error.format_message()
        line = line and f"{line} See --help."
        return _refused(line, error.exit_code, debug) if line else error.exit_code
    except ModuleNotFoundError as error:
        return _refused(
            f"{error.name} is not installed. Install 'rapid-dist[train]', or 'rapid-dist[serve]' "
            "to draw from released models alone.",
            ConfigError.exit_code,
            debug,
        )
    except Exception as error:
        # Not its message: an unforeseen error of a private stage may quote what it worked on. The
        # system's own words ("No space left on device") quote nothing.
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        return _refused(
            f"{type(error).__name__}{why} in {place.name} ({place.filename}:{place.lineno}). Run "
            "the same command again to go on, or with --debug for the traceback.",
            1,
            debug,
        )
    if code == INTERRUPTED:
        return _refused("Stopped. Run the same command again to go on.", 1, debug)
    return int(code)


def run_command(name: str) -> NoReturn:
    """Runs one command with this process's arguments; what a script in jobs/ does."""
    sys.exit(main([name, *sys.argv[1:]]))


def build_app() -> typer.Typer:
    """Returns the command line."""
    app = typer.Typer(
        name="rapid-dist",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Image generators with a differential-privacy guarantee. To resume, run again.",
    )
    add_stages(app)
    add_generate(app)
    add_gallery(app)
    add_sweep(app)
    add_compare(app)
    add_submit(app)
    add_status(app)
    add_audit(app)
    add_ledger(app)
    add_release(app)
    return app


def _refused(line: str, code: int, debug: bool) -> int:
    if debug:
        print(masked(traceback.format_exc()), file=sys.stderr, end="")
    print(f"rapid-dist: {masked(line)}", file=sys.stderr)
    return code
