"""Every row of `user_mistakes.txt`: the exit code, and one line that says what would work."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_line import everything, picture, wsss
from small_bundles import content, write_bundle, write_manifest
from synthetic_jobs import write_job, write_units
from tiny_run import copy_run

from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.work.records import OK, ImageRecord

TABLE = Path(__file__).with_name("user_mistakes.txt")
COMMANDS = {
    "train",
    "compare",
    "eval",
    "export",
    "label",
    "serve",
    "data",
    "demo",
    "doctor",
    "bench",
}
PACKAGES = ("onnxruntime", "tensorrt", "tritonclient")
FOUND = {name for name in PACKAGES if find_spec(name)}
if torch.cuda.is_available():
    FOUND.add("cuda")


@dataclass
class Mistake:
    """A row of the table, with its places still in capitals.

    Attributes:
        needs, unless: packages, and `cuda` for a GPU.
        before: what happens to files first: the sign, the path and the content.
        says: what must stand in the line, in this order: what was found, then what was expected
            or would work.
    """

    name: str
    needs: set[str] = field(default_factory=set)
    unless: set[str] = field(default_factory=set)
    before: list[tuple[str, str, str]] = field(default_factory=list)
    command: str = ""
    code: int = 0
    says: tuple[str, ...] = ()


def read_table() -> Iterator[Mistake]:
    """The rows; a line that is none of theirs is an error."""
    for block in TABLE.read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip("\n").split("\n")
        if lines[0].startswith(("#", "==")):
            continue
        row = Mistake(lines[0])
        for line in lines[1:]:
            if line.startswith("  $ "):
                row.command = line[4:]
            elif found := re.fullmatch(r"  (needs|unless): (\w+)", line):
                (row.needs if found[1] == "needs" else row.unless).add(found[2])
            elif found := re.fullmatch(r"  (>|=|x) (\S+?)(?:: ?(.*))?", line):
                row.before.append((found[1], found[2], found[3] or ""))
            elif found := re.fullmatch(r"  (\d+): (.*)", line):
                row.code, row.says = int(found[1]), tuple(found[2].split(" | "))
            else:
                raise ValueError(f"in row '{row.name}': {line!r}")
        yield row


MISTAKES = list(read_table())


class Places:
    """What the capitals of the table stand for; made when a row names it."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request, self._folder = request, folder

    def fill(self, text: str) -> str:
        """The text with paths in it."""
        return re.sub(r"\b[A-Z]{3,}\b", lambda found: self._path(found[0]), text)

    def _path(self, name: str) -> str:
        make = getattr(self, f"at_{name.lower()}", None)
        return name if make is None else str(make())

    def _fixture(self, name: str) -> Path:
        return Path(self._request.getfixturevalue(name))

    def at_here(self) -> Path:
        return self._folder

    def at_out(self) -> Path:
        return self._folder / "out"

    def at_absent(self) -> Path:
        return self._folder / "absent"

    def at_run(self) -> Path:
        return self._fixture("run")

    def at_half(self) -> Path:
        return self._fixture("half_run")

    def at_bundle(self) -> Path:
        return self._fixture("small_bundle")

    def at_data(self) -> Path:
        return self._fixture("tiny_data")

    def at_recipe(self) -> Path:
        return self._fixture("recipe_file")

    def at_job(self) -> Path:
        return self._fixture("job")

    def at_photos(self) -> Path:
        return self._fixture("two_photos")

    def at_unfinished(self) -> Path:
        return self._fixture("unfinished_job")

    def at_set(self) -> Path:
        folder = self._folder / "set"
        if not folder.exists():
            shutil.copytree(self.at_data(), folder)
        return folder

    def at_empty(self) -> Path:
        (self._folder / "empty").mkdir(exist_ok=True)
        return self._folder / "empty"

    def at_file(self) -> Path:
        (self._folder / "file").write_text("precious")
        return self._folder / "file"

    def at_foreign(self) -> Path:
        folder = self._folder / "foreign"
        folder.mkdir(exist_ok=True)
        (folder / "thesis.txt").write_text("precious")
        return folder


@pytest.fixture(scope="session")
def half_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which only the first stages are there."""
    out = tmp_path_factory.mktemp("half") / "run"
    return copy_run(run, out, without=("affinity", "labels", "segmenter"))


@pytest.fixture(scope="session")
def two_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small images, always in the same place."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        picture(number).save(folder / f"photo {number}.png")
    return folder


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that opens, of a recipe without CRF; nothing is labelled by it."""
    folder = write_bundle(tmp_path_factory.mktemp("small") / "bundle")
    described = content(folder)
    described["settings"]["walk"]["crf"] = {"iterations": 0}
    write_manifest(folder, described)
    return folder


@pytest.fixture(scope="session")
def job(run: Path, two_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They, labelled by the run's segmenter."""
    out = tmp_path_factory.mktemp("job") / "out"
    wsss("label", two_photos, "--model", run, "--out", out).succeeded()
    return out


@pytest.fixture(scope="session")
def unfinished_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two units, of which one is done."""
    out = tmp_path_factory.mktemp("unfinished")
    refs = [ImageRef(f"{i}.png", f"/{i}.png", str(i)) for i in range(2)]
    records = [ImageRecord(i, ref.name, ref.output, OK) for i, ref in enumerate(refs)]
    write_units(out, write_job(out, refs, ("cat",), 1), records, leave_out={1})
    return out


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake(
    mistake: Mistake,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in mistake.needs - FOUND:
        pytest.skip(f"needs {name}")
    for name in mistake.unless & FOUND:
        pytest.skip(f"no mistake where there is {name}")
    places = Places(request, tmp_path)
    for sign, name, text in mistake.before:
        path = Path(places.fill(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if sign == "x":
            path.unlink()
        elif sign == "=":
            shutil.copy(places.fill(text), path)
        else:  # one byte a character, so that there are files that are no UTF-8
            path.write_bytes(text.replace("\\n", "\n").encode("latin-1"))
    words = [places.fill(word) for word in shlex.split(mistake.command)]
    before = everything(tmp_path)
    monkeypatch.chdir(tmp_path)

    line = wsss(*words).line(mistake.code)
    place = 0
    for piece in mistake.says:
        place = line.find(places.fill(piece), place)
        assert place >= 0, f"no {places.fill(piece)!r} (in its place) in: {line}"
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_the_table_is_what_was_asked_for() -> None:
    """Mistakes in every command, each of them once, and all of them with a way out."""
    assert len(MISTAKES) >= 80
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    commands = [(mistake.command, str(mistake.before)) for mistake in MISTAKES]
    assert len(set(commands)) == len(MISTAKES)
    assert {mistake.command.split()[0] for mistake in MISTAKES} >= COMMANDS
    for mistake in MISTAKES:
        assert mistake.code in (1, 2) and len(mistake.says) > 1, mistake.name
