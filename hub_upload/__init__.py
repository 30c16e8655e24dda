"""From a trained model to a repository on the Hub: `python -m modeling_sleep.hub_upload --help`.

    contents.py         which files belong into a repository, and nothing else
    card_template.md    the model card
    card.py             what stands on it: the run's `results.json`, the configuration, what the base's card says
    export.py           a folder that loads with `trust_remote_code=True`, without this package
    clean_room.py       a process that has never heard of this package
    verify.py           that a folder holds what it must and is the same model in the clean room
    push.py             to the Hub
    __main__.py         the command line

`Trainer(push_to_hub=True)` and `model.push_to_hub()` give repositories that load, too; these have a card and checks.
"""
