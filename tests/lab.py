"""JupyterLab in headless Chromium: for the browser tests, and for looking at lessons.

    python tests/lab.py solutions/01_one_head/01_one_head.ipynb --pages out --theme dark
    python tests/lab.py notebooks/01_one_head/01_one_head.ipynb --run-all --pages out

writes what a reader sees, screen by screen, as PNG files. It works on a copy; nothing in the checkout changes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mha_course import lab as start
from mha_course.doctor import find_chromium

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "only-for-this-run"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
THIS = "jupyterapp.shell.currentWidget.content"  # the notebook in front, in JupyterLab's own words
PATIENCE = 90  # seconds to wait for anything


def make_root(root: Path, *folders: str | Path) -> Path:
    """A course to work in that is not the checkout: these folders copied, the package and the config linked."""
    root.mkdir(parents=True, exist_ok=True)
    for part in ("nbgrader_config.py", "jupyter_lab_config.py", "mha_course"):
        if (ROOT / part).exists():
            (root / part).symlink_to(ROOT / part)
    for folder in map(Path, folders):
        source = ROOT / folder
        if source.exists():
            shutil.copytree(source, root / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return root


@contextlib.contextmanager
def server(root: Path, theme: str = "light", teach: bool = False) -> Iterator[str]:
    """JupyterLab as ``mha-course lab`` starts it, with settings of its own. Gives its address.

    Args:
        root: the course's folder; a learner's JupyterLab shows ``work/`` in it.
        teach: as ``mha-course lab --teach`` starts it: it shows ``root``.
    """
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = Path(home, "settings")
        write_settings(settings, theme)
        places = {
            "JUPYTERLAB_SETTINGS_DIR": settings,
            "JUPYTERLAB_WORKSPACES_DIR": Path(home, "workspaces"),
            "JUPYTER_CONFIG_DIR": Path(home, "config"),
            "JUPYTER_DATA_DIR": Path(home, "data"),
            "JUPYTER_RUNTIME_DIR": Path(home, "runtime"),
            "IPYTHONDIR": Path(home, "ipython"),
            "PYTHONPATH": root,
        }
        environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
        environment.pop("NBGRADER_EXECUTION", None)
        more = [f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True"]
        args = argparse.Namespace(no_browser=True, port=port, log=True, teach=teach, more=more)
        command = start.command(root if teach else root / "work", "", args)
        log = Path(home, "server.log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: answers(f"{address}/api"), lambda: log.read_text(errors="replace"), process)
            yield address
        finally:
            process.terminate()  # JupyterLab ends its kernels
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def write_settings(folder: Path, theme: str) -> None:
    """No news, no questions; every cell drawn, whether it is in view or not."""
    name = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}[theme]
    chosen = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": name},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for plugin, values in chosen.items():
        path = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


def wait_for(done, explain, process) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"JupyterLab did not start:\n{explain()}")
        time.sleep(0.2)


@contextlib.contextmanager
def browser(width: int = 1100, height: int = 900, sharpness: int = 1) -> Iterator:
    """A page of headless Chromium, with ``sharpness``² dots for each of its pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            size = {"width": width, "height": height}
            page = chromium.new_context(viewport=size, device_scale_factor=sharpness).new_page()
            page.set_default_timeout(PATIENCE * 1000)
            yield page
        finally:
            chromium.close()


