"""Writes docs/api.md from the docstrings of the public names: `python docs/build_api_page.py`."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import wsss
from wsss import errors, models

HEAD = """# Python API

The names on this page are public: those of `wsss`, the networks in `wsss.models`, and the error
classes in `wsss.errors`. Everything else in the package is internal and may change without notice.

`import wsss` is fast; each name imports what it needs (torch, onnx) when it is first used. Errors
name the argument to change in backticks. This page is generated from the docstrings by
`python docs/build_api_page.py`.
"""
GROUPS = {
    "Images and label maps": ("read_image", "write_label_map"),
    "Training and evaluation": ("read_image_set", "load_recipe", "train", "evaluate"),
    "Using a trained model": ("open_model", "Predictor", "Prediction", "label_images", "export"),
    "Refinement": (
        "make_seed",
        "affinity_from_features",
        "affinity_from_boundary",
        "propagate",
        "DenseCrf",
        "CrfSettings",
    ),
}
_HEADING = re.compile(r"(Args|Returns|Raises|Attributes):")
_TITLES = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Raises": "Raises",
}
_WIDTH = 100


class Docstring(NamedTuple):
    """A docstring in its parts; sections by their heading, as text."""

    summary: str
    body: list[str]
    sections: dict[str, str]

    def entries(self, heading: str) -> dict[str, str]:
        """What a section says of each name in it, in its order."""
        found: dict[str, str] = {}
        names: list[str] = []
        for line in self.sections.get(heading, "").splitlines():
            if line[:1].strip():
                left, _, text = line.partition(":")
                names = [name.strip() for name in left.split(",")]
                found |= dict.fromkeys(names, text.strip())
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
        return found


def main() -> None:
    (Path(__file__).parent / "api.md").write_text(render(), encoding="utf-8")


def render() -> str:
    """The page as markdown."""
    parts = [HEAD]
    results: dict[str, type] = {}
    for title, names in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for name in names:
            item = public_object(name)
            parts += entry(f"wsss.{name}", item)
            results |= {each.__name__: each for each in results_of(item)}
    parts.append("\n## Results\n\nWhat the functions above return.\n")
    for kind in results.values():
        parts += entry(kind.__name__, kind, with_signature=False)
    parts.append(f"\n## Networks: `wsss.models`\n\n{_prose(models.__doc__ or '', 1)}\n")
    for name in sorted(models.__all__, key=lambda name: (name != "build_backbone", name)):
        parts += entry(f"wsss.models.{name}", getattr(models, name), ("forward",))
    parts.append(f"\n## Errors: `wsss.WsssError` and `wsss.errors`\n\n{_doc(wsss.WsssError)}\n\n")
    for each in _error_classes():
        base = each.__bases__[0].__name__
        kind = "" if base == "WsssError" else f" (a `{base}`)"
        parts.append(_item(f"- `{each.__name__}`{kind}: {_doc(each)}"))
    return "".join(parts).rstrip() + "\n"


def public_object(name: str) -> Any:
    """What a name of `wsss` stands for; of the package that can be called, what is called."""
    found = getattr(wsss, name)
    if inspect.ismodule(found) and callable(found):
        from wsss.export.bundle import export

        return export
    return found


def results_of(item: Any) -> Iterator[type]:
    """Data classes of ours that a function returns."""
    if inspect.isfunction(item):
        kind = item.__annotations__.get("return")
        if dataclasses.is_dataclass(kind) and kind.__name__ not in wsss.__all__:
            yield kind


def entry(
    name: str, item: Any, methods: tuple[str, ...] | None = None, with_signature: bool = True
) -> list[str]:
    """A function, or a class with its methods (None: the public ones)."""
    doc = parse(inspect.getdoc(item) or "")
    is_data = dataclasses.is_dataclass(item)
    lines = [f"\n### `{name}`\n"]
    is_made = not inspect.isclass(item) or inspect.isfunction(
        item.__init__
    )  # else: by `open_model`
    if with_signature and not is_data and is_made:
        lines.append(f"\n```python\n{signature(name, item)}\n```\n")
    if is_data:
        doc.sections.pop("Attributes", None)  # they are told below, with their types
    lines.append(_described(doc))
    if is_data:
        lines.append("\n**Fields**\n\n")
        lines += [_item(f"- `{key}`: {text}") for key, text in fields_of(item).items()]
    if inspect.isclass(item) and with_signature:
        for key in methods_of(item) if methods is None else methods:
            method = inspect.getattr_static(item, key)
            called = getattr(method, "__func__", method)
            lines.append(f"\n#### `{item.__name__}.{key}`\n")
            if isinstance(method, property):
                lines.append(_described(parse(inspect.getdoc(method) or "")))
                continue
            lines.append(f"\n```python\n{signature(key, called)}\n```\n")
            lines.append(_described(parse(inspect.getdoc(called) or "")))
    return lines


def methods_of(item: type) -> list[str]:
    """Public methods and properties that a class defines, in the order of its source."""
    return [
        key
        for key, value in vars(item).items()
        if not key.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    ]


def fields_of(item: type) -> dict[str, str]:
    """Fields of a data class by what the text below them, or the docstring, says of them."""
    told = parse(inspect.getdoc(item) or "").entries("Attributes")
    nodes = _node(item).body
    for node, below in itertools.pairwise(nodes):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
            told[node.target.id] = " ".join(str(below.value.value).split())
    kinds = {
        node.target.id: node
        for node in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    found = {}
    for field in dataclasses.fields(item):
        node = kinds[field.name]
        value = f" = {ast.unparse(node.value)}" if isinstance(node.value, ast.Constant) else ""
        found[field.name] = f"`{ast.unparse(node.annotation)}{value}`. {told.get(field.name, '')}"
    return found


def signature(name: str, item: Any) -> str:
    """How it is called, with the annotations as the source has them."""
    called = item.__init__ if inspect.isclass(item) else item
    node = _node(called)
    defaults = {key: p.default for key, p in inspect.signature(called).parameters.items()}
    arguments = [*node.args.posonlyargs, *node.args.args]
    shown = [_argument(each, defaults) for each in arguments if each.arg not in ("self", "cls")]
    if node.args.kwonlyargs:
        shown += ["*", *(_argument(each, defaults) for each in node.args.kwonlyargs)]
    returned = node.returns if not inspect.isclass(item) else None
    ending = f" -> {ast.unparse(returned)}" if returned is not None else ""
    line = f"{name}({', '.join(shown)}){ending}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){ending}"


def parse(text: str) -> Docstring:
    """A docstring in the style of Google: summary, prose, and sections of indented lines."""
    sections: dict[str, list[str]] = {}
    prose: list[str] = []
    lines = prose
    for line in text.splitlines():
        heading = _HEADING.fullmatch(line)
        if heading:
            lines = sections.setdefault(heading[1], [])
            continue
        if line[:1].strip():
            lines = prose
        lines.append(line)
    summary, _, body = "\n".join(prose).strip().partition("\n\n")
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", body) if part.strip()]
    told = {key: textwrap.dedent("\n".join(part)).strip() for key, part in sections.items()}
    return Docstring(" ".join(summary.split()), paragraphs, told)


def _described(doc: Docstring) -> str:
    parts = [f"\n{doc.summary}\n", *(f"\n{paragraph}\n" for paragraph in doc.body)]
    for heading in ("Args", "Attributes", "Returns", "Raises"):
        if heading not in doc.sections:
            continue
        parts.append(f"\n**{_TITLES[heading]}**\n\n")
        if heading == "Returns":
            parts.append(doc.sections[heading] + "\n")
        else:
            parts += [_item(f"- `{key}`: {text}") for key, text in doc.entries(heading).items()]
    return "".join(parts)


def _item(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def _argument(node: ast.arg, defaults: dict[str, Any]) -> str:
    shown = node.arg
    if node.annotation is not None:
        shown += f": {ast.unparse(node.annotation)}"
    value = defaults[node.arg]
    if value is inspect.Parameter.empty:
        return shown
    plain = value is None or isinstance(value, str | int | float | tuple)
    return f"{shown} = {value!r}" if plain else f"{shown} = ..."


def _node(item: type | Callable[..., Any]) -> Any:
    """The definition in the source."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(item)))).body[0]


def _error_classes() -> list[type]:
    return [
        each
        for each in vars(errors).values()
        if inspect.isclass(each)
        and issubclass(each, errors.WsssError)
        and each is not wsss.WsssError
    ]


def _doc(item: type) -> str:
    return _prose(inspect.getdoc(item) or "")


def _prose(text: str, start: int = 0) -> str:
    """Paragraphs from one on, wrapped as they are."""
    doc = parse(inspect.cleandoc(text))
    return "\n\n".join([doc.summary, *doc.body][start:])


if __name__ == "__main__":
    main()
