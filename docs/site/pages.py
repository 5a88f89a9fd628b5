"""`make site`: the pages of the site, from the executed notebooks and docs/, built by Sphinx.

Reports come from the largest profile in which their study was run, with the notebooks of the rows that they link to;
attention that does not act has its line in the report.
Nothing is executed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

from PIL import Image
from sphinx.cmd.build import build_main

from lib.params import ROOT, Params
from lib.reports import readme
from lib.reports.study import Report

HERE = Path(__file__).parent
OUT = ROOT / "build" / "site"

#: Pages of docs/ and the root by their names on the site, in this order.
FIRST = ("running", "measuring", "training", "architecture", "decisions")
DOCS = {name: ROOT / "docs" / f"{name}.md" for name in FIRST}
DOCS |= {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))} | {"contributing": ROOT / "CONTRIBUTING.md"}

MODELS = ("dagl", "panet", "enlca", "ignn", "lir", "nlsa", "sparse", "graph_prior", "edsr")

#: Of photographs in figures.
QUALITY = 28

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


class Site:
    """The sources of the site in a folder; `pages` maps a file of the project to its page."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.profiles = [Params(profile=name) for name in Params().profiles]
        self.pages: dict[Path, str] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def write(self) -> None:
        """All pages: what each links to is known before the first is written."""
        reports = {}
        for name in self.profiles[0].studies:
            for number, run in enumerate(readme.runs(name, self.profiles)):
                page = f"{name}-{run.profile}" if number else name
                reports[page] = run.results("report", name, f"report_{name}.ipynb")
        reports = {page: path for page, path in reports.items() if path.exists()}
        if checked := self._published_numbers():
            reports[readme.PUBLISHED_NUMBERS] = checked
        self.pages = {path: name for name, path in reports.items()}
        self.studies = Counter(path.parent.name for path in reports.values())
        self.pages |= {path: name for name, path in DOCS.items()}
        summary = self._latest("summary", "summary.ipynb")
        self.pages |= {path: path.stem for path in [*summary, *sorted(ROOT.glob("results/benchmark/*.ipynb"))]}
        rows = [path for report in reports.values() for path in self._rows(report)]
        self.pages |= {path: f"rows/{path.parts[-4]}-{path.parent.name}" for path in rows}
        for path, name in self.pages.items():
            (self._notebook if path.suffix == ".ipynb" else self._markdown)(path, name)
        self._models()
        self._index(reports)

    def _latest(self, *parts: str) -> list[Path]:
        found = [path for params in self.profiles[1:] if (path := params.results(*parts)).exists()]
        return found[:1]

    def _published_numbers(self) -> Path | None:
        name = readme.PUBLISHED_NUMBERS
        found = [params.results("report", name, f"report_{name}.ipynb") for params in self.profiles]
        return next((path for path in reversed(found) if path.exists()), None)

    def _rows(self, report: Path) -> list[Path]:
        """The notebooks of trained rows that a report links to, but for attention that does not act; those of a smoke
        run would double the site."""
        if report.parts[-4] == self.profiles[0].profile:
            return []
        of_profile = next(params for params in self.profiles if params.profile == report.parts[-4])
        tested = Report(report.parent.name, of_profile).tested if report.parent.name in of_profile.studies else {}
        links = re.findall(r"\]\((\.\./\.\./evaluate/[^)]+)\)", report.read_text())
        found = [path for link in dict.fromkeys(links) if (path := (report.parent / link).resolve()).exists()]
        return [path for path in found if tested.get(path.parent.name) and path.parent.name in of_profile.experiments]

    def _linked(self, words: str, source: Path, page: str) -> str:
        """Markdown whose links between files of the project lead to their pages; a link to a file without a page is
        its text."""

        def link(found: re.Match) -> str:
            text, target, anchor = found[1], found[2], found[3] or ""
            if re.match(r"\w+:", target):
                return found[0]
            leads_to = (source.parent / target).resolve()
            name = self.pages.get(leads_to)
            return f"[{text}]({'../' * page.count('/')}{name}{leads_to.suffix}{anchor})" if name else text

        return LINK.sub(link, words).replace("```mermaid", "```text")

    def _markdown(self, path: Path, name: str) -> None:
        (self.folder / f"{name}.md").write_text(self._linked(path.read_text(), path, name))

    def _notebook(self, path: Path, name: str) -> None:
        """A notebook with its code folded and its figures' descriptions where Sphinx looks for them; a row's without
        the code, which all share, and its training, which reports show."""
        notebook = json.loads(path.read_text())
        cells = []
        if name.startswith("rows/"):  # all of them have one title
            params = next(one for one in self.profiles if one.profile == path.parts[-4])
            row = params.row(path.parent.name)
            words = "".join(notebook["cells"][0]["source"]).partition("\n")[2]
            notebook["cells"][0]["source"] = (
                f"# {row.title}: {row.task.title} ({params.profile})\n\n[All rows](../rows.md)\n{words}"
            )
        elif self.studies[path.parent.name] > 1:  # a study's reports in two profiles have one title
            title, _, words = "".join(notebook["cells"][0]["source"]).partition("\n")
            notebook["cells"][0]["source"] = f"{title} ({path.parts[-4]})\n{words}"
        left_out = False
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if (words := "".join(cell["source"])).startswith("## "):
                left_out = name.startswith("rows/") and words.startswith("## Training\n")
            if left_out or {"parameters", "injected-parameters"} & {*tags}:
                continue
            if cell["cell_type"] == "markdown":
                cell["source"] = self._linked("".join(cell["source"]), path, name)
            else:
                cell["metadata"]["tags"] = [*tags, "remove-input" if name.startswith("rows/") else "hide-input"]
                for output in cell["outputs"]:
                    self._output(cell, output, path, name)
            cells.append(cell)
        if name.startswith("rows/"):  # in every page's list of pages they would be a seventh of the site
            notebook["metadata"]["orphan"] = True
        target = self.folder / f"{name}.ipynb"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(notebook | {"cells": cells}))

    def _output(self, cell: dict, output: dict, path: Path, name: str) -> None:
        data = output.get("data", {})
        if "text/markdown" in data:
            del data["text/plain"]  # which would stand in for an empty one
            data["text/markdown"] = self._linked("".join(data["text/markdown"]), path, name)
        for kind in ("image/png", "image/jpeg"):
            if alt := output.get("metadata", {}).get(kind, {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt.replace("\n", " ")}}

    def _models(self) -> None:
        parts = ["# Models\n\nThe networks and their options, from the code."]
        for name in MODELS:
            directive = f".. automodule:: lib.models.{name}\n   :members:\n   :show-inheritance:"
            parts.append(f"## {name}\n\n```{{eval-rst}}\n{directive}\n```")
        (self.folder / "models.md").write_text("\n\n".join(parts))

    def _index(self, reports: dict[str, Path]) -> None:
        """The landing page: what the README says before its contents, a card for each study, the systems."""
        source = ROOT / "README.md"
        before, _, rest = source.read_text().partition("[Results](#results)")
        systems = "## Systems" + rest.partition("## Systems")[2].partition("\n## ")[0]
        words = "\n".join(line for line in before.splitlines() if "badge.svg" not in line)
        cards = []
        for name, path in sorted(reports.items(), key=lambda item: item[1].parts[-4] == self.profiles[0].profile):
            study = self.profiles[0].studies.get(path.parent.name)
            title = study.title if study else "Do our conventions give published numbers back?"
            title += f" ({path.parts[-4]})" * (self.studies[path.parent.name] > 1)
            said = _answer(path)
            figure = path.with_name("differences.png")
            profile, shown = path.parts[-4], ""
            if figure.exists() and profile != self.profiles[0].profile:
                shutil.copy(figure, self.folder / f"{name}.png")
                shown = f"![{title}]({name}.png)"
            cards.append(
                f":::{{container}} card\n**[{title}]({name}.ipynb)**\n\n{said} (profile `{profile}`)\n\n{shown}\n:::"
            )
        rows = [page for page in self.pages.values() if page.startswith("rows/")]
        costs = [page for page in self.pages.values() if page not in {*reports, *DOCS, "summary", *rows}]
        self._tree("rows", "Rows", "Each network and baseline by itself: photographs, training, cost, attention.", rows)
        self._tree("costs", "What attention costs", "Each attention module beside its definition, by machine.", costs)
        trees = {"Reports": [*reports, "summary", "rows", "costs"], "Documentation": [*DOCS, "models"]}
        gallery = "::::{container} gallery\n" + "\n\n".join(cards) + "\n::::"
        parts = [self._linked(words, source, "index"), gallery, systems]
        parts += [_toctree(pages, f":caption: {caption}\n:hidden:") for caption, pages in trees.items()]
        (self.folder / "index.md").write_text("\n\n".join(parts))

    def _tree(self, name: str, title: str, words: str, pages: list[str]) -> None:
        """A page that lists others: rows by links, machines by name in a tree."""
        listed = "\n".join(f"- {{doc}}`{page}`" for page in pages)
        if name == "costs":
            listed = _toctree([f"{page} <{page}>" for page in pages], ":maxdepth: 1")
        (self.folder / f"{name}.md").write_text(f"# {title}\n\n{words}\n\n{listed}\n")


