"""`transformers serve` with models that sleep: an OpenAI-compatible server.

    pip install ".[serve]"
    python -m modeling_sleep.serve MODEL --port 8000        # options are those of `transformers serve`

The server looks a model's class up in transformers by its name, where a class of ours is not; here it is. Every
request brings the whole conversation, which is read anew: the cache stays within one window, but a turn costs as much
as all turns before. Where that is too much, `examples/chat.py` keeps a memory and reads each turn once.
"""

import sys

import transformers
from transformers.utils.import_utils import is_serve_available

from .heads_sleep import SleepForCausalLM


REFUSED = {
    "--continuous-batching": "keeps keys and values in pages, and this model's cache, which sleeps, cannot be paged",
    "--compile": "asks for a static cache, which does not know how to sleep",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for option, reason in REFUSED.items():
        if option in arguments:
            print(f"error: `{option}` {reason}. Serve without it.", file=sys.stderr)
            return 1
    if not is_serve_available():
        print('error: a server needs `pip install ".[serve]"`.', file=sys.stderr)
        return 1
    from transformers.cli.transformers import app  # which needs what was just looked for

    setattr(transformers, SleepForCausalLM.__name__, SleepForCausalLM)
    app(args=["serve", *arguments], prog_name="python -m modeling_sleep")
    return 0


if __name__ == "__main__":
    sys.exit(main())
