"""The command line. See the package's docstring for what is where.

python -m modeling_sleep.hub_upload export runs/rule110-mini rule110
python -m modeling_sleep.hub_upload verify rule110
python -m modeling_sleep.hub_upload push rule110 user/rule110 --dry-run
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .export import export
from .push import LOG_IN, HubError, push
from .verify import verify


OK, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 a check failed, or the Hub refused or could not be reached; 2 the command cannot be "
    "carried out as given; 130 stopped from the keyboard."
)


def run_export(args) -> int:
    print(f"loading {args.folder}")
    for note in export(args.folder, args.out, overwrite=args.overwrite, license=args.license):
        print(f"note    {note}")
    print(f"wrote   {args.out}\nnext    python -m modeling_sleep.hub_upload verify {args.out}")
    return OK


def run_verify(args) -> int:
    return OK if verify(args.out) else FAILED


def run_push(args) -> int:
    # What can be known at once, as the checks may take a while.
    try:
        validate_repo_id(args.repo)
        if "/" not in args.repo:
            raise HFValidationError(f"{args.repo!r} does not say whose it is.")
    except HFValidationError as error:
        raise ValueError(f"{error} A name looks like USER/NAME, without https://.") from None
    if not args.dry_run and get_token() is None:
        raise HubError(f"No token was found. {LOG_IN}.")
    if not verify(args.out):
        print("nothing is sent", file=sys.stderr)
        return FAILED
    names = ("private", "revision", "message", "force_card", "dry_run")
    push(args.out, args.repo, **{name: getattr(args, name) for name in names})
    return OK


def build_parser() -> argparse.ArgumentParser:
    about = "From a trained model to a repository on the Hub."
    parser = argparse.ArgumentParser(prog="python -m modeling_sleep.hub_upload", description=about, epilog=EXIT_CODES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, run, text):
        command = commands.add_parser(name, help=text, description=text, epilog=EXIT_CODES)
        command.set_defaults(run=run)
        return command

    command = add("export", run_export, "write a folder that loads anywhere, with code, card and nothing else")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="what save_pretrained or a Trainer wrote")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet, or empty")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    licence = "as the Hub names it (apache-2.0, ...); default: what FOLDER's card says, or none"
    command.add_argument("--license", metavar="ID", help=licence)

    command = add("verify", run_verify, "check an exported folder, in a process without this package too")
    command.add_argument("out", type=Path, metavar="OUT", help="what export wrote")

    command = add("push", run_push, "verify a folder and send it to the Hub")
    command.add_argument("out", type=Path, metavar="OUT", help="what export wrote; its card is given the name REPO")
    command.add_argument("repo", metavar="REPO", help="USER/NAME; it is made if it is not there")
    command.add_argument("--private", action="store_true", help="make it private; refused if it is there and public")
    command.add_argument("--revision", metavar="BRANCH", help="made from main if it is not there (default: main)")
    command.add_argument("--dry-run", action="store_true", help="print what would go up, and write nothing")
    command.add_argument("--message", metavar="TEXT", help="of the commit")
    command.add_argument("--force-card", action="store_true", help="overwrite a card that was edited on the Hub")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a head is left out in loading, say, is no news
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped; the same command does what is left to do", file=sys.stderr)
        return STOPPED
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, HubError) else REFUSED
    finally:
        logging.set_verbosity(verbosity)


if __name__ == "__main__":
    sys.exit(main())