def _toctree(pages: list[str], options: str) -> str:
    return f"```{{toctree}}\n{options}\n\n" + "\n".join(pages) + "\n```"


def _answer(report: Path) -> str:
    """The first two sentences of the answer of an executed report, or its finding."""
    cells = json.loads(report.read_text())["cells"]
    found = [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.get("outputs", ())]
    shown = ["".join(words) for words in found if words]
    answers = [words.removeprefix("**Answer.** ") for words in shown if words.startswith("**Answer.** ")]
    return " ".join(re.split(r"(?<=\.) (?=[A-Z])", answers[0].partition("\n")[0])[:2]) if answers else shown[-1]


def main() -> int:
    """Build the site; returns Sphinx's exit status: a broken link or reference is an error."""
    Site(OUT / "source").write()
    source, html = OUT / "source", OUT / "html"
    shutil.rmtree(html, ignore_errors=True)  # figures that no page shows any more
    always = ["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(OUT / "doctrees")]
    status = build_main([*always, str(source), str(html)])
    _shrink(html)
    return status


def _shrink(html: Path) -> None:
    """Make the pictures WebP, photographs with losses: two thirds of the size. One file for equal ones; no indentation,
    no styles of pandas, no icons that a page does not use, no source maps of style sheets."""
    for path in html.rglob("*.css.map"):
        path.unlink()
    renamed, seen = {}, {}
    for path in sorted((html / "_images").iterdir()):
        with Image.open(path) as picture:
            is_photograph, pixels = picture.format == "JPEG", picture.convert("RGB")
        path.unlink()
        kept = seen.setdefault((pixels.size, sha256(pixels.tobytes()).digest()), path.with_suffix(".webp"))
        if not kept.exists():
            pixels.save(kept, quality=QUALITY, lossless=not is_photograph, method=6)
        renamed[path.name] = kept.name
    for page in html.rglob("*.html"):
        text = re.sub(r'(?<=_images/)[^"]+', lambda found: renamed[found[0]], page.read_text())
        text = re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL)
        for icon in re.finditer(r'<symbol id="([\w-]+)".*?</symbol>\s*', text, re.DOTALL):
            text = text if f"#{icon[1]}" in text else text.replace(icon[0], "")
        parts = re.split(r"(<pre\b.*?</pre>)", text, flags=re.DOTALL)  # where spaces are shown
        parts[::2] = [re.sub(r"\s*\n\s*", "\n", part) for part in parts[::2]]
        page.write_text("".join(parts))


if __name__ == "__main__":
    sys.exit(main())
