"""mypyc_attr: what mypyc reads of a class, without a package that is needed at run time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_attributes):
        """Return the class unchanged; only mypyc looks at its attributes."""
        return lambda decorated: decorated
