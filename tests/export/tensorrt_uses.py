"""Every use of TensorRT in a source file, held against the real Python bindings.

`uses_of` reads source and imports nothing. Run as a program with the folder of the bindings, it
reads uses from stdin and prints as JSON what the bindings do not have.
"""

import ast
import json
import re
import sys

OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "network_input": "ITensor",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "config": "IBuilderConfig",
    "optimization": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
}
"""What our modules call an object -> its class in the bindings."""


def uses_of(source):
    """Attributes of `trt` and of the objects above: where, of what, and how they are called."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    results = {
        id(node.value): ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
    }
    uses = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        root, path = _chain(node)
        if root is None:
            continue
        use = {"line": node.lineno, "root": root, "path": path, "call": None, "result": None}
        use["is_set"] = isinstance(node.ctx, ast.Store)
        call = calls.get(id(node))
        if call is not None:
            use["call"] = {
                "positional": [_kind(argument) for argument in call.args],
                "keywords": {each.arg: _kind(each.value) for each in call.keywords},
            }
            use["result"] = OBJECTS.get(results.get(id(call), ""))
        uses.append(use)
    return sorted(uses, key=lambda use: use["line"])


def _chain(node):
    """(`trt` or a class, attributes that follow); (None, None) for anything else."""
    path = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
        text = ast.unparse(node)
        if text in OBJECTS:
            return OBJECTS[text], path[:1]
    return ("trt", path) if isinstance(node, ast.Name) and node.id == "trt" else (None, None)


def _kind(node):
    """What is known of an argument: the class of a constant, or an enumeration of the bindings."""
    if isinstance(node, ast.Constant):
        return type(node.value).__name__
    root, path = _chain(node) if isinstance(node, ast.Attribute) else (None, None)
    return path[0] if root == "trt" and len(path) == 2 else None


def check(trt, uses):
    """What the bindings do not have, or not in this form, each with its line."""
    return [
        f"line {use['line']}: {use['root']}.{'.'.join(use['path'])} {fault}"
        for use in uses
        if (fault := _fault(trt, use))
    ]


def _fault(trt, use):
    thing = trt if use["root"] == "trt" else getattr(trt, use["root"])
    for name in use["path"]:
        if not hasattr(thing, name):
            return "does not exist"
        thing = getattr(thing, name)
    if use["is_set"]:
        return "" if isinstance(thing, property) and thing.fset else "cannot be set"
    if use["call"] is None:
        return ""
    documented = thing.__init__ if isinstance(thing, type) else thing
    if type(documented).__name__ != "instancemethod":
        return ""  # of Python, not of the bindings
    forms = _forms(documented.__doc__)
    skipped = use["path"][-1] == "__init__"  # there the caller gives `self`
    fitting = [form for form in forms if _fits(form, use["call"], skipped)]
    if not fitting:
        return f"is not called so, but {' or '.join(form['text'] for form in forms)}"
    expected = use["result"]
    if expected and not isinstance(thing, type) and fitting[0]["result"] != expected:
        return f"gives {fitting[0]['result']}, not {expected}"
    return ""


def _forms(doc):
    """Signatures in the docstring of a pybind11 function, one or several."""
    forms = []
    for text in re.findall(r"^(?:\d+\. )?\w+\((?!\*args).*\) -> .*$", doc, re.MULTILINE):
        inside, result = text.split("(", 1)[1].rsplit(") -> ", 1)
        parameters = []
        for part in re.split(r", (?=\w+: )", inside):
            name, _, kind = part.partition(": ")
            kind, has_default, _ = kind.partition(" = ")
            parameters.append((name, kind.rsplit(".", 1)[-1], bool(has_default)))
        forms.append({"text": text, "parameters": parameters, "result": result.rsplit(".", 1)[-1]})
    return forms


_CONSTANTS = {"int": "SupportsInt", "bool": "bool", "str": "str", "bytes": "Buffer"}


def _fits(form, call, with_self):
    parameters = form["parameters"] if with_self else form["parameters"][1:]
    given = dict(zip((name for name, _, _ in parameters), call["positional"], strict=False))
    if len(given) < len(call["positional"]) or set(given) & set(call["keywords"]):
        return False
    given |= call["keywords"]
    kinds = {name: kind for name, kind, _ in parameters}
    return (
        set(given) <= set(kinds)
        and {name for name, _, has_default in parameters if not has_default} <= set(given)
        and all(
            kind is None or kinds[name] == _CONSTANTS.get(kind, kind)
            for name, kind in given.items()
        )
    )


if __name__ == "__main__":
    from tensorrt_stand_in import import_bindings

    print(json.dumps(check(import_bindings(sys.argv[1]), json.load(sys.stdin))))