class Notebook:
    """One notebook open in JupyterLab. Cells are found by their id: for graded ones, the grade id."""

    def __init__(self, page, address: str, path: str):
        self.page = page
        page.goto(f"{address}/lab/tree/{path}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def cells(self) -> list[str]:
        """The ids of all cells, in their order."""
        return self.page.evaluate(f"() => Array.from({THIS}.widgets, cell => cell.model.id)")

    def source(self, cell: str) -> str:
        """A cell's text."""
        return self.page.evaluate(
            f"index => {THIS}.widgets[index].model.sharedModel.getSource()", self.place(cell)
        )

    def is_code(self, cell: str) -> bool:
        return self.page.evaluate(f"index => {THIS}.widgets[index].model.type", self.place(cell)) == "code"

    def place(self, cell: str) -> int:
        return self.cells().index(cell)

    def locate(self, cell: str):
        """Where a cell is on the page."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(
            self.cells().index(cell)
        )

    def write(self, cell: str, source: str) -> None:
        """Click into a cell and replace its text, as somebody who types."""
        editor = self.locate(cell).locator(".cm-content").first
        editor.scroll_into_view_if_needed()
        editor.click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(source)

    def run(self, cell: str) -> str:
        """Press Shift+Enter in a cell, wait until it has run, give the text of its outputs."""
        located = self.locate(cell)
        before = located.locator(".jp-InputPrompt").first.inner_text()
        editor = located.locator(".cm-content").first
        editor.scroll_into_view_if_needed()
        editor.click()
        self.page.keyboard.press("Shift+Enter")
        end = time.monotonic() + PATIENCE
        while True:
            prompt = located.locator(".jp-InputPrompt").first.inner_text()
            if prompt != before and any(sign.isdigit() for sign in prompt):
                return self.output(cell)
            if time.monotonic() > end:
                raise TimeoutError(f"cell {cell} did not finish: {prompt}")
            self.page.wait_for_timeout(50)

    def output(self, cell: str) -> str:
        """The text of a cell's outputs as a reader sees it."""
        return "\n".join(self.locate(cell).locator(".jp-OutputArea-output").all_inner_texts())

    def run_all(self) -> None:
        """Run every cell that can be run; goes on after errors, as a reader would."""
        for index in range(len(self.cells())):
            self.page.evaluate(
                """async index => {
                    const notebook = THIS;
                    notebook.activeCellIndex = index;
                    if (notebook.activeCell.model.type === 'code')
                        await jupyterapp.commands.execute('notebook:run-cell');
                }""".replace("THIS", THIS),
                index,
            )

    def save(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")

    def validate(self) -> str:
        """Press nbgrader's Validate button, give the text of what it says."""
        self.save()
        self.page.get_by_text("Validate", exact=True).first.click()
        dialog = self.page.locator(".jp-Dialog")
        dialog.wait_for()
        text = dialog.inner_text()
        dialog.locator("button").last.click()
        return text

    def pages(self, folder: Path) -> list[Path]:
        """Screenshots from top to bottom, one screen each."""
        folder.mkdir(parents=True, exist_ok=True)
        self.page.evaluate(
            """() => {
                if (jupyterapp.shell.leftCollapsed === false) jupyterapp.shell.collapseLeft();
                jupyterapp.shell.collapseRight();
            }"""
        )
        scroller = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer").first
        step = int(scroller.evaluate("element => element.clientHeight")) - 40
        total = int(scroller.evaluate("element => element.scrollHeight"))
        made = []
        for number, top in enumerate(range(0, max(total - 40, 1), step), start=1):
            scroller.evaluate("(element, top) => { element.scrollTop = top; }", top)
            self.page.wait_for_timeout(300)
            made.append(folder / f"page-{number:02d}.png")
            scroller.screenshot(path=str(made[-1]))
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Look at a notebook as JupyterLab shows it.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--run-all", action="store_true", help="run every cell first")
    parser.add_argument(
        "--pages", type=Path, required=True, metavar="FOLDER", help="where the screenshots go"
    )
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = make_root(Path(scratch, "course"))
        shutil.copytree(args.notebook.resolve().parent, root / "look")
        with server(root, args.theme, teach=True) as address, browser(args.width) as page:
            notebook = Notebook(page, address, f"look/{args.notebook.name}")
            if args.run_all:
                notebook.run_all()
            page.wait_for_timeout(1500)  # formulas and pictures
            for path in notebook.pages(args.pages):
                print(path)


if __name__ == "__main__":
    main()
