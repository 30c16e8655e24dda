"""From a trained model to a repository on the Hub, and back: `python -m modeling_sleep.hub_upload --help`.

    contents.py       which files belong into a repository, and nothing else
    card.py           the model card, rendered from the run's `results.json`, never typed by hand
    plot.py           the picture on it
    export.py         a folder that loads with `trust_remote_code=True`, without this package
    check_files.py    that it holds what it must, and nothing that should not go out
    verify.py         that it is the same model without this package, too
    clean_room.py     what verify runs in a process that has never heard of this package
    hub.py            what the Hub answers, in words that say what to do
    push.py           one commit, or what it would be
    pull.py           a repository as a folder
    __main__.py       the command line

`Trainer(push_to_hub=True)` and `model.push_to_hub()` give repositories that load, too; these have a card and checks.
"""
