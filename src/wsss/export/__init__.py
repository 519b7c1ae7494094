"""From a run to a bundle: ONNX graphs, parity with torch, TensorRT engines, Triton repositories.

The package can be called: `wsss.export(run, out)` is `wsss.export.bundle.export(run, out)`. The
public function and this package have the same name, and whichever is imported last would win;
a package that can be called is right in every order.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .bundle import export

        return export(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        from .bundle import export

        return signature(export)


# https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access
sys.modules[__name__].__class__ = _CallablePackage
