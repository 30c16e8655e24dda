"""What a checkpoint says of the code and of the transformers that it was made with."""

from importlib import metadata

from packaging.requirements import Requirement

import modeling_sleep


DISTRIBUTION = "modeling-sleep"
CODE_FIELD = "modeling_sleep_version"
TRANSFORMERS_FIELD = "transformers_range"


def transformers_range() -> str:
    """The releases of transformers that this package is tested with, such as `">=5.14.0,<5.24"`."""
    requirements = map(Requirement, metadata.requires(DISTRIBUTION))
    (transformers,) = (r for r in requirements if r.name == "transformers" and r.marker is None)
    return ",".join(sorted(map(str, transformers.specifier), reverse=True))


def version_fields() -> dict[str, str]:
    """The fields of `config.json`."""
    return {CODE_FIELD: modeling_sleep.__version__, TRANSFORMERS_FIELD: transformers_range()}
