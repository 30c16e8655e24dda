"""From a trained model to a repository on the Hub.

Here will live the four steps that publish a model: *export* (write a folder that loads with `trust_remote_code=True`
and without this package), the *model card* (filled from the configuration and from measured results, never by hand),
the *checks* (load the exported folder in a fresh process and compare its logits with the original's) and the *push*.
"""
