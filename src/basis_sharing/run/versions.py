"""The versions of the software that results depend on."""

from importlib.metadata import version

import basis_sharing


def software_versions() -> dict[str, str]:
    """Return the versions of this package, torch and transformers."""
    return {"basis-sharing": basis_sharing.__version__, **{name: version(name) for name in ("torch", "transformers")}}
