"""Writes docs/recipes.md from the schema of recipes: `python docs/build_recipes_page.py`."""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wsss.training.methods import METHODS, open_method
from wsss.training.recipe.recipe import Recipe
from wsss.training.recipe.sections import OneOf
from wsss.training.recipes import load_recipe, shipped_recipes

_TABLE = "| key | default | range | meaning |\n|---|---|---|---|\n"
HEAD = """# Recipes

A recipe is a TOML file with one section a stage. `wsss train NAME` takes a shipped one by name,
or the path of your own; `--set stage.key=value` changes one value. All faults of a recipe are
reported at once. This page is written by `python docs/build_recipes_page.py`.

## Shipped

"""


def main() -> None:
    (Path(__file__).parent / "recipes.md").write_text(render(), encoding="utf-8")


def render() -> str:
    """The page as markdown."""
    shipped = "".join(f"- `{name}`: {_summary(name)}\n" for name in shipped_recipes())
    tables = "".join(_section(Recipe, ""))
    own = "".join(_own(name, open_method(name).recipe) for name in METHODS)
    return f"{HEAD}{shipped}\n## Keys of all methods\n{tables}{own}"


def _own(method: str, kind: type[Recipe]) -> str:
    """Sections that only this method has, and its own defaults and keys in those of all."""
    tables, defaults = [], []
    for key, field in kind.model_fields.items():
        inner = field.annotation
        shared = Recipe.model_fields.get(key)
        if not _is_section(field):
            continue
        if shared is None:
            tables += _section(inner, key)
        elif inner is not shared.annotation:
            defaults += _own_defaults(inner, shared.annotation, key)
            tables += _own_keys(inner, shared.annotation, key)
    others = f"\nOther defaults in the sections above:\n\n{''.join(defaults)}" if defaults else ""
    return f"\n## Keys of `{method}`\n{others}{''.join(tables)}"


def _own_defaults(model: type[BaseModel], shared: type[BaseModel], path: str) -> list[str]:
    """Lines of the keys that a section and the one of all methods give other defaults."""
    lines = []
    for key, field in model.model_fields.items():
        known = shared.model_fields.get(key)
        if known is None:
            continue
        if field.annotation is not known.annotation and _is_section(field):
            lines += _own_defaults(field.annotation, known.annotation, f"{path}.{key}")
        elif field.default != known.default:
            lines.append(f"- `{path}.{key}`: {_default(field)}\n")
    return lines


def _own_keys(model: type[BaseModel], shared: type[BaseModel], path: str) -> list[str]:
    """Tables of the keys that the section of all methods lacks."""
    rows, below = [], []
    for key, field in model.model_fields.items():
        known = shared.model_fields.get(key)
        if known is None and _is_section(field):
            below += _section(field.annotation, f"{path}.{key}")
        elif known is None:
            rows.append(_row(key, field))
        elif field.annotation is not known.annotation and _is_section(field):
            below += _own_keys(field.annotation, known.annotation, f"{path}.{key}")
    table = f"\n### Further keys of `{path}`\n\n{_TABLE}{''.join(rows)}"
    return [table, *below] if rows else below


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _summary(name: str) -> str:
    recipe = load_recipe(name)
    return f"{recipe.method} with {recipe.backbone.name}"


def _section(model: type[BaseModel], path: str) -> list[str]:
    rows, below = [], []
    for key, field in model.model_fields.items():
        if _is_section(field):
            below += _section(field.annotation, f"{path}.{key}" if path else key)
        else:
            rows.append(_row(key, field))
    meaning = " ".join((model.__doc__ or "").split()).replace("|", "\\|")
    title = f"\n### `{path}`\n\n{meaning}\n\n" if path else "\n### top of the file\n\n"
    return [title + _TABLE + "".join(rows), *below] if rows else below


def _row(key: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{key}` | {_default(field)} | {_range(field)} | {meaning} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    return "-" if value is None else f"`{json.dumps(value)}`"


def _range(field: FieldInfo) -> str:
    kinds = getattr(field.annotation, "__args__", ())
    choices = [kind for kind in kinds if isinstance(kind, str | int)]  # of a Literal
    inner = [item for kind in kinds for item in getattr(kind, "__metadata__", ())]
    for item in (*field.metadata, *inner):
        if isinstance(getattr(item, "func", None), OneOf):
            choices += item.func.choices()
    if choices:
        return ", ".join(map(json.dumps, choices))
    limits = [
        f"{sign} {bound:g}"
        for item in field.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if (bound := getattr(item, name, None)) is not None
    ]
    return ", ".join(limits)


if __name__ == "__main__":
    main()
