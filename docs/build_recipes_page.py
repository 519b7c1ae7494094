"""Writes docs/recipes.md from the schema of recipes: `python docs/build_recipes_page.py`."""

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wsss.training.recipe import RECIPES, Recipe, load_recipe, shipped_recipes

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
    own = "".join(_own(method, kind) for method, kind in RECIPES.items())
    return f"{HEAD}{shipped}\n## Keys of all methods\n{tables}{own}"


def _own(method: str, kind: type[Recipe]) -> str:
    """Sections that only this method has, and its own defaults in those of all."""
    tables, defaults = [], []
    for key, field in kind.model_fields.items():
        inner = field.annotation
        shared = Recipe.model_fields.get(key)
        if shared is None and isinstance(inner, type) and issubclass(inner, BaseModel):
            tables += _section(inner, key)
        elif isinstance(inner, type) and shared is not None and inner is not shared.annotation:
            defaults += [
                f"- `{key}.{name}`: {_default(found)}\n"
                for name, found in inner.model_fields.items()
                if found.default != shared.annotation.model_fields[name].default
            ]
    others = f"\nOther defaults in the sections above:\n\n{''.join(defaults)}" if defaults else ""
    return f"\n## Keys of `{method}`\n{others}{''.join(tables)}"


def _summary(name: str) -> str:
    recipe = load_recipe(name)
    return f"{recipe.method} with {recipe.backbone.name}"


def _section(model: type[BaseModel], path: str) -> list[str]:
    rows, below = [], []
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            below += _section(inner, f"{path}.{key}" if path else key)
        else:
            rows.append(_row(key, field))
    meaning = " ".join((model.__doc__ or "").split()).replace("|", "\\|")
    title = f"\n### `{path}`\n\n{meaning}\n\n" if path else "\n### top of the file\n\n"
    table = "| key | default | range | meaning |\n|---|---|---|---|\n" + "".join(rows)
    return [title + table, *below] if rows else below


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
    schema = str(field.annotation).replace("typing.", "").replace("|", "or")
    choices = getattr(field.annotation, "__args__", ())
    if "Literal" in schema:
        names = [json.dumps(choice) for choice in choices if isinstance(choice, str | int)]
        return ", ".join(names) or "a backbone stride"
    limits = [
        f"{sign} {bound:g}"
        for item in field.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if (bound := getattr(item, name, None)) is not None
    ]
    return ", ".join(limits)


if __name__ == "__main__":
    main()
